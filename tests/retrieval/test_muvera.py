"""Encodings of token sets: closed forms of the paper, cells and fills bit for bit against loops, kernel against torch."""

from __future__ import annotations

import pytest
import torch

from lessen.errors import ConfigError, DataError, NonFiniteError
from lessen.retrieval import muvera
from lessen.retrieval.folder import IndexFolder
from lessen.retrieval.kernels import cells_kernel
from lessen.retrieval.maxsim import chamfer
from lessen.retrieval.muvera import Encoder, Encoding, cells_encoded
from lessen.stored.vectors.token_sets import TokenSets

DIM = 32


def tokens(count, seed, dim=DIM, shift=0.2):
    drawn = torch.randn(count, dim, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(drawn + shift, dim=1)


def documents(lengths=(1, 7, 30, 3), dim=DIM):
    return TokenSets.of([tokens(length, number, dim) for number, length in enumerate(lengths)])


def by_loops(encoder, points, document):
    """The definition, point by point and cell by cell."""
    own, blocks = encoder.encoding, []
    for repetition in range(own.repetitions):
        planes = encoder.hyperplanes[:, repetition * own.bits : (repetition + 1) * own.bits].double()
        cells = [sum(int(float(x.double() @ planes[:, j]) > 0) << j for j in range(own.bits)) for x in points]
        for cell in range(1 << own.bits):
            inside = [n for n, other in enumerate(cells) if other == cell]
            if inside:
                made = points[inside].sum(0) / (len(inside) if document else 1)
            elif document and own.fill:
                nearest = min(range(len(points)), key=lambda n: (bin(cells[n] ^ cell).count("1"), n))
                made = points[nearest]
            else:
                made = torch.zeros(own.dim)
            blocks.append(made @ encoder.planes[repetition])
    return torch.cat(blocks)


ENCODINGS = {
    "dense": Encoding(DIM, 3, 4, 8),
    "sketch": Encoding(DIM, 3, 3, 16, inner="sketch"),
    "not projected": Encoding(DIM, 2, 5, DIM),
    "no fill": Encoding(DIM, 3, 4, 8, fill=False),
    "one cell": Encoding(DIM, 2, 0, 8),
    "odd width": Encoding(DIM, 2, 3, 5),
}


@pytest.mark.parametrize("name", ENCODINGS)
def test_encodings_are_those_of_the_definition(name):
    encoder, sets = Encoder(ENCODINGS[name]), documents()
    expected = torch.stack([by_loops(encoder, one, True) for one in sets.tokens.split(sets.lengths.tolist())])
    torch.testing.assert_close(encoder.documents(sets), expected, atol=2e-6, rtol=0)
    torch.testing.assert_close(cells_encoded(encoder, sets.tokens, sets.starts, True), expected, atol=2e-6, rtol=0)
    queries = [tokens(5, 8), tokens(1, 9)]
    expected = torch.stack([by_loops(encoder, one, False) for one in queries])
    torch.testing.assert_close(encoder.queries(queries), expected, atol=2e-6, rtol=0)


@pytest.mark.parametrize("bits", [1, 3, 5, 8])
def test_cells_and_fills_agree_bit_for_bit_with_a_search_of_all_points(bits):
    encoder = Encoder(Encoding(DIM, 4, bits, DIM))
    points = tokens(40, 3)
    cells = encoder.cells(points)
    # every value of a block that is not projected is a copy of a point or a mean: compare which
    numbered = torch.arange(1.0, 41.0)[:, None] * torch.ones(40, DIM)
    starts = torch.tensor([0, 40])
    if cells_kernel.takes(DIM, DIM, bits):
        found = torch.empty(1, encoder.encoding.raw)
        cells_kernel.encode(
            encoder.products(points), numbered, encoder.planes, starts, found, bits=bits, document=True, fill=True
        )
        found = found.view(4, 1 << bits, DIM)[:, :, 0]
        for repetition in range(4):
            for cell in range(1 << bits):
                inside = (cells[:, repetition] == cell).nonzero()[:, 0]
                if not len(inside):
                    far = torch.tensor([bin(int(c) ^ cell).count("1") for c in cells[:, repetition]])
                    assert float(found[repetition, cell]) == float(far.argmin() + 1)


def test_cells_do_not_depend_on_the_batch_and_zero_products_are_not_above_zero():
    encoder = Encoder(Encoding(DIM, 5, 5, 8))
    points = torch.cat([tokens(300, 1), torch.zeros(1, DIM)])
    whole = encoder.cells(points)
    assert torch.equal(whole, torch.cat([encoder.cells(one[None]) for one in points]))
    assert not bool(whole[-1].any())
    exact = (points.double() @ encoder.hyperplanes.double()).view(len(points), 5, 5) > 0
    assert torch.equal(whole, (exact.long() << torch.arange(5)).sum(2))


def test_a_document_of_one_token_is_scored_exactly_and_no_estimate_exceeds_the_similarity():
    encoder = Encoder(Encoding(DIM, 6, 4, DIM))
    sets, queries = documents((1, 9, 25)), [tokens(8, 20), tokens(3, 21)]
    estimates = encoder.queries(queries) @ encoder.documents(sets).t() / 6
    exact = torch.stack([chamfer(query, sets, torch.arange(3)) for query in queries])
    torch.testing.assert_close(estimates[:, 0], exact[:, 0])
    assert bool((estimates <= exact + 1e-5).all())


def test_closed_forms():
    sets = documents((12,))
    points = sets.tokens
    mean = Encoder(Encoding(DIM, 3, 0, DIM))
    torch.testing.assert_close(mean.documents(sets)[0], points.mean(0).repeat(3))
    torch.testing.assert_close(mean.queries([points])[0], points.sum(0).repeat(3))
    encoder = Encoder(Encoding(DIM, 4, 4, 8))
    twice = TokenSets.of([torch.cat([points, points])])
    torch.testing.assert_close(encoder.documents(twice), encoder.documents(sets))
    left, right = tokens(4, 1), tokens(6, 2)
    both = encoder.queries([left]) + encoder.queries([right])
    torch.testing.assert_close(encoder.queries([torch.cat([left, right])]), both, atol=1e-5, rtol=0)
    turned = TokenSets.of([points.flip(0)])
    bare = Encoder(Encoding(DIM, 4, 4, 8, fill=False))
    torch.testing.assert_close(bare.documents(turned), bare.documents(sets), atol=1e-6, rtol=0)


def test_batches_and_seeds(monkeypatch):
    sets, encoder = documents((5, 1, 9, 30, 2, 4)), Encoder(Encoding(DIM, 4, 4, 8, final=50))
    whole = encoder.documents(sets)
    monkeypatch.setattr(muvera, "POINTS", 6)
    assert torch.equal(whole, encoder.documents(sets))
    assert torch.equal(whole, Encoder(Encoding(DIM, 4, 4, 8, final=50)).documents(sets))
    assert not torch.equal(whole, Encoder(Encoding(DIM, 4, 4, 8, final=50, seed=1)).documents(sets))


def test_sketched_products_are_right_on_average_and_both_sides_use_one_sketch():
    sets, query, raw = documents(), [tokens(5, 30)], Encoder(Encoding(DIM, 4, 4, 8))
    exact = (raw.queries(query) @ raw.documents(sets).t())[0]
    sketch, found = Encoder(Encoding(DIM, 4, 4, 8, final=100)), []
    generator = torch.Generator().manual_seed(0)
    for _ in range(200):
        sketch.slots = torch.randint(0, 100, (512,), generator=generator)
        sketch.signs = (torch.randint(0, 2, (512,), generator=generator) * 2 - 1).float()
        found.append((sketch.queries(query) @ sketch.documents(sets).t())[0])
    mean, spread = torch.stack(found).mean(0), torch.stack(found).std(0)
    assert bool(((mean - exact).abs() < 4 * spread / 200**0.5).all())


def test_an_index_of_encodings_refuses_queries_of_other_draws(tmp_path):
    sets, encoder = documents((5, 4, 9)), Encoder(Encoding(DIM, 4, 3, 8))
    index = IndexFolder.create(tmp_path / "i", "int8", encoder.documents(sets), "dot", encoder.encoding.identity)
    index.add(["a", "b", "c"], encoder.documents(sets), encoder.encoding.identity)
    index.check_encoder(Encoding(DIM, 4, 3, 8).identity, "the query")
    with pytest.raises(ConfigError, match="do not mix"):
        index.check_encoder(Encoding(DIM, 4, 3, 8, seed=1).identity, "the query")
    found = index.search(encoder.queries([sets.tokens[5:9]]), 3)
    assert found[0].ids[0] == "b"


def test_bad_input():
    encoder = Encoder(Encoding(DIM, 2, 2, 4))
    with pytest.raises(DataError, match=r"query 1 has shape \[0, 32\]"):
        encoder.queries([tokens(2, 0), torch.zeros(0, DIM)])
    with pytest.raises(NonFiniteError, match="query 0"):
        encoder.queries([torch.full((2, DIM), float("nan"))])
    with pytest.raises(ConfigError, match="bits = 9"):
        Encoding(DIM, bits=9)
    with pytest.raises(ConfigError, match="projected = 33"):
        Encoding(DIM, projected=33)
    with pytest.raises(ConfigError, match="final = 0"):
        Encoding(DIM, final=0)
