"""The frontier as a still picture (PNG and SVG): loss of quality against size, with intervals and budget lines.

Verdicts differ in shape and fill as well as colour, so the picture reads in grey and without colour vision.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from lessen.frontier import Frontier, Point
from lessen.frontier.verdict import BETTER, UNKNOWN, WITHIN, WORSE
from lessen.report import wording
from lessen.report.curves import curves

INK, SOFT, HAIR, PAPER, BAND = "#1b1f24", "#6a737d", "#d8dee4", "#ffffff", "#eef5f1"
# Okabe-Ito colours: blue, orange, vermilion; told apart by their lightness too
STYLES: dict[str, dict[str, Any]] = {
    BETTER: {"marker": "^", "color": "#00795C", "filled": True, "size": 8.5},
    WITHIN: {"marker": "o", "color": "#0072B2", "filled": True, "size": 8.0},
    UNKNOWN: {"marker": "D", "color": "#B97A00", "filled": False, "size": 6.5},
    WORSE: {"marker": "X", "color": "#C4500A", "filled": True, "size": 8.0},
}
LEGEND: dict[str, str] = {BETTER: "better", WITHIN: "within margin", UNKNOWN: "not enough data to say", WORSE: "worse"}
_MANY = 24
"""Above this many recipes only those on the front are labelled."""


def picture(frontier: Frontier, form: str, cost: str | None = None) -> bytes:
    """Return the plot as `png` (1800 pixels wide) or `svg`, the same bytes for the same measurements."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    target = io.BytesIO()
    with matplotlib.rc_context(_settings(frontier)):
        figure = Figure(figsize=(9.0, 5.4), dpi=200, facecolor=PAPER)
        FigureCanvasAgg(figure)
        draw(figure, frontier, cost)
        if form == "svg":
            FigureCanvasSVG(figure)
        figure.savefig(target, format=form, metadata={"Date": None} if form == "svg" else {"Software": None})
    return target.getvalue()


def draw(figure: Any, frontier: Frontier, cost: str | None = None) -> None:
    """Draw the plot into an empty matplotlib figure; the cost is the one that the study is about unless given."""
    cost = cost or frontier.cost
    placed = [p for p in frontier.measured if p.axis(cost) is not None and frontier.primary in p.difference]
    axes = figure.add_axes((0.088, 0.125, 0.888, 0.685))
    _titles(figure, frontier, cost, placed)
    if not placed:
        axes.text(0.5, 0.5, "nothing was measured on both axes", ha="center", color=SOFT, transform=axes.transAxes)
        axes.set_axis_off()
        return
    on_front = frontier.front(cost)
    _scales(axes, frontier, placed, cost)
    _margin_band(axes, frontier)
    _budget_lines(axes, frontier, cost)
    _front_line(axes, frontier, on_front, cost)
    _curve_lines(axes, frontier, placed, cost)
    for point in placed:
        _draw_point(axes, frontier, point, cost, point in on_front)
    axes.plot([1.0], [0.0], marker="s", ms=7, mfc=PAPER, mec=INK, mew=1.4, ls="none", zorder=4)
    _legend(axes, placed, len(on_front) > 1)
    _label_points(figure, axes, frontier, placed, on_front, cost)


def _settings(frontier: Frontier) -> Any:
    return {
        "font.family": "DejaVu Sans",
        "font.size": 9.0,
        "svg.hashsalt": f"lessen-{frontier.studies[0].name}",
        "svg.fonttype": "path",
        "axes.unicode_minus": True,
        "text.color": INK,
        "axes.edgecolor": HAIR,
        "text.parse_math": False,
        "xtick.color": SOFT,
        "ytick.color": SOFT,
        "axes.labelcolor": SOFT,
    }


def _titles(figure: Any, frontier: Frontier, cost: str, placed: Sequence[Point]) -> None:
    metric = frontier.title(frontier.primary)
    figure.text(0.022, 0.945, f"{metric} against {wording.cost_name(cost)}", size=13.5, weight="bold", va="center")
    seeds = max((len(point.seeds) for point in placed), default=0)
    parts = [_clip(frontier.studies[0].task_name, 46), f"{seeds} seed{'s' * (seeds != 1)}, 95 % intervals"]
    if placed and cost in placed[0].reference_cost:
        parts.append(f"uncompressed {wording.amount(cost, placed[0].reference_cost[cost].mean)}")
    if placed and frontier.primary in placed[0].reference_quality:
        parts.append(f"{metric} {placed[0].reference_quality[frontier.primary].mean:.4f}")
    figure.text(0.022, 0.893, "   ·   ".join(parts), size=8.6, color=SOFT, va="center")


