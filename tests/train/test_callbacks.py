from __future__ import annotations

import pytest

from lessen.errors import ConfigError
from lessen.train.callbacks import Scalars
from lessen.train.fit import fit
from lessen.train.settings import FitSettings
from small_training import batches, loss, small, validate


@pytest.mark.parametrize("every", [1, 3])
def test_means_of_losses_and_scores_reach_the_callable(every: int) -> None:
    heard: list[dict[str, float]] = []
    hook = Scalars(lambda values, step: heard.append({"step": step, **values}), every)
    done = fit(small(), batches=batches, loss=loss, validate=validate, settings=FitSettings(epochs=3), hooks=(hook,))
    losses = [entry for entry in heard if "loss" in entry]
    assert [entry["step"] for entry in losses] == list(range(every, 13, every))
    assert all(entry["learning_rate"] == 1e-3 for entry in losses)
    total = sum(entry["loss"] for entry in losses) * every
    assert total == pytest.approx(4 * sum(entry["loss"] for entry in done.history))
    scores = [entry for entry in heard if "score" in entry]
    assert scores == [{"step": 4 * e["epoch"], "epoch": e["epoch"], "score": e["score"]} for e in done.history]


def test_a_wrong_interval_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"Scalars\(every=0\) is not accepted"):
        Scalars(print, 0)
