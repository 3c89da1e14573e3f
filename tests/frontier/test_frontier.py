from __future__ import annotations

import json
from pathlib import Path

import pytest

from lessen.errors import ConfigError, DataError
from lessen.frontier import Frontier
from lessen.frontier.verdict import BETTER, KEPT, UNKNOWN, WITHIN, WORSE
from study_folder import FINGERPRINT, RECIPES, write_study


def record(recipe, seed=0, *, loss=0.0, share=0.5, status="ok", **more):
    return {
        "study": "s",
        "task": "t",
        "recipe": recipe,
        "recipe_hash": recipe,
        "seed": seed,
        "status": status,
        "error": None if status == "ok" else "boom",
        "data_fingerprint": FINGERPRINT,
        "steps": [{"method": "m", "family": "weights", "frees": ["bytes"], "bytes_before": 100, "bytes_after": 50}],
        "quality": {"auc": 0.8 - loss} if status == "ok" else {},
        "cost": {"stored_bytes": 100 * share} if status == "ok" else {},
        "reference": {"quality": {"auc": 0.8}, "cost": {"stored_bytes": 100}},
        **more,
    }


@pytest.fixture(scope="module")
def demo(tmp_path_factory) -> Path:
    return write_study(tmp_path_factory.mktemp("study") / "demo")


@pytest.fixture(scope="module")
def frontier(demo) -> Frontier:
    return Frontier.load(demo)


def test_every_recipe_is_one_point_over_its_seeds(frontier):
    assert len(frontier) == 10
    assert all(point.seeds == (0, 1, 2) for point in frontier)
    assert frontier["int8 rows"].share["stored_bytes"].mean == pytest.approx(0.331, rel=1e-3)
    assert frontier["int8 rows"].cost["latency_ratio"].spread == pytest.approx(0.004)


def test_verdicts_span_the_three_words(frontier):
    assert frontier["fp16 tables"].verdict in KEPT
    assert frontier["int8 rows"].verdict == WITHIN
    assert frontier["hash 16x"].verdict == frontier["hash 4x"].verdict == WORSE
    assert frontier["prune rows + int8"].verdict == UNKNOWN


def test_difference_equals_the_mean_of_the_recorded_ones(frontier, demo):
    lines = [json.loads(line) for line in (demo / "measurements.jsonl").read_text().splitlines()]
    mine = [
        line["quality"]["auc"] - line["reference"]["quality"]["auc"] for line in lines if line["recipe"] == "hash 4x"
    ]
    assert frontier["hash 4x"].difference["auc"].value == pytest.approx(sum(mine) / 3, abs=1e-12)
    assert frontier["hash 4x"].difference["auc"].source == "examples and seeds"


def test_logloss_is_lower_is_better(frontier):
    difference = frontier["hash 16x"].difference["logloss"]
    assert not difference.higher_is_better
    assert difference.loss[0] == difference.value > 0


def test_front_keeps_what_nothing_beats():
    rows = [record("a", loss=0.01, share=0.2), record("b", loss=0.0, share=0.5), record("c", loss=0.02, share=0.5)]
    assert [point.label for point in Frontier.from_records(rows).front()] == ["a", "b"]


def test_front_is_the_same_whatever_the_order_and_keeps_ties():
    rows = [record("a", loss=0.01, share=0.2), record("b", loss=0.01, share=0.2), record("c", loss=0.005, share=0.4)]
    forward, back = Frontier.from_records(rows), Frontier.from_records(rows[::-1])
    assert [p.label for p in forward.front()] == [p.label for p in back.front()] == ["a", "b", "c"]


def test_reference_beats_a_recipe_that_is_dearer_and_worse():
    assert Frontier.from_records([record("fat", loss=0.01, share=1.2)]).front() == ()


def test_more_throughput_is_better_on_the_front():
    def rated(name, loss, rate):
        row = record(name, loss=loss)
        row["cost"]["throughput_per_s"], row["reference"]["cost"] = rate, {"throughput_per_s": 100.0}
        return row

    frontier = Frontier.from_records([rated("fast", 0.01, 200), rated("slow", 0.01, 90), rated("same", 0.0, 100)])
    assert [point.label for point in frontier.front("throughput_per_s")] == ["fast", "same"]


def test_front_is_brute_force_on_random_points():
    import random

    draw = random.Random(3)
    rows = [
        record(f"r{i}", loss=draw.choice([0, 1, 2, 3]) / 100, share=draw.choice([1, 2, 3, 4]) / 8) for i in range(40)
    ]
    frontier = Frontier.from_records(rows)
    places = {p.label: (p.axis("stored_bytes"), round(p.difference["auc"].loss[0], 9)) for p in frontier}
    expected = {
        name
        for name, (x, y) in places.items()
        if not any((a <= x and b <= y and (a < x or b < y)) for a, b in [*places.values(), (1.0, 0.0)])
    }
    assert {p.label for p in frontier.front()} == expected


