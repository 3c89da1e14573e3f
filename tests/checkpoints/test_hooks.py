from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from lessen.checkpoints import Archive, PackSettings
from lessen.checkpoints.hooks import ArchiveHook, TrainerFolders, trainer_callback
from lessen.checkpoints.queue import hold, queue_beside
from lessen.errors import ConfigError
from lessen.log import SILENT
from lessen.train.fit import fit
from lessen.train.settings import FitSettings


@pytest.mark.usefixtures("forked")
def test_our_own_loop_is_packed_epoch_by_epoch(tmp_path):
    torch.manual_seed(0)
    net = nn.Linear(40, 30)
    checkpoint = tmp_path / "state.safetensors"
    hook = ArchiveHook(checkpoint, tmp_path / "a", PackSettings(mode="exact"))
    fit(
        net,
        batches=lambda epoch: [torch.randn(8, 40) for _ in range(3)],
        loss=lambda model, batch: model(batch).square().mean(),
        validate=lambda model: -float(model.weight.detach().square().mean()),
        settings=FitSettings(epochs=4, patience=9),
        hooks=[hook],
        checkpoint=checkpoint,
    )
    hook.close()
    archive = Archive(tmp_path / "a")
    assert archive.steps == [1, 2, 3, 4]
    out = archive.unpack(4, tmp_path / "o")
    assert next(out.iterdir()).read_bytes() == checkpoint.read_bytes()
    assert not list(tmp_path.glob("state-step-*"))


