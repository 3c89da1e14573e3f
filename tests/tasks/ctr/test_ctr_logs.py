"""From a CSV file to a trained model, through the registry as a study would do it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from lessen.data.encode import SplitRule, encode_logs
from lessen.data.schema import FieldSchema, Schema
from lessen.errors import ConfigError, DataError
from lessen.metrics import AUC
from lessen.tasks import get_task
from lessen.tasks.ctr.synthetic import SyntheticClicks, SyntheticOptions


@pytest.fixture(scope="module")
def synthetic() -> SyntheticClicks:
    return SyntheticClicks(SyntheticOptions(rows=16_000, rows_per_field=40))


@pytest.fixture(scope="module")
def folder(synthetic: SyntheticClicks, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The synthetic rows written as CSV and encoded again."""
    root = tmp_path_factory.mktemp("logs")
    lines = ["label,price," + ",".join(field.name for field in synthetic.layout.fields)]
    for split in ("train", "validation", "test"):
        part = synthetic.splits[split]  # type: ignore[index]
        for ids, label in zip(part.ids.tolist(), part.label.tolist(), strict=True):
            lines.append(f"{int(label)},0.5,{','.join(f'v{i}' for i in ids)}")
    (root / "log.csv").write_text("\n".join(lines))
    fields = [FieldSchema(name=field.name, kind="categorical") for field in synthetic.layout.fields]
    schema = Schema(
        fields=(FieldSchema(name="label", kind="label"), FieldSchema(name="price", kind="numeric"), *fields)
    )
    encode_logs([str(root / "log.csv")], schema, root / "data", SplitRule(fractions=(0.7, 0.15, 0.15)))
    return root / "data"


@pytest.mark.parametrize("updates", ["dense", "lazy-adam", "rowwise-adagrad"])
def test_trains_from_disk_about_as_well_as_from_memory(folder: Path, synthetic: SyntheticClicks, updates: str) -> None:
    task = get_task(
        {"name": "ctr-logs", "data": str(folder), "model": "deepfm", "dim": 8, "batch_size": 256, "epochs": 8,
         "learning_rate": 0.05 if updates == "rowwise-adagrad" else 0.01, "table_updates": updates,
         "arguments": {"hidden": [32, 16], "std": 0.1}}
    )  # fmt: skip
    auc = AUC(*task.predictions(task.reference(seed=0)))
    assert 0.82 < auc < synthetic.best_auc
    assert task.fingerprint() == task.dataset.fingerprint  # type: ignore[attr-defined]


def test_batches_are_shuffled_by_seed_and_whole(folder: Path) -> None:
    task = get_task({"name": "ctr-logs", "data": str(folder)})
    first, again, other = (torch.cat([b[0]["ids"] for b in task.batches("train", seed)]) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert np.isclose(len(first) / 16_000, 0.7, atol=0.02)
    assert set(task.example_batch()[0]) == {"ids", "numeric"}


def test_wrong_folder_and_wrong_argument_are_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no data set that"):
        get_task({"name": "ctr-logs", "data": str(tmp_path)})
    with pytest.raises(ConfigError, match=r"dcnv2 takes no argument 'hiden'; did you mean 'hidden'"):
        get_task({"name": "ctr-logs", "data": str(folder), "arguments": {"hiden": [3]}})