def test_failed_recipes_are_kept_apart(tmp_path):
    frontier = Frontier.load(write_study(tmp_path / "s", examples=400, fail="int8 linear"))
    assert frontier["int8 linear"].failed
    assert frontier.points[-1].label == "int8 linear"
    assert "out of memory" in frontier["int8 linear"].errors[0]
    assert frontier["int8 linear"] not in frontier.front()


def test_a_recipe_that_failed_on_one_seed_counts_on_the_others():
    frontier = Frontier.from_records([record("a", 0), record("a", 1, status="failed")])
    assert frontier["a"].seeds == (0,)
    assert frontier["a"].errors == {1: "boom"}


def test_seeds_without_outcomes_share_an_unknown_error_and_give_no_interval():
    rows = [record("a", seed, loss=loss) for seed, loss in enumerate((0.001, 0.002, 0.003))]
    point = Frontier.from_records(rows)["a"]
    assert (point.difference["auc"].source, point.verdict) == ("nothing", UNKNOWN)


def test_the_records_own_intervals_bound_what_their_examples_do():
    rows = [
        record("a", seed, loss=loss, quality_ci={"auc": [0.6, 0.62]}) for seed, loss in enumerate((0.2, 0.21, 0.19))
    ]
    for row in rows:
        row["reference"]["quality_ci"] = {"auc": [0.79, 0.81]}
    point = Frontier.from_records(rows)["a"]
    assert (point.difference["auc"].source, point.verdict) == ("bounds of examples and seeds", WORSE)


def test_one_seed_without_outcomes_is_not_enough():
    assert Frontier.from_records([record("a")])["a"].verdict == UNKNOWN


def test_broken_baseline_gives_no_verdict(tmp_path):
    frontier = Frontier.load(write_study(tmp_path / "s", examples=600, signal=0.0))
    assert {point.verdict for point in frontier} == {UNKNOWN}
    assert "baseline is broken" in frontier.doubts[0]


def test_one_class_gives_no_verdict(tmp_path):
    import numpy as np
    from safetensors.numpy import save_file

    folder = write_study(tmp_path / "s", examples=400)
    save_file({"targets": np.ones(400, dtype=np.float32)}, folder / "predictions" / "targets.safetensors")
    frontier = Frontier.load(folder)
    assert {point.verdict for point in frontier} == {UNKNOWN}
    assert "both classes" in frontier.doubts[0]


def test_noise_wider_than_the_margin_gives_no_verdict(tmp_path):
    frontier = Frontier.load(write_study(tmp_path / "s", examples=400), margin=0.001)
    assert {point.verdict for point in frontier} == {UNKNOWN}
    assert "A/A run" in frontier.doubts[0]


@pytest.mark.parametrize(("margin", "expected"), [({"auc": 0.03}, 0.03), ({"logloss": 0.1}, 0.002), (0.5, 0.5)])
def test_margin_of_the_study_may_be_given_by_metric(margin, expected):
    from lessen.frontier.records import StudyRecords

    assert Frontier([StudyRecords([record("a")], study={"margin": margin})]).margin == expected


@pytest.mark.parametrize("share", [1.0, 1.3])
def test_bytes_that_did_not_shrink_are_flagged(share):
    flags = Frontier.from_records([record("a", share=share)])["a"].flags
    assert any("stored_bytes did not shrink" in flag for flag in flags)


def test_a_step_that_freed_nothing_is_named(frontier):
    step = {"method": "wide", "frees": ["bytes"], "bytes_before": 100, "bytes_after": 140}
    flags = Frontier.from_records([record("a", steps=[step])])["a"].flags
    assert flags == ("the step wide claims bytes, but took 100 bytes to 140",)


def test_claim_of_speed_is_judged_by_the_interval(frontier):
    assert any("includes 1" in flag for flag in frontier["int8 linear"].flags)
    assert frontier["low-rank MLP"].flags == ()


def test_gates_hold_by_interval_and_by_share(frontier):
    assert frontier["int4 rows"].gates["stored_bytes<=0.25x"]
    assert not frontier["int8 rows"].gates["stored_bytes<=0.25x"]
    assert frontier["fp16 tables"].gates["auc>=-0.004"]
    assert not frontier["hash 16x"].gates["auc>=-0.004"]
    assert frontier.best().verdict in KEPT
    assert frontier.gates_hold


