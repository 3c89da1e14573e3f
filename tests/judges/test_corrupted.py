"""The noisy judge and its control: noise costs accuracy, noise alone is chance, and other tasks are refused."""

from __future__ import annotations

import pytest

from lessen.errors import ConfigError
from lessen.judges import builtin_judges, get_judge
from lessen.measure.record import measure_quality
from lessen.tasks import builtin_tasks, get_task

SHAPES = {"name": "shapes", "examples": 800}


def test_noise_costs_accuracy_and_noise_alone_is_chance():
    task = get_task(SHAPES)
    model = task.reference(0)
    clean = measure_quality(task, model).values["accuracy"]
    weak, strong = (
        measure_quality(get_judge({"name": "corrupted", "task": SHAPES, "strength": strength}), model).values
        for strength in (0.3, 2.0)
    )
    assert clean > weak["right"] > strong["right"]
    assert weak["control"] == pytest.approx(0.25, abs=0.1)


def test_every_task_is_a_judge_and_suites_are_found():
    assert set(builtin_tasks()) | {"corrupted"} <= set(builtin_judges())
    judge = get_judge({"name": "corrupted", "task": SHAPES})
    assert judge.origin == {"name": "corrupted", "task": SHAPES}
    assert judge.fingerprint() != get_judge({"name": "corrupted", "task": SHAPES, "strength": 1.0}).fingerprint()


@pytest.mark.parametrize(
    ("description", "match"),
    [
        ({"name": "corrupted"}, "task"),
        ({"name": "corrupted", "task": "shapez"}, "did you mean 'shapes'"),
        ({"name": "corrupted", "task": SHAPES, "strength": 0}, "strength"),
        ("corupted", "did you mean 'corrupted'"),
        (3, "expected the name of a judge"),
    ],
)
def test_mistakes_are_one_line(description, match):
    with pytest.raises(ConfigError, match=match) as caught:
        get_judge(description)
    assert "\n" not in str(caught.value)


def test_a_task_of_other_inputs_is_refused():
    judge = get_judge({"name": "corrupted", "task": {"name": "ctr-synthetic", "rows": 1500, "rows_per_field": 40}})
    with pytest.raises(ConfigError, match="needs a task whose inputs are one float tensor"):
        judge.outcomes(judge.task.build())
