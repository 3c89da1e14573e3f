"""`rank` end to end: verdicts, traps of order and size, crosses, selection, files, bad input."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
from typer import Typer
from typer.testing import CliRunner

from lessen.cli import rank as command
from lessen.errors import ConfigError, DataError, OutputError
from lessen.selection.ranking import RankSettings, rank
from lessen.selection.ranking.buffered import buffered_scores
from lessen.selection.ranking.report import save
from lessen.selection.ranking.scan import ScanSettings

FAST = RankSettings(crosses=0, redundancy=0, select=0, transforms="none")


def scores(ranking):
    return {row.name: row.score for row in ranking.columns}


@pytest.fixture(scope="module")
def ranked(planted, tmp_path_factory):
    path = tmp_path_factory.mktemp("rank") / "data.csv"
    planted.write_csv(path)
    return rank([path], RankSettings(profile=True)), path


def test_verdicts_and_quality(ranked):
    verdicts = {row.name: row.verdict for row in ranked[0].columns}
    assert verdicts == {
        "label": "label", "leaking": "leak", "strong": "useful", "left": "noise", "right": "noise", "key": "key",
        "constant": "constant", "noise5": "noise", "noise2000": "noise", "noise20000": "noise", "again": "duplicate",
    }  # fmt: skip
    noise = ranked[0].column("noise20000")
    assert noise.mutual > 10 * ranked[0].column("noise5").mutual  # plain information would prefer it
    assert noise.rare_values == pytest.approx(20_000 / np.e, rel=0.05)  # Poisson(1): values seen once
    assert ranked[0].column("key").cardinality == 20_000
    assert ranked[0].floor.ceiling == pytest.approx(np.log(2), abs=1e-3)
    assert len(ranked[0].floor.scores) == 10


def test_the_cross_of_two_useless_columns_is_found(ranked):
    (cross,) = ranked[0].useful_crosses()
    assert {cross.first, cross.second} == {"left", "right"}
    assert cross.score > 0.6
    assert cross.gain > 0.5
    assert {"left", "right"}.isdisjoint(ranked[0].dead())
    assert set(ranked[0].dead()) == {"constant", "again", "noise5", "noise2000", "noise20000"}


def test_forward_selection_sees_what_a_model_has(table):
    rng = np.random.default_rng(0)
    label = rng.integers(0, 2, 6_000)
    first = np.where(rng.random(6_000) < 0.6, label, rng.integers(0, 2, 6_000))
    other = np.where(rng.random(6_000) < 0.3, label, rng.integers(0, 2, 6_000))
    path = table({"label": label, "first": first, "renamed": 5 - first, "other": other})
    plain = rank([path], RankSettings())
    assert [name for name, _ in plain.forward][:2] in (["first", "other"], ["renamed", "other"])
    assert next(name for name, _ in rank([path], RankSettings(known=("first",))).forward) == "other"
    pair = plain.redundancy[0]
    assert {pair.first, pair.second} == {"first", "renamed"}
    assert pair.share == pytest.approx(1.0, abs=1e-6)
    chosen = [name for name, _ in plain.selected]
    assert chosen.index("other") < 2  # 3MR puts the copy of what it has last
    with pytest.raises(ConfigError, match="--known names 'nothing'"):
        rank([path], RankSettings(known=("nothing",)))


def test_rows_sorted_by_label_score_the_same(planted, tmp_path):
    planted.write_csv(tmp_path / "a.csv")
    planted.sort("label").write_csv(tmp_path / "b.csv")
    first, second = (rank([tmp_path / name], FAST) for name in ("a.csv", "b.csv"))
    for name in planted.columns:
        assert second.column(name).score == pytest.approx(first.column(name).score, abs=1e-12)
    hidden = buffered_scores([tmp_path / "b.csv"], "label", buffer=4_096)
    assert hidden["strong"] < 0.1 * first.column("strong").score  # outrank's protocol loses the signal


def test_a_near_unique_id_that_generalises_is_found(tmp_path):
    rng = np.random.default_rng(3)
    user = rng.integers(0, 10_000, 60_000)
    taste = rng.integers(0, 2, 10_000)[user]
    label = np.where(rng.random(60_000) < 0.8, taste, rng.integers(0, 2, 60_000))
    pl.DataFrame({"label": label, "user": user}).write_csv(tmp_path / "a.csv")
    whole = rank([tmp_path / "a.csv"], FAST).column("user")
    assert whole.verdict == "useful"
    assert whole.score > 3 * buffered_scores([tmp_path / "a.csv"], "label", buffer=2_048)["user"]


def test_a_file_of_thirty_rows_is_ranked(table):
    label = [0, 1] * 15
    ranking = rank([table({"label": label, "x": [value * 3 for value in label], "y": [0, 0, 1] * 10})])
    assert ranking.column("x").verdict == "leak"
    assert ranking.column("y").verdict == "noise"


def test_parts_formats_and_engines_agree(planted, tmp_path):
    planted.write_csv(tmp_path / "whole.csv")
    parts = []
    for number, start in enumerate(range(0, len(planted), 6_000)):
        parts.append(tmp_path / f"part{number}.csv")
        planted.slice(start, 6_000).sort("label", descending=number % 2 == 0).write_csv(parts[-1])
    planted.write_parquet(tmp_path / "whole.parquet")
    whole = scores(rank([tmp_path / "whole.csv"], FAST))
    assert scores(rank(parts, FAST)) == pytest.approx(whole, abs=1e-12)
    assert scores(rank([tmp_path / "whole.parquet"], FAST)) == pytest.approx(whole, abs=1e-12)


@pytest.mark.slow
def test_ray_gives_identical_rankings(planted, tmp_path):
    ray = pytest.importorskip("ray")
    parts = []
    for number, start in enumerate(range(0, len(planted), 7_000)):
        parts.append(tmp_path / f"part{number}.csv")
        planted.slice(start, 7_000).write_csv(parts[-1])
    settings = RankSettings(crosses=10, select=3)
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        there = rank(parts, replace(settings, engine="ray"))
        with pytest.raises(DataError, match="no column is called"):
            rank(parts, RankSettings(scan=ScanSettings(label="lable"), engine="ray"))
    finally:
        ray.shutdown()
    here = rank(parts, settings)
    assert there.columns == here.columns
    assert there.crosses == here.crosses
    assert there.forward == here.forward
    assert there.floor == here.floor


def test_columns_that_appear_late_were_missing_before(tmp_path):
    (tmp_path / "a.svm").write_text("1 1:5\n0 1:6\n" * 50)
    (tmp_path / "b.svm").write_text("1 1:5 2:7\n0 1:6\n" * 50)
    both = rank([tmp_path / "a.svm", tmp_path / "b.svm"], FAST)
    joined = tmp_path / "c.svm"
    joined.write_text((tmp_path / "a.svm").read_text() + (tmp_path / "b.svm").read_text())
    assert scores(both) == pytest.approx(scores(rank([joined], FAST)), abs=1e-12)
    assert both.column("2").coverage == pytest.approx(25.0)
    assert both.column("1").verdict == "leak"


def test_a_value_is_one_value_whatever_type_or_spelling_its_file_has(planted, tmp_path):
    """3, 3.0, 03 and text: one id; True and 1 one label; a third class or value would change every score."""
    head = planted.head(3_000)
    head.write_csv(tmp_path / "whole.csv")
    numbers = head.with_columns(pl.all().cast(pl.Int64))
    parts = [tmp_path / name for name in ("a.csv", "b.parquet", "c.csv", "d.jsonl", "e.csv")]
    numbers[:600].write_csv(parts[0])
    numbers[600:1200].with_columns(
        pl.all().exclude("label").cast(pl.Float64), label=pl.col("label") == 1
    ).write_parquet(parts[1])
    numbers[1200:1800].with_columns(pl.all().exclude("label").cast(pl.Float64)).write_csv(parts[2])
    numbers[1800:2400].write_ndjson(parts[3])
    numbers[2400:].with_columns(
        ("0" + pl.all().exclude("label").cast(pl.String)).name.keep(), label=pl.col("label") == 1
    ).write_csv(parts[4])
    whole, mixed = rank([tmp_path / "whole.csv"], FAST), rank(parts, FAST)
    assert mixed.classes == whole.classes
    assert scores(mixed) == pytest.approx(scores(whole), abs=1e-12)


def test_coverage_and_missing_symbols(table):
    label = [0, 1] * 20
    ranking = rank([table({"label": label, "x": ["", "{}", "a", "b"] * 10, "none": [""] * 40})], FAST)
    assert ranking.column("x").coverage == 50.0
    assert ranking.column("none").verdict == "missing"


def test_numeric_labels_are_cut_and_numbers_transformed(tmp_path):
    rng = np.random.default_rng(0)
    x = rng.lognormal(size=5_000)
    pl.DataFrame({"label": np.log(x) + 0.2 * rng.normal(size=5_000), "x": x}).write_csv(tmp_path / "a.csv")
    with pytest.raises(DataError, match="--label-bins"):
        rank([tmp_path / "a.csv"])
    ranking = rank([tmp_path / "a.csv"], RankSettings(label_bins=4))
    assert list(ranking.classes.values()) == [1_250] * 4
    assert ranking.column("x").score == pytest.approx(0.0, abs=1e-9)  # every value is seen once
    best = ranking.transforms[0]
    assert best.column == "x"
    assert best.gain > 0.5
    pl.DataFrame({"label": ["a", "b"], "x": [1, 2]}).write_csv(tmp_path / "b.csv")
    with pytest.raises(DataError, match="not numeric"):
        rank([tmp_path / "b.csv"], RankSettings(label_bins=4))


@pytest.mark.parametrize(
    ("data", "label", "says"),
    [
        ({"label": [0, 0], "x": [1, 2]}, "label", "always '0'"),
        ({"lable": [0, 1], "x": [1, 2]}, "label", "did you mean 'lable'"),
        ({"label": [0, 1]}, "label", "only the label"),
        ({"label": ["", ""], "x": [1, 2]}, "label", "missing in all 2 rows"),
    ],
)
def test_bad_labels(table, data, label, says):
    with pytest.raises(DataError, match=says):
        rank([table(data)], RankSettings(scan=ScanSettings(label=label)))


def test_without_a_label_quality_and_redundancy_remain(table):
    ranking = rank(
        [table({"x": [1, 2, 3, 1] * 25, "y": [5, 6, 7, 5] * 25})], RankSettings(scan=ScanSettings(label=None))
    )
    assert {row.verdict for row in ranking.columns} == {"unscored"}
    assert ranking.redundancy[0].share == pytest.approx(1.0, abs=1e-6)


def test_profile_describes_each_class(ranked):
    groups = ranked[0].profile["missing"]["groups"]
    assert set(groups) == {"all", "0", "1"}
    assert sum(groups["all"]["rows"]) == 10_000
    assert 0 < ranked[0].profile["bits per byte"]["groups"]["all"]["mean"] < 8


def test_the_report_and_the_rewritten_data(ranked, planted, tmp_path):
    ranking, path = ranked
    save(ranking, tmp_path / "out", [path], crosses=3, to="parquet")
    data = pl.read_parquet(tmp_path / "out" / "data" / "*.parquet")
    assert len(data) == len(planted)
    assert "left*right" in data.columns
    assert {"constant", "again", "noise5"}.isdisjoint(data.columns)
    assert data["label"].equals(planted["label"])
    assert json.loads((tmp_path / "out" / "ranking.json").read_text())["rows"] == len(planted)
    page = (tmp_path / "out" / "ranking.html").read_text()
    assert "left * right" in page
    assert "http" not in page
    assert pl.read_parquet(tmp_path / "out" / "columns.parquet").height == len(planted.columns)
    with pytest.raises(OutputError, match="not empty"):
        save(ranking, tmp_path / "out")


def test_names_are_escaped_in_the_page(table):
    ranking = rank([table({"label": [0, 1] * 9, "<script>alert(1)</script>": [1, 2, 3] * 6})])
    from lessen.selection.ranking.report import page

    assert "<script>" not in page(ranking)


def test_crosses_keep_values_apart():
    from lessen.selection.ranking.pairs import cross_hashes
    from lessen.selection.ranking.rewrite import cross_column

    frame = pl.DataFrame({"x": ["a", "ab", "a", None, ""], "y": ["bc", "c", "b\x1fc", "c", "c"]})
    assert frame.select(cross_column("x", "y")).to_series().n_unique() == 5
    hashes = cross_hashes(frame["x"].hash(seed=0).to_numpy(), frame["y"].hash(seed=0).to_numpy())
    swapped = cross_hashes(frame["y"].hash(seed=0).to_numpy(), frame["x"].hash(seed=0).to_numpy())
    assert len(set(hashes.tolist())) == 5
    assert set(hashes.tolist()).isdisjoint(swapped.tolist())


def test_command(planted, tmp_path):
    app = Typer()
    command.register(app)
    planted.head(3_000).write_csv(tmp_path / "a.csv")
    run = CliRunner().invoke(app, [str(tmp_path / "a.csv"), "--json", "--crosses", "5"])
    assert run.exit_code == 0
    assert json.loads(run.stdout)["columns"][0]["name"] == "label"
    run = CliRunner().invoke(app, [str(tmp_path / "a.csv"), "--out", str(tmp_path / "r"), "--write", "csv"])
    assert "leaking" in run.stdout
    assert (tmp_path / "r" / "data" / "part-00000.csv").exists()
    bad = CliRunner().invoke(app, [str(tmp_path / "a.csv"), "--engine", "spark"])
    assert isinstance(bad.exception, ConfigError)


def test_it_ranks_signals_as_outrank_does(tmp_path):
    """`buffered_scores` equals outrank 0.97.5 (benchmarks/ranking/outrank.py: differences of 2e-7)."""
    rng = np.random.default_rng(11)
    rows = 40_000
    label = rng.integers(0, 2, rows)
    data = {"label": label}
    for number in range(20):
        noise = rng.integers(0, 2 + 3 * number, rows)
        data[f"c{number}"] = np.where(rng.random(rows) < 0.1 + 0.03 * number, label, noise)
    pl.DataFrame(data).write_csv(tmp_path / "a.csv")
    ours, theirs = scores(rank([tmp_path / "a.csv"], FAST)), buffered_scores([tmp_path / "a.csv"], "label")
    names = [name for name in data if name != "label"]
    ranks = [np.argsort(np.argsort([found[name] for name in names])) for found in (ours, theirs)]
    assert np.corrcoef(ranks)[0, 1] >= 0.99
    for name in names:
        assert ours[name] == pytest.approx(theirs[name], abs=0.01)


def test_every_stage_tells_how_far_it_is(planted, tmp_path):
    from lessen.log import Log

    class Kept(Log):
        def __init__(self) -> None:
            self.seen: dict[str, list[tuple[int, int]]] = {}

        def progress(self, what: str, done: int, total: int) -> None:
            self.seen.setdefault(what, []).append((done, total))

    planted.head(3_000).write_csv(tmp_path / "a.csv")
    log = Kept()
    rank([tmp_path / "a.csv"], RankSettings(), log)
    assert all(log.seen[stage][-1][0] == log.seen[stage][-1][1] for stage in ("files", "columns", "crosses"))
    assert all(told == sorted(told) for told in log.seen.values())  # the selection may end before its last field