@pytest.mark.parametrize("gate", ["stored_bytes<0.1x", "stored_bytes<=", "stored_bytes<=3 parsecs", "bytes<=1"])
def test_bad_gates_are_refused(gate):
    with pytest.raises(ConfigError):
        Frontier.from_records([record("a")], gates=gate)


@pytest.mark.parametrize("margin", [0, -1, float("nan")])
def test_bad_margins_are_refused(margin):
    with pytest.raises(ConfigError, match="above zero"):
        Frontier.from_records([record("a")], margin=margin)


def test_other_data_are_refused_in_one_line(demo, tmp_path):
    other = write_study(tmp_path / "other", examples=400)
    text = (other / "measurements.jsonl").read_text().replace(FINGERPRINT, "0" * 64)
    (other / "measurements.jsonl").write_text(text)
    with pytest.raises(DataError, match="different test data") as caught:
        Frontier.load(demo, other)
    assert "\n" not in str(caught.value)


def test_other_tasks_are_refused(demo, tmp_path):
    other = write_study(tmp_path / "other", examples=400)
    text = (other / "measurements.jsonl").read_text().replace('"warm"', '"cold"')
    (other / "measurements.jsonl").write_text(text)
    with pytest.raises(DataError, match="different task"):
        Frontier.load(demo, other)


def test_mixed_records_in_one_folder_are_refused():
    with pytest.raises(DataError, match="mixes"):
        Frontier.from_records([record("a"), record("b", data_fingerprint="other")])


def test_two_studies_join_and_equal_names_are_told_apart(tmp_path):
    demo = write_study(tmp_path / "demo", examples=300)
    other = write_study(tmp_path / "other", study="second", examples=300)
    labels = [point.label for point in Frontier.load(demo, other)]
    assert len(labels) == len(set(labels)) == 20
    assert "int8 rows (second)" in labels


def test_a_cut_file_and_a_damaged_line_are_named(demo, tmp_path):
    """A study writes the file whole: a cut one has lost runs, and a report without them would not say so."""
    folder = write_study(tmp_path / "s", examples=400)
    path = folder / "measurements.jsonl"
    whole = path.read_text()
    path.write_text(whole[:-100])
    with pytest.raises(DataError, match=r"is cut inside line \d+; copy it again, or resume the study"):
        Frontier.load(folder)
    path.write_text(whole[:100] + "\n" + whole)
    with pytest.raises(DataError, match="line 1"):
        Frontier.load(folder)


@pytest.mark.parametrize("value", [[], {}, "x", 3])
def test_a_line_that_is_no_measurement_is_refused(value):
    from lessen.frontier.records import check_records

    with pytest.raises(DataError):
        check_records([value], "here")


def test_empty_folder_says_what_to_run(tmp_path):
    with pytest.raises(DataError, match="lessen run"):
        Frontier.load(tmp_path)


def test_damaged_predictions_are_named(tmp_path):
    folder = write_study(tmp_path / "s", examples=400)
    (folder / "predictions" / "reference-0.safetensors").write_bytes(b"not a tensor")
    with pytest.raises(DataError, match="reference-0"):
        Frontier.load(folder)


def test_unknown_label_offers_the_nearest(frontier):
    with pytest.raises(ConfigError, match="int8 rows"):
        frontier["int8 row"]


def bounded(recipe, gain, *, share=1.0, **more):
    """Return three records of a recipe whose quality rises by `gain`, with intervals that prove it."""
    rows = [
        record(recipe, seed, loss=-gain - 0.001 * seed, share=share, quality_ci={"auc": [0.9, 0.91]}, **more)
        for seed in range(3)
    ]
    for row in rows:
        row["reference"]["quality_ci"] = {"auc": [0.795, 0.805]}
    return rows


def test_a_gain_over_the_whole_interval_is_better_and_counts_as_kept():
    from lessen.report import wording

    frontier = Frontier.from_records([*bounded("tuned", 0.1), *bounded("small", 0.1, share=0.5)])
    assert {point.verdict for point in frontier} == {BETTER}
    assert frontier.best().label == "small"
    assert "2 better" in ", ".join(f"{count} {verdict}" for verdict, count in wording.tally(frontier))
    alone = Frontier.from_records(bounded("tuned", 0.1))
    assert wording.headline(alone).startswith("tuned gains quality, AUC +0.1")


