"""Forms of an index: rows come and go, scores follow their codes, and few bits are unbiased."""

from __future__ import annotations

import pytest
import torch

from lessen.stored import bits as packing
from lessen.stored.kernels import few_bits
from lessen.stored.vectors.flat import FlatVectors, Int8Vectors
from lessen.stored.vectors.product import ProductVectors
from lessen.stored.vectors.rotated import RotatedVectors
from lessen.stored.vectors.staged import Reduction, StagedVectors

FORMS = {
    "flat": (FlatVectors, {}),
    "int8": (Int8Vectors, {}),
    "4 bits": (RotatedVectors, {"bits": 4}),
    "2 bits": (RotatedVectors, {"bits": 2}),
    "1 bit": (RotatedVectors, {"bits": 1}),
    "product": (ProductVectors, {"groups": 16}),
}


def drawn(rows, dim=64, seed=0):
    vectors = torch.randn(rows, dim, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(vectors + 0.5, dim=1)


@pytest.mark.parametrize("form", FORMS)
def test_rows_added_in_two_parts_and_removed_score_as_those_that_stayed(form):
    kind, sizes = FORMS[form]
    vectors, queries = drawn(40), drawn(5, seed=1)
    whole, grown = kind.of(vectors, **sizes), kind.fitted(vectors, **sizes)
    assert list(grown.add(vectors[:15])) == list(range(15))
    assert list(grown.add(vectors[15:])) == list(range(15, 40))
    assert torch.equal(grown(queries), whole(queries))
    grown.remove(torch.tensor([0, 39, 7]))
    kept = [n for n in range(40) if n not in (0, 39, 7)]
    torch.testing.assert_close(grown(queries), whole(queries)[:, kept])
    grown.check()
    with pytest.raises(ValueError, match="numbers holds 37"):
        grown.remove(torch.tensor([37]))
    with pytest.raises(ValueError, match="width 64"):
        grown.add(torch.zeros(2, 63))


@pytest.mark.parametrize("form", FORMS)
def test_a_loaded_twin_is_equal_and_bytes_are_those_of_the_tensors(form):
    kind, sizes = FORMS[form]
    made, queries = kind.of(drawn(30), **sizes), drawn(4, seed=1)
    twin = kind.from_config(made.config())
    twin.load_state_dict(made.state_dict())
    assert torch.equal(twin(queries), made(queries))
    held = sum(tensor.nbytes for tensor in made.state_dict().values())
    assert held == 30 * made.row_bytes + made.shared_bytes
    assert made.row_bytes == {"flat": 256, "int8": 68, "4 bits": 36, "2 bits": 20, "1 bit": 12, "product": 16}[form]


@pytest.mark.parametrize("form", ["int8", "product"])
def test_scores_are_inner_products_with_what_codes_stand_for(form):
    kind, sizes = FORMS[form]
    made, queries = kind.of(drawn(300), **sizes), drawn(4, seed=1)
    torch.testing.assert_close(made(queries), queries @ made.dequantise().t(), rtol=0, atol=3e-3)


def test_few_bits_are_scored_without_bias_and_better_with_every_bit():
    vectors, queries = drawn(400, 128), drawn(20, 128, seed=1)
    exact, errors = queries @ vectors.t(), []
    for bits in (1, 2, 4):
        found = torch.stack([RotatedVectors.of(vectors, seed, bits=bits)(queries) for seed in range(12)])
        errors.append(float((found - exact).pow(2).mean().sqrt()))
        bias = float((found.mean(0) - exact).mean().abs())
        assert bias < 4 * errors[-1] / (12 * 400) ** 0.5
    assert errors[0] > 1.8 * errors[1] > 4 * errors[2]
    # RaBitQ: the error of one bit is about sqrt((pi / 2 - 1) / dim) of the length of the rest
    rest = (vectors - vectors.mean(0)).norm(dim=1).mean()
    assert errors[0] == pytest.approx(float(rest) * ((torch.pi / 2 - 1) / 128) ** 0.5, rel=0.2)


@pytest.mark.parametrize("dim", [12, 50, 300])
def test_a_turn_keeps_lengths_at_any_width(dim):
    vectors = drawn(30, dim)
    made = RotatedVectors.of(vectors, bits=4)
    torch.testing.assert_close(made.turned(vectors).norm(dim=1), vectors.norm(dim=1))
    assert float((made.dequantise() - vectors).norm(dim=1).mean()) < 0.15


@pytest.mark.parametrize("form", FORMS)
def test_a_zero_vector_and_a_constant_one_are_rows_like_others(form):
    kind, sizes = FORMS[form]
    vectors = drawn(20)
    vectors[3], vectors[4] = 0.0, 0.5
    assert bool(kind.of(vectors, **sizes)(drawn(2)).isfinite().all())


def test_stages_order_the_candidates_of_few_bits_again():
    vectors, queries = drawn(800, 48), drawn(30, 48, seed=1)
    exact = (queries @ vectors.t()).topk(10, dim=1).indices

    def recall(index):
        found = index.search(queries, 10)[1]
        return float((found[:, :, None] == exact[:, None, :]).any(2).float().mean())

    bits = RotatedVectors.of(vectors, bits=1)
    staged = StagedVectors.around(RotatedVectors.of(vectors, bits=1), Int8Vectors.of(vectors), widen=20)
    assert recall(bits) < 0.7 < 0.95 < recall(staged)
    assert staged.row_bytes == bits.row_bytes + 52
    assert staged.search(queries, 800)[1].sort(1).values.tolist() == [list(range(800))] * 30
    staged.add(vectors[:3])
    staged.remove(torch.tensor([1]))
    staged.check()
    assert staged.rows == staged.coarse.rows == staged.fine.rows == 802


def test_principal_directions_keep_products_that_lie_in_few_directions():
    basis = torch.linalg.qr(torch.randn(64, 5, generator=torch.Generator().manual_seed(0)))[0]
    vectors = drawn(50, 5) @ basis.t()
    small = Reduction.principal(vectors, 5)(vectors)
    torch.testing.assert_close(small @ small.t(), vectors @ vectors.t(), rtol=1e-4, atol=1e-5)
    assert torch.equal(Reduction(64, 8, False)(vectors), vectors[:, :8])


def test_stages_of_other_widths_are_refused():
    with pytest.raises(ValueError, match="other widths"):
        StagedVectors.around(Int8Vectors.of(drawn(4, 8)), reduction=Reduction(16, 4, False))
    with pytest.raises(ValueError, match="fine stage has width 9"):
        StagedVectors.around(Int8Vectors.of(drawn(4, 8)), Int8Vectors.of(drawn(4, 9)))
    with pytest.raises(ValueError, match="no stage"):
        StagedVectors.from_config({"rows": 0, "dim": 8, "coarse": {"kind": "half-linear", "config": {}}})
    with pytest.raises(ValueError, match="equal groups"):
        ProductVectors(0, 10, 3)


@pytest.mark.parametrize("bits", [1, 2, 4])
@pytest.mark.parametrize(("dim", "rows"), [(128, 100), (192, 67), (256, 96), (384, 100), (512, 81), (1024, 70)])
def test_packed_codes_are_multiplied_exactly_without_being_unpacked(bits, dim, rows):
    generator = torch.Generator().manual_seed(0)
    values = torch.randint(0, 1 << bits, (rows, dim), generator=generator, dtype=torch.uint8)
    queries = torch.randint(-127, 128, (3, dim), generator=generator, dtype=torch.int8)
    codes = packing.pack(values, bits)
    if not few_bits.takes(codes, queries):
        pytest.skip("no VNNI of 512 bits, or rows that do not fill vectors")
    scales, offsets = torch.rand(3, generator=generator), torch.randn(3, generator=generator)
    factors = torch.rand(rows, generator=generator)
    found = few_bits.scores(queries, codes, bits, scales, factors, offsets)
    products = queries.long() @ (2 * values.long() - ((1 << bits) - 1)).t()
    assert torch.equal(found, products.float() * scales[:, None] * factors + offsets[:, None])


def test_scores_are_the_same_with_and_without_the_kernel(monkeypatch):
    made, queries = RotatedVectors.of(drawn(80, 128), bits=4), drawn(3, 128, seed=1)
    found = made(queries)
    monkeypatch.setattr(few_bits, "takes", lambda *_: False)
    torch.testing.assert_close(made(queries), found)
