"""Figures of compression on the way: in our own loop, under the Hugging Face Trainer and under Lightning."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from lessen.artifact.folder import stored_size
from lessen.errors import ConfigError
from lessen.measure.in_training import Watch, WatchHook, lightning_watch, trainer_watch, watched
from lessen.recipe import Recipe
from lessen.sparsity.masking import Fixed
from toy import ToyNet, ToyTask


@pytest.fixture(scope="module")
def task():
    return ToyTask(examples=2000)


@pytest.fixture(scope="module")
def reference(task):
    torch.manual_seed(0)
    model = task.build()
    task.train(model)
    return model


def half(layer):
    parametrize.register_parametrization(layer, "weight", Fixed(torch.arange(layer.in_features) % 2 == 0))


def test_figures_are_those_of_an_artifact_and_of_the_task(task, reference):
    before = copy.deepcopy(reference.state_dict())
    found = Watch(task, reference=reference, margin=0.01)(reference)
    assert found["stored_bytes"] == stored_size(reference, reference)
    assert found["stored_bytes_share"] == found["macs_share"] == 1.0
    assert found["macs"] == 16 * 16 + 16
    assert found["auc"] == task.score(reference)
    assert (found["lost"], found["room"], found["zeros"]) == (0.0, 0.01, 0.0)
    assert all(torch.equal(before[name], value) for name, value in reference.state_dict().items())


def test_masks_count_and_stay(task, reference):
    model = copy.deepcopy(reference)
    half(model.hidden)
    found = Watch(task, reference=reference)(model)
    assert found["zeros"] == pytest.approx(128 / 272)
    assert found["lost"] == pytest.approx(task.score(reference) - task.score(model))
    assert parametrize.is_parametrized(model.hidden)


def test_what_is_finished_is_what_is_measured(task, reference):
    recipe = Recipe.parse({"name": "small", "steps": [{"emb-rowwise-quant": {"bits": 4, "min_rows": 1}}]})
    watch = Watch(task, reference=reference, margin=0.01, finished=lambda model: recipe.apply(model, task)[0])
    found = watch(reference)
    compact = recipe.apply(reference, task)[0]
    assert found["stored_bytes"] == stored_size(compact, reference)
    assert found["stored_bytes_share"] < 0.6
    assert found["auc"] == task.score(compact)
    assert found["room"] == pytest.approx(0.01 - (task.score(reference) - task.score(compact)))


def test_a_metric_that_falls_is_told_in_its_own_direction(reference):
    class ByLoss(ToyTask):
        metrics = {"logloss": ToyTask.metrics["logloss"]}

    task, worse = ByLoss(examples=2000), ToyNet()
    found = Watch(task, reference=reference, margin=0.1)(worse)
    assert found["logloss"] == -task.score(worse) > 0
    assert found["lost"] == pytest.approx(found["logloss"] + task.score(reference))
    assert found["room"] == pytest.approx(0.1 - found["lost"])


def test_contradictions_are_refused(task, reference):
    with pytest.raises(ConfigError, match="needs a reference"):
        Watch(task, margin=0.01)
    with pytest.raises(ConfigError, match="every=0"):
        WatchHook(Watch(task), print, every=0)


def test_a_method_that_trains_is_watched(task, reference):
    told = []
    watch = Watch(task, reference=reference, margin=0.05)
    hook = WatchHook(watch, lambda values, step: told.append((step, values)), every=2)
    recipe = Recipe.parse({"name": "small", "steps": [{"sr-ste": {"pattern": "2:4", "epochs": 4, "min_weights": 1}}]})
    recipe.apply(reference, watched(task, hook))
    assert [step for step, _ in told] == [8, 16]
    assert all(values["zeros"] == 0.5 for _, values in told)
    assert all(values["room"] == pytest.approx(0.05 - values["lost"]) for _, values in told)


class Numbers(torch.utils.data.Dataset):
    def __len__(self):
        return 32

    def __getitem__(self, index):
        x = torch.randn(6, generator=torch.Generator().manual_seed(index))
        return {"x": x, "labels": x[:2]}


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.inner, self.out = nn.Linear(6, 8), nn.Linear(8, 2)
        half(self.inner)

    def forward(self, x, labels):
        y = self.out(torch.relu(self.inner(x)))
        return {"loss": (y - labels).square().mean(), "logits": y}


def test_the_hugging_face_trainer_tells_and_chooses_by_it(tmp_path):
    transformers = pytest.importorskip("transformers", reason="the [hf] extra is not installed")
    told = []
    watch = Watch(quality=lambda model: -float(model.out.weight.abs().sum()))
    arguments = transformers.TrainingArguments(
        str(tmp_path), max_steps=4, eval_strategy="steps", eval_steps=2, save_strategy="steps", save_steps=2,
        per_device_train_batch_size=8, use_cpu=True, report_to=[], disable_tqdm=True,
        load_best_model_at_end=True, metric_for_best_model="eval_quality", greater_is_better=True,
    )  # fmt: skip
    trainer = transformers.Trainer(
        Small(), arguments, train_dataset=Numbers(), eval_dataset=Numbers(),
        callbacks=[trainer_watch(watch, lambda values, step: told.append((step, values)))],
    )  # fmt: skip
    trainer.train()
    assert [step for step, _ in told] == [2, 4]
    assert told[0][1]["zeros"] == pytest.approx(24 / 64)
    assert trainer.state.best_metric == max(values["quality"] for _, values in told)
    logged = [row for row in trainer.state.log_history if "eval_stored_bytes" in row]
    assert [row["step"] for row in logged][-1] == 4


def test_lightning_logs_it_where_monitors_look(tmp_path):
    lightning = pytest.importorskip("lightning.pytorch", reason="Lightning is not installed")

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = Small()

        def training_step(self, batch, _):
            return self.net(**batch)["loss"]

        validation_step = training_step

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.01)

    loader = torch.utils.data.DataLoader(Numbers(), batch_size=8)
    keep = lightning.callbacks.ModelCheckpoint(tmp_path, monitor="lessen/zeros", mode="max")
    trainer = lightning.Trainer(
        max_epochs=2, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        callbacks=[lightning_watch(Watch()), keep],
    )  # fmt: skip
    trainer.fit(Module(), loader, loader)
    assert float(trainer.callback_metrics["lessen/zeros"]) == pytest.approx(24 / 64)
    assert float(trainer.callback_metrics["lessen/stored_bytes"]) > 4 * 80
    assert float(keep.best_model_score) == pytest.approx(24 / 64)
