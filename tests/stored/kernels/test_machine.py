"""The compiler and the threads behind compiled lookups: optional, loaded late, safe from several threads."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from lessen.stored.kernels import machine
from lessen.stored.tables.embedding import TableShape
from lessen.stored.tables.half_embedding import HalfEmbedding

needs_kernels = pytest.mark.skipif(not machine.available(), reason="the [kernels] extra is not installed, or not Linux")

LATE = """
import sys, torch
from lessen.stored.tables.half_embedding import HalfEmbedding
from lessen.stored.tables.embedding import TableShape
table = HalfEmbedding(TableShape(50, 8), "fp16")
table(torch.zeros(10, dtype=torch.int64))
before = "llvmlite" in sys.modules
table(torch.zeros(5000, dtype=torch.int64))
print(before, "llvmlite" in sys.modules)
"""

BARE = """
import sys, torch
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "llvmlite":
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Refuse())
from lessen.stored.tables.half_embedding import HalfEmbedding
from lessen.stored.tables.embedding import TableShape
from lessen.stored.kernels import machine
table = HalfEmbedding(TableShape(50, 8), "fp16")
table.rows.copy_(torch.arange(400.0).view(50, 8))
ids = torch.arange(5000) % 50
machine.prepare()
print(machine.available(), torch.equal(table(ids), table.rows.float()[ids]))
"""


def answer(script: str) -> str:
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.strip()


@needs_kernels
def test_the_compiler_is_loaded_by_the_first_large_lookup():
    assert answer(LATE) == "False True"


def test_without_the_extra_torch_answers():
    assert answer(BARE) == "False True"


def table(dim: int) -> tuple[HalfEmbedding, torch.Tensor]:
    made = HalfEmbedding(TableShape(50, dim), "fp16")
    made.rows.copy_(torch.randn(50, dim))
    return made, torch.randint(0, 50, (20_000,))


@needs_kernels
def test_callers_on_several_threads_do_not_disturb_each_other():
    torch.set_num_threads(2)
    made, ids = zip(*(table(dim) for dim in (3, 5, 9, 21)), strict=True)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda pair: [pair[0](pair[1]) for _ in range(5)], zip(made, ids, strict=True)))
    for several, one, chosen in zip(found, made, ids, strict=True):
        assert all(torch.equal(rows, one.rows.float()[chosen]) for rows in several)


@needs_kernels
def test_other_defaults_of_torch_change_nothing():
    made, ids = table(6)
    expected = made.rows.float()[ids]
    try:
        torch.set_default_dtype(torch.float64)
        assert torch.equal(made(ids), expected)
        with torch.device("meta"):
            found = made(ids)
        assert torch.equal(found, expected)
    finally:
        torch.set_default_dtype(torch.float32)