def _scales(axes: Any, frontier: Frontier, placed: Sequence[Point], cost: str) -> None:
    prices = [price for point in placed if (price := point.axis(cost)) is not None] + [1.0]
    low, high = min(prices), max(prices)
    if low > 0 and high / low > 3:
        axes.set_xscale("log")
        axes.set_xlim(low / (high / low) ** 0.07, high * max((high / low) ** 0.07, 1.12))
    else:
        room = 0.08 * (high - low or high)
        axes.set_xlim(low - room, high + room)
    left, right = axes.get_xlim()
    ticks = [t for t in _nice(max(low, 1e-9) / 2, high * 2) if left <= t <= right]
    if len(ticks) < 3:
        from matplotlib.ticker import MaxNLocator

        ticks = [
            tick for tick in MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]).tick_values(left, right) if left <= tick <= right
        ]
    axes.set_xticks(ticks, [wording.share(tick) for tick in ticks])
    axes.set_xticks([], minor=True)
    ends = [end for p in placed for end in _ends(p.difference[frontier.primary])] + [-frontier.margin, frontier.margin]
    bottom, top = min(ends), max(ends)
    axes.set_yscale("asinh", linear_width=2 * frontier.margin)
    scale = axes.yaxis.get_transform()
    edges = scale.transform([bottom, top])
    span = edges[1] - edges[0]
    axes.set_ylim(*scale.inverted().transform([edges[0] - 0.07 * span, edges[1] + 0.10 * span]))
    if not _higher_is_better(frontier):
        axes.invert_yaxis()
    marks = _spaced(axes, [sign * t for t in _nice(frontier.margin / 2, max(-bottom, top)) for sign in (-1, 1)])
    decimals = wording.decimals_for(frontier.margin)
    axes.set_yticks(marks, [wording.signed(m, decimals) if m else "0" for m in marks])
    axes.set_yticks([], minor=True)
    axes.tick_params(length=0, pad=6, labelsize=8.6)
    axes.grid(axis="both", color=HAIR, lw=0.5, alpha=0.7)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.set_xlabel(f"{wording.cost_name(cost)}, share of the uncompressed model", labelpad=8)
    says = f"{frontier.title(frontier.primary)} difference, better upwards"
    axes.annotate(
        says,
        (0, 1),
        xycoords="axes fraction",
        xytext=(6, -6),
        textcoords="offset points",
        size=7.8,
        color=SOFT,
        ha="left",
        va="top",
    )


def _margin_band(axes: Any, frontier: Frontier) -> None:
    """Shade where the loss is at most the margin."""
    edge = -frontier.margin if _higher_is_better(frontier) else frontier.margin
    axes.axhspan(edge, axes.get_ylim()[1], color=BAND, zorder=0, lw=0)
    axes.axhline(edge, color="#3f7d5c", lw=1.0, ls=(0, (5, 3)), zorder=1)
    axes.axhline(0, color=SOFT, lw=0.8, zorder=1)
    axes.annotate(
        f"margin {wording.signed(edge, wording.decimals_for(frontier.margin))}",
        (1, edge),
        xycoords=("axes fraction", "data"),
        xytext=(-2, -4),
        textcoords="offset points",
        size=7.8,
        color="#2f6548",
        ha="right",
        va="top",
    )


def _budget_lines(axes: Any, frontier: Frontier, cost: str) -> None:
    for gate in frontier.gates:
        base = next((p.reference_cost[cost].mean for p in frontier.measured if cost in p.reference_cost), None)
        if gate.name == cost and (gate.relative or base):
            x = gate.limit if gate.relative else gate.limit / (base or 1.0)
            axes.axvline(x, color=SOFT, lw=0.9, ls=(0, (1, 2)), zorder=1)
            axes.annotate(
                f"budget {wording.share(x)}",
                (x, 0),
                xycoords=("data", "axes fraction"),
                xytext=(4, 5),
                textcoords="offset points",
                size=7.8,
                color=SOFT,
                ha="left",
                va="bottom",
            )
        elif gate.name == frontier.primary and abs(abs(gate.limit) - frontier.margin) > 1e-12:
            axes.axhline(gate.limit, color=SOFT, lw=0.9, ls=(0, (1, 2)), zorder=1)


def _front_line(axes: Any, frontier: Frontier, front: Sequence[Point], cost: str) -> None:
    if len(front) > 1:
        xs, ys = zip(*[(point.axis(cost), point.difference[frontier.primary].value) for point in front], strict=True)
        axes.step(xs, ys, where="post", color="#0072B2", lw=1.1, alpha=0.45, zorder=2)


