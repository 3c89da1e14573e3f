"""A crafted artifact ends in an ArtifactError or in right answers: no crash, no memory that is not its own."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from kernel_forms import ROWS
from lessen.stored.base import StoredModule, load_builtin_kinds
from lessen.stored.tables.embedding import TableShape
from stored_examples import TABLES, examples

PROGRAM = Path(__file__).parents[1] / "helpers" / "craft.py"


def craft(seed: int, count: int) -> None:
    done = subprocess.run(
        [sys.executable, str(PROGRAM), str(seed), str(count)], capture_output=True, text=True, timeout=460, check=False
    )
    lines = done.stdout.splitlines()
    assert done.returncode == 0, f"the process ended with {done.returncode} in: {lines[-1:]}, {done.stderr[-300:]}"
    assert not [line for line in lines if line.startswith("FAULT")]
    assert lines[-1].startswith(f"done {count} attempts")


def test_every_stored_class_has_an_example():
    known = {module.kind for module in examples().values()}
    missing = {kind for kind, cls in load_builtin_kinds().items() if cls.__module__.startswith("lessen.")} - known
    assert not missing, f"tests/helpers/stored_examples.py has no example of {sorted(missing)}"


def test_crafted_artifacts_never_crash_or_read_foreign_memory():
    craft(seed=1, count=1000)


@pytest.mark.slow
def test_many_crafted_artifacts():
    craft(seed=2, count=10_000)


@pytest.mark.parametrize("name", examples())
def test_a_good_module_passes_its_own_check(name):
    examples()[name].check()


@pytest.mark.parametrize("form", ["hashed fields", "product of 200", "tiered", "deep hash"])
def test_a_module_that_was_converted_to_another_type_says_so(form):
    with pytest.raises(ValueError, match="is torch.float16, the configuration says torch.float32"):
        TABLES[form](TableShape(ROWS, 8)).half().check()


def test_a_table_in_another_form_may_stand_inside_another():
    table = TABLES["pruned"](TableShape(ROWS, 8))
    table.table = TABLES["int8"](TableShape(table.kept, 8))
    table.check()
    table.table = TABLES["int8"](TableShape(table.kept, 7))
    with pytest.raises(ValueError, match="table has num_embeddings 20, embedding_dim 7; its parent needs"):
        table.check()
    table.table = nn.Linear(8, 20)
    with pytest.raises(ValueError, match="table is a Linear"):
        table.check()


WRONG = {
    "mixed bits": {"starts": 2**63 - 1, "classes": 255},
    "group columns": {"starts": -(2**63), "columns": 2},
    "product of 200": {"codes": 255},
    "product of 11": {"codes": 255},
    "pruned": {"position": -1},
    "bitmap": {"ranks": 2**31 - 1, "words": -1},
    "narrow": {"ranks": -1, "words": 0},
    "sparse": {"starts": 2**31 - 1, "columns": 255},
    "tiered": {"hot_ids": ROWS},
    "hashed fields": {"constants": 2**63 - 1},
    "unified": {"salts": -1},
    "robe": {"constants": 2**31},
    "weighted hash": {"constants": 2**62},
    "cluster assigned": {"codes": 200},
    "clustered": {"codes": 7},
    "deep hash": {"constants": -1},
}


@pytest.mark.parametrize(("form", "name", "value"), [(f, n, v) for f, items in WRONG.items() for n, v in items.items()])
def test_each_index_that_points_outside_is_named(form, name, value):
    table: StoredModule = TABLES[form](TableShape(ROWS, 9))
    getattr(table, name).view(-1)[0] = value
    with pytest.raises(ValueError, match=f"{name}|rows|marks|places"):
        table.check()


def test_many_rows_over_few_stored_values_take_no_memory_of_their_own():
    from lessen.stored.tables.hashed_embedding import HashedEmbedding
    from lessen.stored.tables.tiered_embedding import TieredEmbedding, bare

    shape = TableShape(2**39, 8)
    table = TieredEmbedding(shape, 2, HashedEmbedding(bare(shape), [1], 1, False))
    table.fill_hot(torch.tensor([5, 9]), torch.ones(2, 8))
    ids = torch.tensor([5, 6, 9, 10, 2**39 - 1])
    assert table(ids)[:, 0].tolist() == [1.0, 0.0, 1.0, 0.0, 0.0]
    assert table.packed_bytes() == 0
