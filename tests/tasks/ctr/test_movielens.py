from __future__ import annotations

import numpy as np
import pytest

from lessen import data
from lessen.errors import DataError
from lessen.metrics import AUC
from lessen.tasks import get_task
from lessen.tasks.ctr.models import MODELS
from lessen.tasks.ctr.movielens import MovieLensClicks, MovieLensOptions
from lessen.train.settings import FitSettings


@pytest.fixture(scope="module", autouse=True)
def _data() -> None:
    try:
        data.get("movielens-100k")
    except DataError as error:
        pytest.skip(f"MovieLens-100k is not at hand: {error}")


def test_batches_are_named_int32_tensors_and_one_label_a_row() -> None:
    task = get_task("ctr-movielens100k")
    inputs, label = task.example_batch()
    assert set(inputs) == {"ids"}
    assert str(inputs["ids"].dtype) == "torch.int32"
    assert inputs["ids"].shape == (len(label), 9 + 6 + 20)
    assert task.predictions(task.build())[0].shape == (9596,)


def test_cold_split_says_that_its_users_are_unseen() -> None:
    task = MovieLensClicks(MovieLensOptions(split="cold", history=0))
    assert "85.8 % of the test rows come from users that are unseen" in task.notes()[0]
    assert task.describe()["split"] == "cold"
    assert MovieLensClicks().fingerprint() != task.fingerprint()


def test_one_epoch_already_beats_the_item_mean() -> None:
    task = MovieLensClicks(MovieLensOptions(model="deepfm"))
    model = task.build()
    task.train(model, settings=FitSettings(epochs=1, learning_rate=4e-3, table_l2=1e-3))
    assert AUC(*task.predictions(model)) > 0.74


@pytest.mark.slow
@pytest.mark.parametrize(("model", "published"), [("dcnv2", 0.793), ("deepfm", 0.791)])
def test_references_reach_the_published_auc(model: str, published: float) -> None:
    task = MovieLensClicks(MovieLensOptions(model=model))  # type: ignore[arg-type]
    found = [AUC(*task.predictions(task.reference(seed))) for seed in range(3)]
    assert np.mean(found) >= published


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
def test_every_model_beats_the_item_mean_by_far(model: str) -> None:
    task = MovieLensClicks(MovieLensOptions(model=model))  # type: ignore[arg-type]
    assert AUC(*task.predictions(task.reference(seed=0))) > 0.765
