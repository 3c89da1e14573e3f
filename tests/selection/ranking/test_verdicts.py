"""Verdicts on ordinary columns, what is dropped and why, labels of every kind, and the page as a reader sees it."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from lessen import cli
from lessen.errors import DataError
from lessen.selection.ranking import RankSettings, rank, rank_frame
from lessen.selection.ranking.label import bin_names, edges_of
from lessen.selection.ranking.report import page, save
from lessen.selection.ranking.scan import ScanSettings

FAST = RankSettings(crosses=0, redundancy=0, select=0, transforms="none")


def frame(**columns: object) -> pl.DataFrame:
    return pl.DataFrame({name: pl.Series(values) for name, values in columns.items()})  # type: ignore[call-overload]


@pytest.fixture(scope="module")
def frauds() -> pl.DataFrame:
    """A device id that is missing in 90 % of the frauds and 30 % of the rest, and is near-unique otherwise."""
    rng = np.random.default_rng(0)
    label = (rng.random(8_000) < 0.1).astype(int)
    gone = rng.random(8_000) < np.where(label == 1, 0.9, 0.3)
    device = [None if g else f"d{v}" for g, v in zip(gone, rng.integers(0, 10**9, 8_000), strict=True)]
    amount = np.where(gone, 0.0, np.round(rng.exponential(100, 8_000), 4))
    unrelated = [None if rng.random() < 0.4 else f"d{v}" for v in rng.integers(0, 10**9, 8_000)]
    return frame(label=label, device=device, amount=amount, unrelated=unrelated, other=rng.integers(0, 9, 8_000))


def test_a_heavy_value_beside_near_unique_ones_is_useful(frauds: pl.DataFrame) -> None:
    ranking = rank_frame(frauds, FAST)
    assert {row.name: row.verdict for row in ranking.columns} == {
        "label": "label",
        "device": "useful",
        "amount": "useful",
        "unrelated": "noise",
        "other": "noise",
    }
    device = ranking.column("device")
    assert device.score < 0  # single values drown it; that is shown, too
    gone = frauds["device"].is_null().to_numpy().astype(int)
    table = np.histogram2d(gone, frauds["label"].to_numpy(), bins=2)[0] / len(frauds)
    told = float((table * np.log(table / (table.sum(1, keepdims=True) * table.sum(0)))).sum())
    assert device.best_score == pytest.approx(told, rel=0.05)
    assert "seen once taken as one" in device.reason
    assert ranking.dead() == ["unrelated", "other"]


@pytest.mark.parametrize("seed", range(3))
def test_heavy_values_survive_more_values_than_are_counted(seed: int) -> None:
    rng = np.random.default_rng(seed)
    label = (rng.random(60_000) < 0.2).astype(int)
    gone = rng.random(60_000) < np.where(label == 1, 0.9, 0.4)
    heavy = np.where(rng.random(60_000) < 0.6, np.where(rng.random(60_000) < 0.5, label, 2), 1_000)
    heavy = np.where(heavy == 1_000, 1_000 + rng.integers(0, 10**9, 60_000), heavy)
    table = frame(
        label=label,
        missing=pl.Series(np.where(gone, -1, rng.integers(0, 10**9, 60_000))).replace(-1, None),
        heavy=heavy * 13 + seed,
        noise=rng.integers(0, 10**9, 60_000),
    )
    exact = rank_frame(table, FAST)
    part = rank_frame(
        table,
        RankSettings(
            scan=ScanSettings(values=2_000, sample=16_384, seed=seed),
            crosses=0,
            redundancy=0,
            select=0,
            transforms="none",
        ),
    )
    for name in ("missing", "heavy"):
        assert not part.column(name).score_exact
        assert part.column(name).verdict == exact.column(name).verdict == "useful"
        assert part.column(name).score == pytest.approx(exact.column(name).score, abs=0.02)
        assert part.column(name).best_score == pytest.approx(exact.column(name).best_score, rel=0.15)
    assert part.column("noise").verdict in ("noise", "key")


def test_continuous_columns_are_not_noise() -> None:
    """Thirty measurements of 569 cells, most of them different in every row."""
    datasets = pytest.importorskip("sklearn.datasets")
    bunch = datasets.load_breast_cancer()
    table = frame(label=bunch.target, **{name: bunch.data[:, i] for i, name in enumerate(bunch.feature_names)})
    ranking = rank_frame(table, RankSettings(crosses=0, redundancy=0, select=0))
    ranks = bunch.data.argsort(0).argsort(0)
    positive = bunch.target == 1
    auc = (ranks[positive].mean(0) - (positive.sum() - 1) / 2) / (~positive).sum()
    for name, area in zip(bunch.feature_names, auc, strict=True):
        if max(area, 1 - area) > 0.6:
            assert ranking.column(name).verdict == "useful", name
    assert "quantile bins" in ranking.column("mean compactness").best_form


@pytest.mark.parametrize(("rows", "rate"), [(2_000, 0.002), (5_000, 0.3)])
def test_noise_of_every_shape_stays_noise(rows: int, rate: float) -> None:
    rng = np.random.default_rng(1)
    label = (rng.random(rows) < rate).astype(int)
    label[:2] = 1
    table: dict[str, object] = {"label": label}
    for number in range(12):
        table[f"ids{number}"] = rng.integers(0, int(10 ** rng.uniform(0.3, 4)), rows)
        table[f"zipf{number}"] = rng.zipf(1.4, rows) % 1_000_003
        table[f"floats{number}"] = np.round(rng.normal(size=rows), int(rng.integers(1, 8)))
        holes = np.where(rng.random(rows) < 0.5, -1, rng.integers(0, 10**9, rows))
        table[f"holes{number}"] = pl.Series(holes).replace(-1, None)
    verdicts = [row.verdict for row in rank_frame(frame(**table), FAST).columns]
    assert "leak" not in verdicts
    assert verdicts.count("useful") <= 2


def test_columns_that_say_something_come_first(planted: pl.DataFrame) -> None:
    verdicts = [row.verdict for row in rank_frame(planted, FAST).columns]
    order = ["label", "leak", "useful", "key", "noise", "duplicate", "constant"]
    assert verdicts == sorted(verdicts, key=order.index)


# -- labels ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("zeros", [0.97, 0.85, 0.3])
def test_a_spike_of_a_numeric_label_is_a_class_of_its_own(tmp_path: Path, zeros: float) -> None:
    rng = np.random.default_rng(0)
    none = rng.random(20_000) < zeros
    spend = np.where(none, 0.0, np.round(rng.exponential(50, 20_000) + 0.01, 2))
    frame(spend=spend, buyer=~none, noise=rng.integers(0, 4, 20_000)).write_csv(tmp_path / "a.csv")
    ranking = rank(
        [tmp_path / "a.csv"],
        RankSettings(
            scan=ScanSettings(label="spend"), label_bins=10, crosses=0, redundancy=0, select=0, transforms="none"
        ),
    )
    classes = list(ranking.classes.values())
    assert classes[0] == none.sum()
    assert 2 <= len(classes) <= 10
    assert min(classes[1:]) > 0.5 * max(classes[1:])
    buyer = ranking.column("buyer")
    assert buyer.verdict in ("useful", "leak")
    assert buyer.mutual == pytest.approx(-(zeros * np.log(zeros) + (1 - zeros) * np.log(1 - zeros)), abs=0.02)


def test_edges_without_spikes_are_quantiles() -> None:
    values = np.random.default_rng(0).normal(size=1_000)
    assert edges_of(values, 4) == pytest.approx(np.quantile(values, [0.25, 0.5, 0.75]))
    assert bin_names(np.asarray([1.5, 2.5])) == ["bin 0: below 1.5", "bin 1: from 1.5 below 2.5", "bin 2: from 2.5"]
    assert len(edges_of(np.asarray([0.0] * 9 + [1.0]), 10)) == 1


def test_words_for_nothing_are_no_classes(tmp_path: Path) -> None:
    words = ["0", "1", "NaN", "NA", "null", "", "1.0", "<NA>"]
    lines = [f"{words[n % 8]},{n % 5}" for n in range(800)]
    (tmp_path / "a.csv").write_text("label,x\n" + "\n".join(lines) + "\n")
    assert rank([tmp_path / "a.csv"], FAST).classes == {"0": 100, "1": 200}


def test_a_short_row_is_named_and_a_newline_in_the_header_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("label,x,y\n1,a,b\n0,a\n1,b,c\n")
    with pytest.raises(DataError, match="line 3: 2 cells where 3 are expected"):
        rank([tmp_path / "a.csv"], FAST)
    (tmp_path / "a.csv").write_text('label,"x\ny"\n' + "1,a\n0,b\n" * 20)
    assert {row.name for row in rank([tmp_path / "a.csv"], FAST).columns} == {"label", "x\ny"}


# -- files ----------------------------------------------------------------------------------------------------------
class Cells(HTMLParser):
    """Collects the text of every cell, row by row, as a browser closes them."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.inside = False

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        self.inside = tag in ("td", "th") or (self.inside and tag == "span")

    def handle_endtag(self, tag: str) -> None:
        self.inside = self.inside and tag == "span"

    def handle_data(self, data: str) -> None:
        if self.inside:
            self.rows[-1][-1] += data.strip()


