"""Suites of every card: each catches its planted fault, stays silent at its null, and says in one line what it lacks."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.judges.pairs import AUC_ONLY, Given, classes, clicks
from lessen.errors import ConfigError
from lessen.judges import get_judge, suites
from lessen.judges.calibration import gaps
from lessen.judges.suite import CannotAnswer
from lessen.metrics import Outcomes
from lessen.metrics.base import bootstrap_weights


def asked(name: str, pair, task=None, **options):
    judge = get_judge({"name": name, **options}, task=task or Given())
    return judge.compare(*pair)


def test_flips_catch_a_small_net_loss_and_stay_silent_at_even_flips():
    # one point of accuracy, 5 % of the answers flipped
    section = asked("flips", classes(0, 8000, lost=0.045, gained=0.12))
    assert section.figures["flips"] > 300
    assert section.caught
    silent = [asked("flips", classes(seed, 2000, lost=0.02, gained=0.08)).caught for seed in range(20)]
    assert sum(map(bool, silent)) <= 2
    same = classes(1, 300, 0.0, 0.0)
    section = asked("flips", same)
    assert section.figures["high"] <= 3 / 300
    assert "at most 1.00 %" in section.lines[-1]


def test_flips_of_clicks_use_the_cut_of_the_uncompressed_model():
    before, after = clicks(0, 4000, 1.5)
    section = asked("flips", (before, after), Given(metrics=AUC_ONLY))
    labels, cut = before["target"], np.sort(before["score"])[::-1]
    yes = int(labels.sum())
    expected = int(((before["score"] >= cut[yes - 1]) != (after["score"] >= cut[yes - 1])).sum())
    assert abs(section.figures["flips"] - expected) <= 2
    assert section.caught
    assert (
        asked("flips", (before, after), Given(metrics=AUC_ONLY), most=0.01).caught[0].startswith("more answers changed")
    )


def test_flips_of_texts_have_windows_for_units():
    g = np.random.default_rng(0)
    wanted = g.integers(0, 9, (60, 40))
    wanted[:, 30:] = np.where(g.random((60, 10)) < 0.5, -1, wanted[:, 30:])
    first = np.where(g.random(wanted.shape) < 0.7, wanted, 9)
    second = np.where(g.random(wanted.shape) < 0.05, 8, first)
    pair = [Outcomes({"answer": np.where(wanted < 0, -1, each), "wanted": wanted}) for each in (first, second)]
    section = asked("flips", pair)
    judged = wanted >= 0
    assert section.figures["places"] == judged.sum()
    assert section.figures["flips"] == ((first != second) & judged).sum()
    assert section.figures["low"] < section.figures["share"] < section.figures["high"]
    assert section.caught


def test_slices_catch_the_one_that_fails_and_nothing_else():
    n, g = 2000, np.random.default_rng(3)
    field = g.integers(0, 40, n)
    task = Given({"test": {"city": field, "hour": g.integers(0, 24, n)}})
    section = asked("slices", classes(5, n, lost=0.5, gained=0.0, where=field == 7), task)
    assert [each.split(" ")[0] for each in section.caught] == ["city=7"]
    quiet = [asked("slices", classes(seed, n, lost=0.05, gained=0.1), task).caught for seed in range(6)]
    assert sum(map(bool, quiet)) <= 1
    assert section.figures["critical"] > 3.0


def test_slices_of_real_losses():
    n, g = 3000, np.random.default_rng(4)
    field = g.integers(0, 20, n)
    task = Given({"test": {"city": field}}, AUC_ONLY)
    section = asked("slices", clicks(1, n, np.where(field == 3, 4.0, 0.1)), task)
    assert [each.split(" ")[0] for each in section.caught] == ["city=3"]
    assert not asked("slices", clicks(1, n, 0.5), task).caught


def test_rare_ids_that_pay_are_caught():
    n, g = 6000, np.random.default_rng(5)
    test = np.minimum(g.zipf(1.3, n), 3000)
    train = np.minimum(g.zipf(1.3, 4 * n), 3000)
    task = Given({"test": {"item": test}, "train": {"item": train}}, AUC_ONLY)
    counts = np.bincount(train, minlength=3001)[test]
    section = asked("rare", clicks(2, n, np.where(counts < 5, 3.0, 0.1)), task)
    assert section.caught
    assert all("item never seen" in each or "item seen 1 to 4" in each for each in section.caught)
    assert not asked("rare", clicks(2, n, 0.5), task).caught
    assert [row[1] for row in section.tables[0].rows][-1] == "seen 100 times and more"


def test_rare_classes_are_those_of_uneven_targets():
    pair = classes(6, 3000, 0.05, 0.05)
    with pytest.raises(CannotAnswer, match="no classes whose frequency"):
        asked("rare", pair)
    target = np.random.default_rng(0).choice(6, 3000, p=[0.4, 0.3, 0.2, 0.05, 0.03, 0.02])
    scores = np.eye(6)[target]
    lost = scores.copy()
    lost[(target >= 4) & (np.arange(3000) % 2 == 0), 0] = 3.0
    section = asked("rare", [Outcomes({"score": each, "target": target}) for each in (scores, lost)])
    assert any("rarest third" in each for each in section.caught)


def test_calibration_catches_overconfidence_and_not_noise():
    task = Given(metrics=AUC_ONLY)
    assert asked("calibration", clicks(0, 4000, 0.0, scale=2.0), task).caught
    assert not any(asked("calibration", clicks(seed, 2000, 0.2), task).caught for seed in range(4))
    section = asked("calibration", clicks(0, 4000, 0.0), task)
    assert section.figures["uncompressed"]["low"] == 0.0
    assert section.figures["difference"]["square"] == 0.0
    assert asked("calibration", classes(0, 3000, 0.0, 0.0, sure=12.0)).caught


def test_metrics_show_the_tasks_own_and_refuse_others():
    pair = classes(0, 3000, lost=0.1, gained=0.0)
    assert asked("metrics", pair).caught[0].startswith("accuracy is worse")
    assert not asked("metrics", classes(0, 3000, 0.0, 0.0)).caught
    with pytest.raises(ConfigError, match="'auc' is no metric of task 'given'"):
        asked("metrics", pair, only=["auc"])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"only": "city=99"}, "slice 'city=99' has no example in the test split"),
        ({"only": "town=1"}, "nothing can be cut by 'town'"),
        ({"by": ["citty"]}, "did you mean 'city'"),
        ({"only": "city=1"}, None),
    ],
)
def test_slices_that_are_not_there(options, words):
    task = Given({"test": {"city": np.arange(400) % 10}})
    pair = classes(0, 400, 0.1, 0.1)
    if words is None:
        assert asked("slices", pair, task, **options).figures["slices"] == 1
        return
    with pytest.raises(ConfigError, match=words) as caught:
        asked("slices", pair, task, **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("suite", "columns", "words"),
    [
        ("flips", {"nll": [1.0, 2.0], "tokens": [3, 4]}, "losses and no answers"),
        ("slices", {"cosine": [1.0, 1.0]}, "no answers that are right or wrong"),
        ("slices", {"nll": [1.0, 2.0], "tokens": [3, 4]}, "nothing to cut by"),
        ("calibration", {"right": [True, False]}, "no chance of an answer"),
        ("rare", {"right": [True, False]}, "frequency could be counted"),
    ],
)
def test_suites_without_an_answer_say_why_in_one_line(suite, columns, words):
    outcomes = Outcomes({name: np.asarray(values) for name, values in columns.items()})
    with pytest.raises(CannotAnswer, match=words) as caught:
        asked(suite, (outcomes, outcomes))
    assert str(caught.value).startswith(f"suite '{suite}'")


def test_suites_of_every_card_come_in_their_order():
    assert list(suites())[:5] == ["metrics", "flips", "slices", "rare", "calibration"]
    assert all(cls.question.endswith("?") for cls in suites().values())


def test_many_units_are_resampled_in_groups_and_give_the_same_point():
    g = np.random.default_rng(0)
    expected = g.random(12_000)
    seen = (g.random(12_000) < expected**1.3).astype(float)
    whole, grouped = (gaps(expected, seen, np.ones((1, groups))) for groups in (12_000, 500))
    assert whole.plain == pytest.approx(grouped.plain)
    assert whole.square == pytest.approx(grouped.square)
    spread = [gaps(expected, seen, bootstrap_weights(groups, 200)).plain.std() for groups in (500, 6000)]
    assert spread[0] == pytest.approx(spread[1], rel=0.4)
