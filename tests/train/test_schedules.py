from __future__ import annotations

import pytest
import torch
from torch.optim import lr_scheduler

from lessen.errors import ConfigError
from lessen.train.schedules import Schedule
from lessen.train.settings import FitSettings


def torch_rates(build, steps: int, rate: float) -> list[float]:
    """Return the learning rates of `steps` steps under a scheduler of torch."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=rate)
    scheduler, rates = build(optimizer), []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


def rates(total: int, **settings) -> list[float]:
    schedule = Schedule(FitSettings(learning_rate=0.3, **settings), total)
    return [schedule.rate(step) for step in range(total)]


@pytest.mark.parametrize("low", [0.0, 0.003])
def test_cosine_is_that_of_torch(low: float) -> None:
    expected = torch_rates(lambda o: lr_scheduler.CosineAnnealingLR(o, 40, eta_min=low), 40, 0.3)
    assert rates(40, schedule="cosine", minimum_learning_rate=low) == pytest.approx(expected, abs=1e-12)


def test_linear_is_that_of_torch() -> None:
    expected = torch_rates(lambda o: lr_scheduler.LinearLR(o, 1.0, 0.1, total_iters=40), 40, 0.3)
    assert rates(40, schedule="linear", minimum_learning_rate=0.03) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("schedule", ["constant", "plateau", "cosine", "linear"])
def test_warm_up_comes_before_any_schedule(schedule: str) -> None:
    falls = schedule in ("cosine", "linear")
    fall = {
        "cosine": lambda o: lr_scheduler.CosineAnnealingLR(o, 20, eta_min=0.01),
        "linear": lambda o: lr_scheduler.LinearLR(o, 1.0, 0.01 / 0.3, total_iters=20),
    }.get(schedule, lambda o: lr_scheduler.ConstantLR(o, 1.0))

    def build(optimizer):
        up = lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / 5))
        flat = lr_scheduler.ConstantLR(optimizer, 1.0)
        return lr_scheduler.SequentialLR(optimizer, [up, flat, fall(optimizer)], [5, 10])

    settings = {"minimum_learning_rate": 0.01, "decay_steps": 20} if falls else {}
    assert rates(30, schedule=schedule, warmup_steps=5, **settings) == pytest.approx(
        torch_rates(build, 30, 0.3), abs=1e-12
    )


def test_plateau_falls_by_its_factor_to_its_floor() -> None:
    schedule = Schedule(FitSettings(learning_rate=1e-3, minimum_learning_rate=5e-5))
    levels = []
    for _ in range(3):
        levels.append(schedule.rate(0))
        schedule.missed()
    assert levels == pytest.approx([1e-3, 1e-4, 5e-5])
    constant = Schedule(FitSettings(schedule="constant"))
    constant.missed()
    assert constant.rate(7) == 1e-3


def test_parts_that_do_not_fit_are_refused() -> None:
    settings = FitSettings(schedule="linear", warmup_steps=6, decay_steps=5)
    schedule = Schedule(settings, 6)  # they overlap: the lower one counts
    assert [schedule.rate(step) / 1e-3 for step in range(6)] == pytest.approx(
        [1 / 6, 2 / 6, 3 / 6, 3 / 5, 2 / 5, 1 / 5], abs=1e-3
    )
    with pytest.raises(ConfigError, match="training has 5 steps, too few for warmup_steps = 6 and a fall over 5"):
        Schedule(settings, 5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epochs": 0}, "training: epochs = 0 is not accepted: input should be greater than or equal to 1"),
        ({"epochs": "3"}, "training: epochs = '3' is not accepted: input should be a valid integer"),
        ({"learning_rate": -1.0}, "learning_rate = -1.0"),
        ({"learning_rate": float("nan")}, "learning_rate = nan"),
        ({"optimizer": "lion"}, "optimizer = 'lion' is not accepted: input should be 'adam', 'adamw', 'sgd' or 'muon'"),
        ({"schedule": "step"}, "schedule = 'step'"),
        ({"precision": "fp16"}, "precision = 'fp16'"),
        ({"accumulate": 0}, "accumulate = 0"),
        ({"betas": (0.9, 1.0)}, "betas"),
        ({"clip_norm": 0.0}, "clip_norm = 0.0"),
        ({"max_seconds": 0}, "max_seconds = 0"),
        ({"decay_steps": 5}, "decay_steps belongs to the schedules cosine and linear, not plateau"),
        (
            {"schedule": "cosine", "learning_rate": 1e-7},
            "falls from learning_rate = 1e-07 to minimum_learning_rate = 1e-06, which is higher",
        ),
    ],
)
def test_settings_are_checked_in_one_line(settings: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        FitSettings(**settings)
    assert "\n" not in str(caught.value)
