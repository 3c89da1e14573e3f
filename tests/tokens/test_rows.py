from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lessen.tokens import rows
from lessen.tokens.rows import Plan, combine


def by_loop(x, row, weight, kept):
    out = torch.zeros(len(x), kept, x.shape[2])
    for b in range(len(x)):
        for i in range(x.shape[1]):
            if row[b, i] >= 0:
                out[b, row[b, i]] += weight[b, i] * x[b, i]
    return out


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 3), st.integers(1, 12), st.integers(1, 5), st.booleans(), st.integers(0, 10**6))
def test_one_pass_equals_the_loop(batch, tokens, kept, drops, seed):
    generator = torch.Generator().manual_seed(seed)
    row = torch.randint(-1 if drops else 0, kept, (batch, tokens), generator=generator)
    x, weight = torch.randn(batch, tokens, 3, generator=generator), torch.rand(batch, tokens, generator=generator)
    wanted = by_loop(x, row, weight, kept)
    assert torch.allclose(combine(x, row, weight, kept, drops), wanted, atol=1e-6)


def test_the_traced_form_equals_the_eager_one_with_gradients(monkeypatch):
    row = torch.tensor([[0, 1, 0, -1, 2], [2, 2, 2, 1, 0]])
    weight = torch.rand(2, 5)
    results = []
    for traced in (False, True):
        monkeypatch.setattr(rows, "_traced", lambda traced=traced: traced)
        x = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
        w = weight.clone().requires_grad_()
        out = combine(x, row, w, 3, True)
        (out * torch.arange(24.0).view(2, 3, 4)).sum().backward()
        results.append((out.detach(), x.grad, w.grad))
    for eager, other in zip(*results, strict=True):
        assert torch.allclose(eager, other, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_identity_is_bit_equal(dtype):
    x = torch.randn(2, 7, 5).to(dtype)
    everything = torch.arange(7).expand(2, -1)
    assert torch.equal(Plan(everything, 7).features(x), x)
    assert torch.equal(Plan(everything, 7, source=everything).features(x), x)
    assert torch.equal(Plan(everything, 7).sizes(), torch.ones(2, 7))


def test_means_are_weighted_by_size_and_sizes_add_up():
    plan = Plan(torch.tensor([[0, 1, 0, 1]]), 2)
    size, x = torch.tensor([[1.0, 2.0, 3.0, 2.0]]), torch.tensor([[[4.0], [1.0], [8.0], [3.0]]])
    assert plan.features(x, size).flatten().tolist() == [7.0, 2.0]
    assert plan.features(x).flatten().tolist() == [6.0, 2.0]
    assert plan.sizes(size).tolist() == [[4.0, 4.0]]


def test_shares_scale_sizes_only():
    plan = Plan(torch.tensor([[0, 0]]), 1, share=torch.tensor([[1.0, 0.25]]))
    assert plan.sizes().tolist() == [[1.25]]
    assert plan.features(torch.tensor([[[1.0], [3.0]]])).item() == 2.0


def test_every_aligned_tensor_follows():
    plan = Plan(torch.tensor([[1, 0, 1, -1]]), 2, drops=True)
    values = torch.tensor([[10, 20, 30, 40]])
    assert plan.aligned(values).tolist() == [[20, 10]]
    assert plan.aligned(values, "max").tolist() == [[20, 30]]
    assert plan.aligned(values, "sum").tolist() == [[20.0, 40.0]]
    assert plan.aligned(values, "mean").tolist() == [[20.0, 20.0]]
    coordinates = torch.arange(8).view(1, 4, 2)
    assert plan.aligned(coordinates).tolist() == [[[2, 3], [0, 1]]]
    assert plan.first_members().tolist() == [[1, 0]]
