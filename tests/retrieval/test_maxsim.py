"""Exact late interaction: the screen never loses a document that float32 ranks among the best."""

from __future__ import annotations

import pytest
import torch

from lessen.errors import DataError, NonFiniteError
from lessen.retrieval import maxsim
from lessen.retrieval.kernels import chamfer_kernel, maxsim_kernel
from lessen.retrieval.maxsim import Screen, carved, chamfer, rescore, search
from lessen.stored.kernels.dots import machine_of
from lessen.stored.vectors.token_sets import TokenSets


def drawn(count, dim, seed):
    found = torch.randn(count, dim, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(found + 0.3, dim=1)


def sets(rows=150, dim=64):
    lengths = torch.randint(1, 40, (rows,), generator=torch.Generator().manual_seed(1)).tolist()
    return TokenSets.of([drawn(length, dim, 100 + n) for n, length in enumerate(lengths)])


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize(("dim", "tokens"), [(64, 32), (64, 1), (64, 45), (20, 17), (30, 5)])
def test_the_best_are_those_of_float32_and_bounds_hold(monkeypatch, compiled, dim, tokens):
    if not compiled:
        monkeypatch.setattr(maxsim_kernel, "available", lambda: False)
    held = sets(dim=dim)
    screen = Screen(held)
    for seed in range(8):
        near = held.tokens[torch.randint(held.count, (tokens,), generator=torch.Generator().manual_seed(seed))]
        query = torch.nn.functional.normalize(near + 0.5 * drawn(tokens, dim, seed), dim=1)
        exact = chamfer(query, held, torch.arange(held.rows))
        scores, wrong = screen.scores(query)
        assert bool(((scores - exact).abs() <= wrong).all())
        found = search(query, screen, 10)
        assert found.numbers.tolist() == exact.sort(descending=True, stable=True).indices[:10].tolist()
        torch.testing.assert_close(found.scores, exact[found.numbers])
        assert found.rescored < held.rows


@pytest.fixture
def narrow(monkeypatch):
    """Kernels of processors without vectors of 512 bits."""
    if not chamfer_kernel.available():
        pytest.skip("no compiled kernels here")
    monkeypatch.setattr(maxsim_kernel, "_machine", lambda: machine_of({"avx2": True}))
    kernels = maxsim_kernel._kernel, chamfer_kernel._kernel
    for kernel in kernels:
        kernel.cache_clear()
    yield
    for kernel in kernels:
        kernel.cache_clear()


@pytest.mark.parametrize("tokens", [1, 17, 45])
@pytest.mark.usefixtures("narrow")
def test_kernels_of_narrow_vectors_find_the_same(tokens):
    held, query = sets(), drawn(tokens, 64, 5)
    assert maxsim_kernel.lanes() == 8
    expected = torch.stack([(query @ one.t()).amax(1).sum() for one in held.tokens.split(held.lengths.tolist())])
    torch.testing.assert_close(chamfer(query, held, torch.arange(held.rows)), expected)
    found = search(query, Screen(held), 10)
    assert found.numbers.tolist() == expected.sort(descending=True, stable=True).indices[:10].tolist()


def test_scores_are_sums_of_maxima():
    held, query = sets(6), drawn(5, 64, 0)
    parts = held.tokens.split(held.lengths.tolist())
    expected = torch.stack([(query @ one.t()).amax(1).sum() for one in parts])
    torch.testing.assert_close(chamfer(query, held, torch.arange(6)), expected)
    some = torch.tensor([4, 0, 4])
    torch.testing.assert_close(chamfer(query, held, some), expected[some])


def test_equal_documents_come_in_their_order_and_long_vectors_are_bounded_too():
    one = 30 * drawn(3, 64, 0)
    held = TokenSets.of([one, one * 0.5, one, one])
    found = search(one, Screen(held), 4)
    assert found.numbers.tolist() == [0, 2, 3, 1]


def test_a_carved_query_has_sums_of_balls():
    left, right = torch.eye(4)[0], torch.eye(4)[1]
    query = torch.stack([left, right, left * 0.9, right])
    assert torch.equal(carved(query, 0.7), torch.stack([left * 1.9, right * 2]))
    assert torch.equal(carved(query, 2.0), query)
    held = sets(20)
    asked = drawn(12, 64, 3)
    everything = rescore(asked, held, torch.arange(20), 5)
    assert rescore(asked, held, torch.arange(20), 5, 2.0).numbers.tolist() == everything.numbers.tolist()
    carve = rescore(asked, held, torch.arange(20), 20, 0.5)
    assert float(carve.scores.max()) <= float(everything.scores.max()) + 1e-5  # a sum has one best token, not several


def test_bad_input():
    held = sets(3)
    for query, kind, message in (
        (torch.zeros(0, 64), DataError, "does not fit"),
        (torch.zeros(2, 63), DataError, "does not fit"),
        (torch.full((1, 64), float("nan")), NonFiniteError, "NaN"),
    ):
        with pytest.raises(kind, match=message):
            search(query, Screen(held), 2)
    with pytest.raises(ValueError, match="document 1 has tokens of shape"):
        TokenSets.of([torch.ones(2, 4), torch.ones(0, 4)])
    with pytest.raises(ValueError, match="document 0 holds NaN"):
        TokenSets.of([torch.full((1, 4), float("inf"))])
    held.starts[1] = 10_000
    with pytest.raises(ValueError, match="starts do not cut"):
        held.check()


def test_few_documents_are_scored_again():
    held = sets(400)
    assert maxsim.MORE == 16
    assert search(held.tokens[:32], Screen(held), 10).rescored < 200