def test_every_cell_of_the_page_is_text_for_people(planted: pl.DataFrame, tmp_path: Path) -> None:
    planted.head(4_000).with_columns(amount=pl.int_range(4_000) * 0.37 % 97).write_csv(tmp_path / "a.csv")
    ranking = rank([tmp_path / "a.csv"], RankSettings(profile=True))
    save(ranking, tmp_path / "out", [tmp_path / "a.csv"], crosses=5, to="csv")
    reader = Cells()
    reader.feed((tmp_path / "out" / "ranking.html").read_text())
    assert len(reader.rows) > 40
    for row in reader.rows:
        for cell in row:
            assert not any(sign in cell for sign in ("<", "object at", "built-in", "Undefined", "None", "{", "[")), row
    header = reader.rows[0]
    assert header == ["column", "verdict", "score", "best nats", "nats", "plain MI", "p ≤", "covered %", "values",
                      "bytes a value", "why"]  # fmt: skip
    shown = {row[0]: dict(zip(header, row, strict=True)) for row in reader.rows[1 : len(ranking.columns) + 1]}
    for column in ranking.columns:
        assert shown[column.name]["values"] == f"{column.cardinality:,.0f}"
        assert shown[column.name]["verdict"] == column.verdict
        assert shown[column.name]["nats"] == f"{column.score:.5f}"


