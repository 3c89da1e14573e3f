from __future__ import annotations

import pytest
import torch
from torch import nn

from lessen.checkpoints import Archive, PackSettings
from lessen.checkpoints.hooks import ArchiveHook, trainer_callback
from lessen.errors import ConfigError
from lessen.train.fit import fit
from lessen.train.settings import FitSettings


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


def make_trainer(folder, callback, steps, **more):
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

    arguments = transformers.TrainingArguments(
        str(folder), max_steps=steps, save_steps=4, per_device_train_batch_size=8, use_cpu=True, report_to=[],
        disable_tqdm=True, learning_rate=1e-2, **more,
    )  # fmt: skip
    return transformers.Trainer(Small(), arguments, train_dataset=Numbers(), callbacks=[callback])


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


def test_a_limit_that_would_remove_folders_too_early_is_refused(tmp_path):
    trainer = make_trainer(tmp_path / "out", trainer_callback(tmp_path / "a"), 4, save_total_limit=2)
    with pytest.raises(ConfigError, match="save_total_limit"):
        trainer.train()
    with pytest.raises(ConfigError, match="keep_full"):
        trainer_callback(tmp_path / "a", keep_full=0)