def _curve_lines(axes: Any, frontier: Frontier, placed: Sequence[Point], cost: str) -> None:
    """Join the rates of each codec, in the order of their cost."""
    for points in curves(placed).values():
        places = sorted((point.axis(cost) or 0.0, point.difference[frontier.primary].value) for point in points)
        if len(places) > 1:
            xs, ys = zip(*places, strict=True)
            axes.plot(xs, ys, color=SOFT, lw=1.0, ls=(0, (4, 2)), zorder=2)


def _draw_point(axes: Any, frontier: Frontier, point: Point, cost: str, on_front: bool) -> None:
    style, change = STYLES[point.verdict], point.difference[frontier.primary]
    color = style["color"]
    x, strength = point.axis(cost), 1.0 if on_front else 0.62
    low, high = _ends(change)
    axes.plot([x, x], [low, high], color=color, lw=1.5, alpha=strength, solid_capstyle="butt", zorder=3)
    for end in {low, high} - {change.value}:
        axes.plot([x], [end], marker="_", ms=6, mew=1.5, color=color, alpha=strength, zorder=3)
    axes.plot(
        [x],
        [change.value],
        marker=style["marker"],
        ms=style["size"] + (1.0 if on_front else 0.0),
        ls="none",
        zorder=5,
        mfc=color if style["filled"] else PAPER,
        mec=PAPER if style["filled"] else color,
        mew=0.9 if style["filled"] else 1.6,
        alpha=1.0 if on_front else 0.75,
    )


def _legend(axes: Any, placed: Sequence[Point], with_front: bool) -> None:
    from matplotlib.lines import Line2D

    present = [verdict for verdict in STYLES if any(point.verdict == verdict for point in placed)]
    handles = [
        Line2D(
            [],
            [],
            ls="none",
            marker=STYLES[v]["marker"],
            ms=6.5,
            mew=1.3,
            mec=STYLES[v]["color"],
            mfc=STYLES[v]["color"] if STYLES[v]["filled"] else PAPER,
            label=LEGEND[v],
        )
        for v in present
    ]
    handles.append(Line2D([], [], ls="none", marker="s", ms=6, mfc=PAPER, mec=INK, mew=1.3, label="uncompressed"))
    if with_front:
        handles.append(Line2D([], [], color="#0072B2", lw=1.2, alpha=0.5, label="Pareto front"))
    axes.legend(
        handles=handles,
        loc="lower left",
        bbox_to_anchor=(-0.012, 1.0),
        ncols=len(handles),
        frameon=False,
        fontsize=8.4,
        handletextpad=0.35,
        columnspacing=1.7,
        borderaxespad=0.25,
        labelcolor=INK,
        handlelength=1.2,
    )


def _label_points(
    figure: Any, axes: Any, frontier: Frontier, placed: Sequence[Point], front: Sequence[Point], cost: str
) -> None:
    """Write each name beside its point, at the place of the least overlap with what is drawn already."""
    from matplotlib.patheffects import withStroke

    figure.canvas.draw()
    pixels = figure.dpi / 72.0
    taken: list[tuple[float, ...]] = []
    anchors = []
    for point in placed:
        change = point.difference[frontier.primary]
        x, y = axes.transData.transform((point.axis(cost), change.value))
        ends = [axes.transData.transform((point.axis(cost), end))[1] for end in _ends(change)]
        taken += [(x - 6 * pixels, y - 6 * pixels, x + 6 * pixels, y + 6 * pixels)]
        taken += [(x - 3 * pixels, min(ends), x + 3 * pixels, max(ends))]
        anchors.append((point, x, y, min(ends), max(ends)))
    x, y = axes.transData.transform((1.0, 0.0))
    taken.append((x - 6 * pixels, y - 6 * pixels, x + 6 * pixels, y + 6 * pixels))
    taken += _lines(axes, 1.5 * pixels)
    frame = axes.get_window_extent()
    named = anchors if len(placed) <= _MANY else [anchor for anchor in anchors if anchor[0] in front]
    for point, x, y, low, high in sorted(named, key=lambda anchor: (anchor[0] not in front, anchor[1])):
        text = axes.text(
            0,
            0,
            _clip(point.label),
            size=8.4,
            color=INK if point in front else SOFT,
            zorder=6,
            transform=None,
            weight="bold" if point in front else "normal",
        )
        text.set_path_effects([withStroke(linewidth=2.2, foreground=PAPER, alpha=0.85)])
        box = text.get_window_extent(figure.canvas.get_renderer())
        spots = _spots(x, y, low, high, box.width, box.height, pixels)
        frame_box = (frame.x0, frame.y0, frame.x1, frame.y1)
        best = min(spots, key=lambda spot: spot[2] + _crowding(spot[:2], box.width, box.height, taken, frame_box))
        # kept as a share of the axes, so that the place holds at every resolution
        text.set_transform(axes.transAxes)
        text.set_position(axes.transAxes.inverted().transform(best[:2]))
        place = (best[0], best[1], best[0] + box.width, best[1] + box.height)
        taken.append(place)
        _leader(axes, (x, y), place, 9 * pixels)