def test_nothing_is_dropped_without_its_evidence(planted: pl.DataFrame, tmp_path: Path) -> None:
    planted.head(4_000).write_csv(tmp_path / "a.csv")
    ranking = rank([tmp_path / "a.csv"], RankSettings())
    save(ranking, tmp_path / "out", [tmp_path / "a.csv"], to="parquet")
    written = json.loads((tmp_path / "out" / "ranking.json").read_text())["written"]
    kept = pl.read_parquet(tmp_path / "out" / "data" / "*.parquet").columns
    gone = {row["name"] for row in written["dropped"]}
    assert gone == set(planted.columns) - set(kept)
    assert all(row["reason"] and "p_value" in row and "best_form" in row for row in written["dropped"])
    text = page(ranking, written)
    assert "Dropped from data/" in text
    assert text.count("noise2000") >= 2


def test_the_report_outlives_data_that_fail(planted: pl.DataFrame, tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    planted.head(2_000).write_csv(path)
    ranking = rank([path], FAST)
    path.write_text(path.read_text()[:-20] + "torn")
    with pytest.raises(DataError, match="line 2001.*the report is in"):
        save(ranking, tmp_path / "out", [path], to="csv")
    assert (tmp_path / "out" / "ranking.html").exists()
    assert not (tmp_path / "out" / "data").exists()


def test_parquet_keeps_its_types_when_it_is_written_again(tmp_path: Path) -> None:
    table = frame(label=[0, 1] * 50, x=np.arange(100) / 3, y=[[1, 2], [3]] * 50)
    table.write_parquet(tmp_path / "a.parquet")
    ranking = rank([tmp_path / "a.parquet"], FAST)
    save(ranking, tmp_path / "out", [tmp_path / "a.parquet"], drop=(), to="parquet")
    assert pl.read_parquet(tmp_path / "out" / "data" / "*.parquet").schema == table.schema


def test_the_command_says_what_it_tried_and_dropped(
    planted: pl.DataFrame, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    planted.head(3_000).write_csv(tmp_path / "a.csv")
    out = str(tmp_path / "out")
    assert cli.execute(["rank", str(tmp_path / "a.csv"), "--out", out, "--write", "csv", "--crosses", "6"]) == 0
    shown = capsys.readouterr()
    assert re.search(r"looked at all \d+ pairs of columns; the best 6 were scored", shown.out)
    assert "dropped from" in shown.out
    assert cli.execute(["rank", "nowhere.csv", "--out", out]) == 2
    assert "already exists and is not empty" in capsys.readouterr().err  # before anything is read


def test_pairs_beyond_the_budget_are_screened_or_said() -> None:
    rng = np.random.default_rng(5)
    label = rng.integers(0, 2, 12_000)
    table: dict[str, object] = {"label": label}
    table["left"] = rng.integers(0, 4, 12_000)
    truth = np.where(rng.random(12_000) < 0.62, label, 1 - label)
    table["right"] = (np.asarray(table["left"]) % 2) ^ truth
    table |= {f"noise{n}": rng.integers(0, 2 + 40 * n, 12_000) for n in range(14)}
    found = rank_frame(frame(**table), RankSettings(crosses=5, redundancy=0, select=0, transforms="none"))
    assert [{cross.first, cross.second} for cross in found.useful_crosses()] == [{"left", "right"}]
    assert (found.tried.pairs, found.tried.screened, found.tried.scored) == (120, 120, 5)
    from lessen.selection.ranking.pairs import Pairs

    pairs = Pairs(frame(**table).select(pl.all().cast(pl.String)), label.astype(np.uint8))
    _, tried = pairs.crosses(list(table), 5, 0, screened=50)
    assert "86 were not tried" in tried.statement
