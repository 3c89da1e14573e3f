from __future__ import annotations

import pytest
import torch

from lessen.methods.embeddings._shared.importance import evidence


def test_evidence_is_the_part_of_a_row_that_its_lookups_have_set():
    found = evidence(torch.tensor([0, 1, 10, 90, 10**9]))
    assert found.shape == (5, 1)
    assert found[:, 0].tolist() == pytest.approx([1e-6, 1 / 11, 0.5, 0.9, 1.0])
    assert found.dtype == torch.float32
