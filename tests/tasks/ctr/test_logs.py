"""From a CSV file to a trained model, through the registry as a study would do it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from lessen.data.encode import SplitRule, encode_logs
from lessen.data.schema import FieldSchema, Schema
from lessen.errors import ConfigError, DataError
from lessen.measure.record import measure_quality
from lessen.metrics import AUC, StreamedClicks
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
        {
            "name": "ctr-logs",
            "data": str(folder),
            "model": "deepfm",
            "dim": 8,
            "batch_size": 256,
            "epochs": 8,
            "learning_rate": 0.05 if updates == "rowwise-adagrad" else 0.01,
            "table_updates": updates,
            "arguments": {"hidden": [32, 16], "std": 0.1},
        }
    )
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


# -- weights --------------------------------------------------------------------------------------------------------
@pytest.fixture
def weighted(tmp_path: Path) -> Path:
    """Rows with weights 0 to 3."""
    generator = np.random.default_rng(0)
    lines = ["label,a,b,weight"]
    for _ in range(900):
        a, b, weight = generator.integers(0, 12), generator.integers(0, 5), generator.integers(0, 4)
        lines.append(f"{int(generator.random() < 0.2 + 0.05 * a)},a{a},b{b},{weight}")
    (tmp_path / "log.csv").write_text("\n".join(lines) + "\n")
    kinds = {"label": "label", "weight": "weight"}
    fields = tuple(FieldSchema(name=name, kind=kinds.get(name, "categorical")) for name in lines[0].split(","))  # type: ignore[arg-type]
    encode_logs([str(tmp_path / "log.csv")], Schema(fields=fields), tmp_path / "data", SplitRule())
    return tmp_path / "data"


def test_a_weight_counts_its_row_that_often_in_loss_gradient_and_metrics(weighted: Path) -> None:
    options = {"model": "fm", "dim": 3, "batch_size": 4096, "arguments": {"std": 0.3}}
    task = get_task({"name": "ctr-logs", "data": str(weighted), **options})
    model = task.build()
    ((inputs, target),) = task.batches("train")
    rows = torch.repeat_interleave(torch.arange(len(target)), target[:, 1].long())
    repeated = ({name: value[rows] for name, value in inputs.items()}, target[rows, 0])
    found = []
    for batch in ((inputs, target), repeated):
        model.zero_grad()
        loss = task.loss(model, batch)
        loss.backward()
        found.append((loss.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)))
    for one, other in zip(*found, strict=True):
        assert torch.allclose(one, other, atol=1e-6)
    scores, targets = task.predictions(model, "test")
    again = np.repeat(np.arange(len(targets)), targets[:, 1].astype(int))
    for name, value in measure_quality(task, model).values.items():
        assert value == pytest.approx(task.metrics[name](scores[again], targets[again, 0]), abs=1e-9)
    validation = task.predictions(model, "validation")
    assert task.score(model) == pytest.approx(AUC(*validation), abs=1e-12)
    assert AUC(*validation) != AUC(validation[0], validation[1][:, 0])


def test_a_batch_without_weight_teaches_nothing(weighted: Path) -> None:
    task = get_task({"name": "ctr-logs", "data": str(weighted), "model": "lr"})
    inputs, target = task.example_batch()
    model = task.build()
    loss = task.loss(model, (inputs, torch.stack([target[:, 0], torch.zeros(len(target))], 1)))
    loss.backward()
    assert float(loss.detach()) == 0.0
    assert all(float(p.grad.abs().sum()) == 0.0 for p in model.parameters() if p.grad is not None)


def test_streamed_validation_equals_the_metric(folder: Path) -> None:
    task = get_task({"name": "ctr-logs", "data": str(folder), "model": "lr", "arguments": {"std": 0.5}})
    model = task.build()
    assert task.score(model) == pytest.approx(AUC(*task.predictions(model, "validation")), abs=1e-12)


def test_a_group_in_the_schema_adds_auc_inside_groups(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    rows = [f"{generator.integers(0, 2)},a{generator.integers(0, 9)},q{n // 5}" for n in range(1500)]
    (tmp_path / "log.csv").write_text("label,a,query\n" + "\n".join(rows))
    kinds = {"label": "label", "a": "categorical", "query": "group"}
    fields = tuple(FieldSchema(name=name, kind=kind) for name, kind in kinds.items())  # type: ignore[arg-type]
    data = encode_logs([str(tmp_path / "log.csv")], Schema(fields=fields), tmp_path / "data")
    task = get_task({"name": "ctr-logs", "data": str(tmp_path / "data"), "model": "lr", "arguments": {"std": 1.0}})
    model = task.build()
    stream = StreamedClicks()
    stream.add(*task.predictions(model, "test"), np.array(data.array("test", "group")))
    values = measure_quality(task, model).values
    assert list(values) == ["auc", "logloss", "gauc"]
    assert values["gauc"] == pytest.approx(stream.result()["gauc"], abs=1e-9)
    assert values["auc"] != values["gauc"]