def make_trainer(folder, callback, steps, on_save=None, **more):
    transformers = pytest.importorskip("transformers", reason="the [hf] extra is not installed")
    from torch.utils.data import Dataset

    class Numbers(Dataset):
        def __len__(self):
            return 64

        def __getitem__(self, index):
            x = torch.randn(6, generator=torch.Generator().manual_seed(index))
            return {"x": x, "labels": x[:2]}

    class Small(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.inner, self.out = nn.Linear(6, 32), nn.Linear(32, 2)

        def forward(self, x, labels):
            y = self.out(torch.relu(self.inner(x)))
            return {"loss": (y - labels).square().mean(), "logits": y}

    class Trainer(transformers.Trainer):
        def evaluate(self, *arguments, **options):
            metrics = super().evaluate(*arguments, **options)
            return {**metrics, "eval_quality": 1.0 / self.state.global_step}  # the earliest is the best

    class Watch(transformers.TrainerCallback):
        def on_save(self, args, state, control, **_):
            if on_save is not None:
                on_save(trainer, state.global_step)

    arguments = transformers.TrainingArguments(
        str(folder),
        max_steps=steps,
        save_steps=4,
        per_device_train_batch_size=8,
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
        learning_rate=1e-2,
        **more,
    )
    trainer = Trainer(
        Small(), arguments, train_dataset=Numbers(), eval_dataset=Numbers(), callbacks=[Watch(), callback]
    )
    return trainer


@pytest.mark.usefixtures("forked")
@pytest.mark.parametrize("mode", ["exact", pytest.param("near", marks=pytest.mark.slow)])
def test_the_hugging_face_trainer_packs_and_resumes(tmp_path, mode):
    callback = trainer_callback(tmp_path / "a", keep_full=1, settings=PackSettings(mode=mode))
    trainer = make_trainer(tmp_path / "out", callback, 12)
    trainer.train()
    archive = Archive(tmp_path / "a")
    assert archive.steps == [4, 8, 12]
    assert sorted(path.name for path in (tmp_path / "out").iterdir() if path.is_dir()) == ["checkpoint-12"]
    resumed = archive.unpack(8, tmp_path / "checkpoint-8")
    assert {"model.safetensors", "optimizer.pt", "trainer_state.json", "scheduler.pt"} <= {
        p.name for p in resumed.iterdir()
    }
    again = make_trainer(tmp_path / "again", trainer_callback(tmp_path / "b"), 12)
    again.train(resume_from_checkpoint=str(resumed))
    for (name, one), (_, other) in zip(
        trainer.model.state_dict().items(), again.model.state_dict().items(), strict=True
    ):
        if mode == "exact":
            assert torch.equal(one, other), name
        else:
            assert torch.allclose(one, other, atol=0.03), name


@pytest.mark.usefixtures("forked")
def test_the_trainers_own_rules_hold_and_every_step_is_packed(tmp_path):
    """save_total_limit removes folders while they wait; load_best_model_at_end needs an early one at the end."""
    best = {}

    def note_best(trainer, step):
        if step == 4:
            best.update({name: tensor.clone() for name, tensor in trainer.model.state_dict().items()})

    callback = trainer_callback(tmp_path / "a", keep_full=1, settings=PackSettings(mode="exact"))
    trainer = make_trainer(
        tmp_path / "out",
        callback,
        20,
        note_best,
        save_total_limit=2,
        eval_strategy="steps",
        eval_steps=4,
        load_best_model_at_end=True,
        metric_for_best_model="quality",
        greater_is_better=True,
    )
    trainer.train()
    assert Archive(tmp_path / "a").steps == [4, 8, 12, 16, 20]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["checkpoint-20", "checkpoint-4"]
    assert all(torch.equal(tensor, best[name]) for name, tensor in trainer.model.state_dict().items())


def folder_of(run, step, value=None):
    folder = run / f"checkpoint-{step}"
    (folder / "inner").mkdir(parents=True)
    torch.save({"w": torch.full((64, 64), float(step if value is None else value))}, folder / "pytorch_model.bin")
    (folder / "inner" / "note.txt").write_text(str(step))
    return folder


@pytest.mark.usefixtures("forked")
def test_no_folder_of_the_trainer_is_removed_without_a_rule(tmp_path):
    folders = TrainerFolders(tmp_path / "a", None, PackSettings(mode="exact"), SILENT)
    for step in (1, 2, 3):
        folders.saved(folder_of(tmp_path / "run", step), None)
    folders.finish(None)
    assert Archive(tmp_path / "a").steps == [1, 2, 3]
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [
        "checkpoint-1",
        "checkpoint-2",
        "checkpoint-3",
    ]
    out = Archive(tmp_path / "a").unpack(2, tmp_path / "o")
    assert (out / "inner" / "note.txt").read_text() == "2"


@pytest.mark.usefixtures("forked")
def test_a_folder_that_could_not_be_packed_stays_whatever_the_rule(tmp_path):
    folders = TrainerFolders(tmp_path / "a", 1, PackSettings(mode="exact"), SILENT)
    for step, value in ((2, 2.0), (1, 1.0), (3, 3.0)):  # 1 comes late and cannot be packed
        folders.saved(folder_of(tmp_path / "run", step, value), None)
    with pytest.warns(RuntimeWarning, match="checkpoint-1 is not packed"):
        folders.finish(None)
    left = sorted(path.name for path in (tmp_path / "run").iterdir() if not path.name.startswith("."))
    assert left == ["checkpoint-1", "checkpoint-3"]


@pytest.mark.usefixtures("forked")
def test_what_a_killed_run_left_in_the_queue_is_packed_by_the_next(tmp_path):
    queue = queue_beside(tmp_path / "run" / "checkpoint-1", tmp_path / "a")
    hold(folder_of(tmp_path / "run", 1), queue)
    folders = TrainerFolders(tmp_path / "a", None, PackSettings(mode="exact"), SILENT)
    folders.saved(folder_of(tmp_path / "run", 2), None)
    folders.finish(None)
    assert Archive(tmp_path / "a").steps == [1, 2]
    assert not queue.exists()


def test_held_files_are_links_and_copies_where_links_are_not_possible(tmp_path, monkeypatch):
    folder = folder_of(tmp_path / "run", 1)
    linked = hold(folder, tmp_path / "q")
    assert (linked / "pytorch_model.bin").stat().st_ino == (folder / "pytorch_model.bin").stat().st_ino

    def no_links(*_):
        raise OSError("not here")

    monkeypatch.setattr("lessen.checkpoints.queue.os.link", no_links)
    copied = hold(folder, tmp_path / "p")
    assert (copied / "pytorch_model.bin").read_bytes() == (folder / "pytorch_model.bin").read_bytes()


@pytest.mark.usefixtures("forked")
def test_our_hook_leaves_the_users_own_files_alone(tmp_path):
    checkpoint, mine = tmp_path / "state.safetensors", tmp_path / "state-step-1.safetensors"
    mine.write_bytes(b"mine")
    hook = ArchiveHook(checkpoint, tmp_path / "a", PackSettings(mode="exact"))
    save_file({"w": torch.ones(8)}, checkpoint)
    hook.epoch_end(nn.Linear(1, 1), 1, 0.0)
    hook.close()
    assert Archive(tmp_path / "a").steps == [1]
    assert mine.read_bytes() == b"mine"


def test_a_rule_that_keeps_nothing_is_refused(tmp_path):
    pytest.importorskip("transformers", reason="the [hf] extra is not installed")
    with pytest.raises(ConfigError, match="keep_full"):
        trainer_callback(tmp_path / "a", keep_full=0)
