"""SliME, HiRes-LLaVA and ADEM-VL in a trained model, beside their own parts left out, all trained equally and shortly.

    python -m benchmarks.tokens.adapters [--stop 600]
    python -m benchmarks.tokens.adapters --steps 600 --seeds 1 --only adem-vl "one mean token"

The model of the task vision-language-grid; its tower rests, all else learns, the same lessons in the same order for all
arms of a seed. Large pictures (`benchmarks.tokens.large`): an overview that shows colours and four tiles that show
shapes too. Stills: pictures as the task has them. What SliME's router keeps of the tiles is judged after the training,
beside as many tokens by chance, one prompt a question. Finished runs are kept: the same command goes on.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.tokens.large import SHOWN, ZOOM, answers, large_lesson, single_prompts, still_lesson
from lessen.architectures.visual_host import find_visual_host
from lessen.data.scenes import KINDS, SIDE, STILL
from lessen.environment import environment
from lessen.files import atomic_write, dump_json, parse_json, read_checked
from lessen.tasks.multimodal.grid import GridTask
from lessen.tasks.multimodal.grid_model import TOKENS, WIDTH
from lessen.tasks.multimodal.train_grid import UNTAUGHT, Lesson, fit_answers
from lessen.tokens.visual.fused import ADEMVL
from lessen.tokens.visual.hires import HiResLLaVA
from lessen.tokens.visual.macs import prefill_macs, shapes
from lessen.tokens.visual.resampler import Resampler
from lessen.tokens.visual.slime import SliME
from lessen.tokens.visual.splice import Seen, Sight

RESULTS = Path(__file__).parents[1] / "results" / "tokens_adapters.json"
TILES, HEADS = SHOWN - 1, 4
OF_TILES = TILES * (SIDE // 2) ** 2
"""Tokens of all tiles, a quarter of theirs."""
LESSONS, PROMPTS, WORDS = 16, 210, 6
"""Lessons and single prompts that judge, and words of a prompt beside its picture, for multiply-adds."""


class Own(Sight):
    """A control that no artifact stores."""

    kind, child = "control", "control"


class Alone(Own):
    """The overview without tiles."""

    def see(self, seen: Seen) -> list[Tensor]:
        return [seen.project(pictures[0]) for pictures in seen.of_prompt(seen.features)]


class Mean(Own):
    """One token, the mean of all."""

    def see(self, seen: Seen) -> list[Tensor]:
        return [seen.project(pictures.mean(1)) for pictures in seen.of_prompt(seen.features)]


class Means(nn.Module):
    """Uniform pooling in place of a sampler."""

    def forward(self, maps: Tensor, target: tuple[int, int]) -> Tensor:
        return F.adaptive_avg_pool2d(maps, target).flatten(2).transpose(1, 2)

    def macs(self, whole: int, queries: int) -> int:
        return 0


class Asked(nn.Module):
    """Learned queries in place of a sampler."""

    def __init__(self, side: int) -> None:
        super().__init__()
        self.look = Resampler(side, WIDTH, HEADS)

    def forward(self, maps: Tensor, target: tuple[int, int]) -> Tensor:
        found: Tensor = self.look(maps.flatten(2).transpose(1, 2), (maps.shape[2], maps.shape[3]))
        return found

    def macs(self, whole: int, queries: int) -> int:
        return self.look.macs(whole)


class Mixed(SliME):
    """SliME whose mixture can be left out, and whose router can be chance."""

    mixture, chance = True, False

    def overview(self, picture: Tensor, grid: tuple[int, int], seen: Seen) -> Tensor:
        return super().overview(picture, grid, seen) if self.mixture else seen.project(picture)

    def places(self, tiles: Tensor, words: Tensor) -> Tensor:
        if not self.chance:
            return super().places(tiles, words)
        return torch.randperm(len(tiles))[: self.keep].sort().values


def slime(mixture: bool) -> Sight:
    sight = Mixed(WIDTH, WIDTH, SIDE // 2, SIDE, HEADS, top_p=1.0)
    sight.mixture = mixture
    return sight


def sliced(layers: tuple[int, ...] = (), sampler: nn.Module | None = None) -> Sight:
    sight: Any = HiResLLaVA(WIDTH, WIDTH, (ZOOM, ZOOM), (SIDE, SIDE), layers, heads=HEADS)
    sight.sampler = sampler or sight.sampler
    return sight  # type: ignore[no-any-return]


def memory(alpha: float, beta: float) -> Sight:
    return ADEMVL(WIDTH, WIDTH, 2, (TOKENS, TOKENS // 4), inner=WIDTH // 2, alpha=alpha, beta=beta)


LARGE: dict[str, Callable[[], Sight] | None] = {
    "all tokens": None, "overview alone": Alone, "uniform pooling": lambda: sliced(sampler=Means()),
    "learned queries": lambda: sliced(sampler=Asked(SIDE)), "slime": lambda: slime(True),
    "slime, no mixture": lambda: slime(False), "hires-llava": lambda: sliced((0, 1)),
    "hires-llava, no adapters": lambda: sliced(),
}  # fmt: skip
STILLS: dict[str, Callable[[], Sight] | None] = {
    "whole": None, "one mean token": Mean, "adem-vl": lambda: memory(0.1, 0.01),
    "adem-vl, stronger": lambda: memory(1.0, 1.0),
}  # fmt: skip
ARMS = {"large": LARGE, "stills": STILLS}
COMMANDS = (
    "python -m benchmarks.tokens.adapters",
    "python -m benchmarks.tokens.adapters --steps 600 --seeds 1 --only adem-vl 'one mean token'",
)
BEFORE = ("all tokens", "whole")
"""Arms that are judged untrained as well."""


def tokens_of(pictures: str, arm: str) -> int:
    """Return the visual tokens of a prompt in training."""
    if pictures == "stills":
        return TOKENS if arm == "whole" else 1
    return {"all tokens": SHOWN * TOKENS, "overview alone": TOKENS}.get(arm, TOKENS + 1 + OF_TILES)


def macs_before(sight: Sight | None, tokens: int, projector: int) -> int:
    """Return multiply-adds between tower and decoder (and inside both what a sight adds) of one prompt."""
    if isinstance(sight, SliME):
        whole = sight.macs(TILES, TOKENS, WORDS, projector)
        queries = sight.wide.macs(TOKENS) + TOKENS * (projector + 2 * WIDTH)
        return whole if getattr(sight, "mixture", True) else whole - queries
    if isinstance(sight, HiResLLaVA):
        adapters = sum(one.macs(TILES * TOKENS, TOKENS) for one in sight.adapters.values())  # type: ignore[operator]
        return adapters + sight.sampler.macs(TILES * TOKENS, SIDE**2) + (tokens - 1) * projector
    if isinstance(sight, ADEMVL):
        return sight.macs(WORDS + 1, 6)
    return tokens * projector


def judged(model: nn.Module, draw: Callable[[int, int], Lesson], tokens: int) -> dict[str, list[list[int]]]:
    """Return right answers and questions of each lesson that was never taught, by kind."""
    found: dict[str, list[list[int]]] = {kind: [] for kind in STILL}
    model.eval()
    with torch.no_grad():
        for step in range(LESSONS):
            one = draw(step, UNTAUGHT)
            right = answers(model, one, tokens).argmax(-1) == one.answers
            for kind in STILL:
                own = one.kinds == KINDS.index(kind)
                found[kind].append([int((right & own).sum()), int(own.sum())])
    return found


def chosen(model: nn.Module, sight: Any, seed: int) -> dict[str, dict[str, Any]]:
    """Return right answers, and tokens of tiles, where the router keeps less of a trained SliME."""
    half = OF_TILES // 2
    ways = {"all": (1.0, None, False), "top_p 0.95": (0.95, None, False), "half by the words": (1.0, half, False),
            "half by chance": (1.0, half, True)}  # fmt: skip
    done = {}
    for name, (sight.top_p, sight.keep, sight.chance) in ways.items():
        torch.manual_seed(seed)
        right: dict[str, list[list[int]]] = {kind: [] for kind in STILL}
        kept = []
        with torch.no_grad():
            for kind, inputs, answer in single_prompts(PROMPTS, UNTAUGHT):
                said = model(**inputs).logits[0, -1].argmax()
                right[kind].append([int(said == answer), 1])
                kept.append(model.__dict__["_lessen_splice"].tokens[0] - TOKENS - 1)
        done[name] = {"right": right, "tiles": sum(kept) / len(kept)}
    return done


def run(pictures: str, arm: str, seed: int, steps: int) -> dict[str, Any]:
    """Train one arm and judge it."""
    model: Any = GridTask().reference()
    host = find_visual_host(model)
    layers, projector = shapes(host), sum(p.numel() for p in host.projector.module.parameters() if p.dim() == 2)
    torch.manual_seed(seed)
    make, draw = ARMS[pictures][arm], {"large": large_lesson, "stills": still_lesson}[pictures]
    tokens = tokens_of(pictures, arm)
    sight = None if make is None else make()
    if sight is not None:
        sight.attach(model)

    def loss(_: nn.Module, one: Lesson) -> Tensor:
        return F.cross_entropy(answers(model, one, tokens).flatten(0, 1), one.answers.flatten())

    began = time.thread_time()
    if steps:
        fit_answers(model, lambda step: draw(step, 100 + seed), loss, steps, seed, rate=1e-3)
    row = {
        "pictures": pictures, "arm": arm, "seed": seed, "steps": steps, "cpu_s": time.thread_time() - began,
        "tokens": tokens, "added_params": 0 if sight is None else sum(p.numel() for p in sight.parameters()),
        "macs_decoder": prefill_macs(layers, [tokens + WORDS + 1] * len(layers)),
        "macs_before": macs_before(sight, tokens, projector), "right": judged(model, draw, tokens),
    }  # fmt: skip
    return row | ({"chosen": chosen(model, sight, seed)} if arm == "slime" else {})


def main() -> None:
    """Run what is not in the results yet, and write them after each run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", nargs="*", default=None, help="arms; none: all")
    parser.add_argument("--stop", type=float, default=600.0, help="begin no run after so many seconds")
    given = parser.parse_args()
    torch.set_num_threads(1)
    began = time.perf_counter()
    rows: list[dict[str, Any]] = parse_json(read_checked(RESULTS), str(RESULTS))["rows"] if RESULTS.exists() else []
    planned = [(pictures, arm, 0, 0) for pictures, arms in ARMS.items() for arm in arms if arm in BEFORE]
    planned += [
        (pictures, arm, seed, given.steps)
        for seed in range(given.seeds)
        for pictures, arms in ARMS.items()
        for arm in arms
    ]
    for pictures, arm, seed, steps in planned:
        if given.only is not None and arm not in given.only:
            continue
        if any(
            (row["pictures"], row["arm"], row["seed"], row["steps"]) == (pictures, arm, seed, steps) for row in rows
        ):
            continue
        if time.perf_counter() - began > given.stop:
            print("stopped by the clock; the same command goes on", flush=True)
            return
        rows.append(run(pictures, arm, seed, steps))
        row = rows[-1]
        said = {
            kind: round(sum(r for r, _ in found) / sum(n for _, n in found), 2) for kind, found in row["right"].items()
        }
        print(pictures, arm, seed, steps, f"{row['cpu_s']:.0f} s", said, flush=True)
        done = {
            "commands": COMMANDS, "rows": rows, "load": os.getloadavg(), "threads": 1, "env": environment(),
        }  # fmt: skip
        atomic_write(RESULTS, dump_json(done))


if __name__ == "__main__":
    main()
