from __future__ import annotations

import pytest
import torch

from frozen_tables import assert_tables_learned
from lessen.errors import TaskError
from lessen.methods.embeddings.hash import HashTables
from lessen.methods.embeddings.prune_rows import PruneRows
from lessen.recipe import Recipe, parse_step
from lessen.testing.toys import TableTask


@pytest.mark.parametrize("hashes", [1, 2])
def test_tables_shrink_by_the_ratio_and_the_model_is_trained_anew(hashes):
    task = TableTask()
    model = task.reference(0)
    result, ledger = Recipe([HashTables(ratio=0.25, hashes=hashes)]).apply(model, task)
    assert len(result.items.table.weight) == 375
    assert len(result.tags.table.weight) == 300
    findings = ledger[0].findings
    assert findings["start"] == "fresh build"
    assert ledger[0].train_seconds > 0
    assert not torch.equal(result.first.weight, model.first.weight)
    assert_tables_learned(result, task)


def test_after_another_step_the_given_model_is_trained_on():
    task = TableTask()
    steps = [parse_step("linear-int8", "test"), HashTables(ratio=0.5)]
    result, ledger = Recipe(steps).apply(task.reference(0), task)
    assert ledger[1].findings["start"] == "given model"
    assert type(result.second).__name__ == "Int8Linear"


def test_small_and_frozen_tables_keep_their_rows():
    task = TableTask()
    model = task.reference(0)
    model.items.weight.requires_grad_(False)
    result, ledger = Recipe([HashTables()]).apply(model, task)
    assert "frozen" in ledger[0].findings["skipped"]["items"]
    assert type(result.items).__name__ == "Embedding"
    assert type(result.tags).__name__ == "HashedEmbedding"


def test_a_task_that_cannot_train_is_refused_by_name():
    task = TableTask()
    model = task.reference(0)
    task.provides = frozenset({"labels", "calibration", "gradients"})
    with pytest.raises(TaskError, match=r"emb-hash needs training.*contract-tables"):
        Recipe([HashTables()]).apply(model, task)
    task.provides = frozenset({"labels", "calibration"})
    result, _ = Recipe([PruneRows()]).apply(model, task)
    assert type(result.items).__name__ == "PrunedEmbedding"