def _leader(axes: Any, mark: tuple[float, float], place: tuple[float, ...], near: float) -> None:
    """Draw a hair line from a mark to its name when the name had to move away."""
    end = [min(max(mark[axis], place[axis]), place[axis + 2]) for axis in (0, 1)]
    away = ((end[0] - mark[0]) ** 2 + (end[1] - mark[1]) ** 2) ** 0.5
    if away > near and end[0] != mark[0]:
        ends = axes.transAxes.inverted().transform([mark, end])
        axes.plot(ends[:, 0], ends[:, 1], transform=axes.transAxes, color=SOFT, lw=0.6, zorder=2.5)


def _lines(axes: Any, half: float) -> list[tuple[float, ...]]:
    """Return the boxes around every straight piece drawn: the front, zero, margin and budget, and their names."""
    boxes: list[tuple[float, ...]] = []
    for line in axes.get_lines():
        path = line.get_transform().transform_path(line.get_path()).vertices
        pairs = pairwise(path) if line.get_drawstyle() == "default" else _stairs(path)
        for (x0, y0), (x1, y1) in pairs:
            boxes.append((min(x0, x1) - half, min(y0, y1) - half, max(x0, x1) + half, max(y0, y1) + half))
    for text in axes.texts:
        box = text.get_window_extent()
        boxes.append((box.x0, box.y0, box.x1, box.y1))
    return boxes


def _stairs(path: Any) -> list[Any]:
    pieces = []
    for (x0, y0), (x1, y1) in pairwise(path):
        pieces += [((x0, y0), (x1, y0)), ((x1, y0), (x1, y1))]
    return pieces


def _spots(
    x: float, y: float, low: float, high: float, width: float, height: float, pixels: float
) -> list[tuple[float, float, float]]:
    """Return places for a label (left, bottom, dislike), the preferred first: right, left, above, below, diagonal."""
    gap = 7 * pixels
    middle = y - height / 2
    spots = [(x + gap, middle, 0.0), (x - gap - width, middle, 40.0)]
    spots += [(x - width / 2, high + 0.6 * gap, 60.0), (x - width / 2, low - 0.6 * gap - height, 60.0)]
    for step in (1.0, 2.0, 3.0):
        for up in (1, -1):
            shift = middle + up * step * 0.9 * height
            spots += [(x + gap, shift, 90.0 * step), (x - gap - width, shift, 110.0 * step)]
    return spots


def _crowding(
    corner: tuple[float, ...], width: float, height: float, taken: Sequence[tuple[float, ...]], frame: tuple[float, ...]
) -> float:
    """Return the area that a label would share with what is drawn, and ten times what lies outside the axes."""
    left, bottom = corner
    shared = 0.0
    for x0, y0, x1, y1 in taken:
        wide, tall = min(left + width, x1) - max(left, x0), min(bottom + height, y1) - max(bottom, y0)
        shared += max(0.0, wide) * max(0.0, tall)
    outside = max(0.0, frame[0] - left) + max(0.0, left + width - frame[2])
    outside += max(0.0, frame[1] - bottom) + max(0.0, bottom + height - frame[3])
    return shared + 10.0 * outside * height


def _nice(low: float, high: float) -> list[float]:
    """Return 1, 2, 5 times the powers of ten between two positive bounds."""
    found = [digit * 10.0**power for power in range(-9, 7) for digit in (1, 2, 3, 5)]
    return [value for value in found if low <= value <= high * 1.0001]


def _spaced(axes: Any, marks: list[float]) -> list[float]:
    """Keep zero and the marks that are at least a line of text apart, those nearest to zero first."""
    kept = [0.0]
    low, high = sorted(axes.get_ylim())
    spots = {0.0: axes.transData.transform((1, 0))[1]}
    for mark in sorted(marks, key=abs):
        spot = axes.transData.transform((1, mark))[1]
        if low <= mark <= high and all(abs(spot - other) > 42 for other in spots.values()):
            spots[mark] = spot
            kept.append(mark)
    return sorted(kept)


def _ends(change: Any) -> tuple[float, float]:
    return (change.value if change.low is None else change.low, change.value if change.high is None else change.high)


def _higher_is_better(frontier: Frontier) -> bool:
    known = [p.difference[frontier.primary] for p in frontier.measured if frontier.primary in p.difference]
    return known[0].higher_is_better if known else True


def _clip(label: str, most: int = 34) -> str:
    return label if len(label) <= most else label[: most - 2] + "\N{HORIZONTAL ELLIPSIS}"
