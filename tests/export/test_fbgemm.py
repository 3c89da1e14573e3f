"""`lessen export --to fbgemm`: the bytes of each row by the published layout, and what cannot be written in one line."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch import nn

from lessen import cli
from lessen.errors import ConfigError
from lessen.export.fbgemm import export_fbgemm
from lessen.stored.tables.embedding import TableShape
from lessen.stored.tables.pruned_embedding import PrunedEmbedding
from lessen.stored.tables.quantized_embedding import QuantizedEmbedding

TASK = "ctr-synthetic:rows=600,rows_per_field=40"


def read(raw: np.ndarray, dim: int, bits: int) -> np.ndarray:
    """An independent reader: struct by struct, element j at bits (j mod 8/b) * b of byte j // (8/b)."""
    scale = raw[:, 0:2].copy().view("<f2").astype(np.float32)
    bias = raw[:, 2:4].copy().view("<f2").astype(np.float32)
    each = 8 // bits
    codes = np.stack([(raw[:, 4 + j // each] >> (j % each * bits)) & (2**bits - 1) for j in range(dim)], axis=1)
    return codes.astype(np.float32) * scale + bias


@pytest.mark.parametrize(("bits", "row"), [(8, 4 + 10), (4, 4 + 5), (2, 4 + 3)])
def test_rows_are_parameters_first_and_read_back(tmp_path, bits, row):
    model = nn.Sequential(QuantizedEmbedding.from_dense(nn.EmbeddingBag(60, 10), bits))
    difference = export_fbgemm(model, tmp_path / "tables.safetensors")
    with safe_open(tmp_path / "tables.safetensors", "numpy") as file:
        assert json.loads(file.metadata()["tables"]) == {"0": {"bits": bits, "rows": 60, "dim": 10}}
        raw = file.get_tensor("0")
    assert raw.shape == (60, row)
    own = model[0].dequantise().numpy()
    assert np.abs(read(raw, 10, bits) - own).max() == pytest.approx(difference, abs=1e-6)
    assert difference < (5e-3 if bits == 8 else 1e-6)


def test_what_fbgemm_rows_cannot_hold_is_one_line_and_no_file(tmp_path):
    path = tmp_path / "x"
    with pytest.raises(ConfigError, match="apply emb-rowwise-quant first"):
        export_fbgemm(nn.Sequential(nn.Embedding(3, 2)), path)
    inner = QuantizedEmbedding.from_dense(nn.Embedding(3, 4), 8)
    pruned = PrunedEmbedding.from_dense(TableShape(4, 4), torch.zeros(3, 4), torch.zeros(4, dtype=torch.int32))
    pruned.table = inner
    with pytest.raises(ConfigError, match="renumber"):
        export_fbgemm(nn.Sequential(pruned), path)
    large = nn.Embedding.from_pretrained(torch.tensor([[1e6, 2e6, 1.5e6, 1e6]]))
    with pytest.raises(ConfigError, match="65504"):
        export_fbgemm(nn.Sequential(QuantizedEmbedding.from_dense(large, 8)), path)
    assert not list(tmp_path.iterdir())


def test_an_artifact_is_exported_from_the_command_line(tmp_path, capsys):
    small, file = tmp_path / "small", tmp_path / "tables.safetensors"
    step = "emb-rowwise-quant:bits=4,min_rows=10"
    assert cli.execute(["compress", "reference", "-t", TASK, "-s", step, "-o", str(small), "--margin", "0.5"]) == 0
    capsys.readouterr()
    assert cli.execute(["export", str(small), "--to", "fbgemm", "--out", str(file), "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["bytes"] == file.stat().st_size
    assert record["largest_difference"] < 1e-6