def test_a_new_kind_of_cost_is_shown_gated_and_claimed_like_any_other():
    from lessen.report.content import trade_rows
    from lessen.report.page import plot_data
    from lessen.report.table import rows

    row = record("a", steps=[{"method": "m", "claims": ["index_bytes"]}])
    row["cost"] |= {"index_bytes": 120.0, "wishes_per_s": 3.0}
    row["reference"]["cost"] |= {"index_bytes": 100.0, "wishes_per_s": 1.0}
    frontier = Frontier.from_records([row], gates="index_bytes<=0.5x")
    assert frontier["a"].flags == ("claims index_bytes, but index_bytes did not shrink (1.2 of the reference)",)
    assert not frontier.gates_hold
    assert [kind.title for kind in frontier.costs] == ["stored bytes", "index", "wishes per s"]
    assert rows(frontier)[0]["index_bytes_share"] == 1.2
    assert trade_rows(frontier)[0]["costs"]["index_bytes"]["after"] == "120 B"
    assert plot_data(frontier)["costs"]["index_bytes"] == "index"


def test_a_share_of_time_is_the_ratio_that_was_measured_in_turns():
    row = record("a")
    row["cost"] |= {"latency_ms_p50": 8.0, "latency_ratio": 1.01, "decode_ms": 5.0, "decode_ratio": 0.9}
    row["reference"]["cost"] |= {"latency_ms_p50": 10.0, "decode_ms": 5.0}
    point = Frontier.from_records([row])["a"]
    assert (point.share["latency_ms_p50"].mean, point.share["decode_ms"].mean) == (1.01, 0.9)
    assert "latency_ratio" not in point.share


def test_a_wide_noise_floor_is_told():
    from lessen.frontier.records import StudyRecords
    from lessen.report.content import gaps

    noise = {"latency_ratio_ci": [0.7, 1.3], "quality": {"auc": [-0.001, 0.001]}}
    told = [
        line for line in gaps(Frontier([StudyRecords([record("a")], noise=noise)])) if "noise floor is wide" in line
    ]
    assert len(told) == 2
    quiet = {"latency_ratio_ci": [0.97, 1.03], "quality": {"auc": [0.0, 0.0]}}
    assert not any("wide" in line for line in gaps(Frontier([StudyRecords([record("a")], noise=quiet)])))


def test_a_notebook_shows_a_row_a_recipe_and_no_markup_of_names(tmp_path):
    frontier = Frontier.load(write_study(tmp_path / "s", examples=300, recipes={"<b>x</b>": RECIPES["int8 rows"]}))
    shown = frontier._repr_html_()
    assert shown.count("<tr>") == 1 + len(frontier)
    assert "&lt;b&gt;x" in shown
    assert "<b>" not in shown


def test_a_record_that_tells_its_own_deviation_is_judged_without_outcomes():
    rows = [record("a", seed, loss=0.001 * seed, difference_sd={"auc": 0.0004}) for seed in range(3)]
    point = Frontier.from_records(rows, margin=0.005)["a"]
    assert (point.difference["auc"].source, point.verdict) == ("bounds of examples and seeds", WITHIN)
    one = Frontier.from_records([record("a", loss=0.001, difference_sd={"auc": 0.0004})], margin=0.005)["a"]
    assert one.difference["auc"].high == pytest.approx(-0.001 + 1.96 * 0.0004, abs=1e-6)
    assert one.verdict == WITHIN


def test_intervals_without_any_width_bound_nothing():
    row = record("a", quality={"accuracy": 1.0}, quality_ci={"accuracy": [1.0, 1.0]})
    row["reference"] |= {"quality": {"accuracy": 1.0}, "quality_ci": {"accuracy": [1.0, 1.0]}}
    assert Frontier.from_records([row], margin=0.01)["a"].verdict == UNKNOWN


def test_what_a_folder_lacks_is_told(demo, tmp_path):
    import shutil

    from lessen.report.content import gaps

    folder = tmp_path / "s"
    shutil.copytree(demo, folder)
    assert not [line for line in gaps(Frontier.load(folder)) if "study.yaml" in line or "no cost" in line]
    lines = [json.loads(line) for line in (folder / "measurements.jsonl").read_text().splitlines()]
    lines[0]["cost"] = None
    (folder / "measurements.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "study.yaml").unlink()
    told = gaps(Frontier.load(folder))
    assert f"{lines[0]['recipe']}, seed 0: the record holds no cost, what was saved is unknown" in told
    assert any(line.startswith("study.yaml does not stand beside the measurements") for line in told)


@pytest.mark.parametrize(("name", "text"), [("study.yaml", "[1, 2]"), ("noise.json", '{"quality": 3}')])
def test_a_file_of_another_shape_is_named(tmp_path, name, text):
    folder = write_study(tmp_path / "s", examples=200, recipes={"a": RECIPES["int8 rows"]})
    (folder / name).write_text(text)
    with pytest.raises(DataError, match=name):
        Frontier.load(folder)
