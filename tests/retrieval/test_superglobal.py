"""SuperGlobal: pooling in closed form, and an order that follows the paper's formula, candidate by candidate."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from lessen.errors import ConfigError, NothingMatchedError
from lessen.methods.retrieval.product import ProductIndex
from lessen.methods.retrieval.rabitq import RaBitQ
from lessen.methods.retrieval.shorter import ShorterIndex
from lessen.methods.retrieval.superglobal import SuperGlobal
from lessen.recipe import Recipe
from lessen.retrieval.pooling import gem, regional_gem, scale_gem
from lessen.stored.vectors.flat import FlatVectors, Int8Vectors
from lessen.stored.vectors.refined import RefinedVectors, refined_scores
from lessen.tasks.retrieval.vectors import VectorsOptions, VectorsTask


def drawn(*shape, seed=0):
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).abs(), dim=-1)


def by_loops(query, rows, neighbours, beta):
    refined = []
    for i, row in enumerate(rows):
        others = sorted((j for j in range(len(rows)) if j != i), key=lambda j: -float(row @ rows[j]))[:neighbours]
        weights = [1.0, *(beta * float(row @ rows[j]) for j in others)]
        total = sum(w * rows[j] for w, j in zip(weights, [i, *others], strict=True))
        refined.append(total / sum(weights))
    refined = torch.stack(refined)
    first = refined @ query
    best = first.topk(neighbours + 1).indices
    return (first + refined @ refined[best].amax(0)) / 2


def test_scores_are_those_of_the_formula_and_do_not_depend_on_the_order_of_candidates():
    rows, query = drawn(30, 12), drawn(12, seed=1)
    found = refined_scores(query[None], rows[None], 4, 0.15)[0]
    torch.testing.assert_close(found, by_loops(query, rows, 4, 0.15))
    turn = torch.randperm(30, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(refined_scores(query[None], rows[turn][None], 4, 0.15)[0], found[turn])


def test_without_neighbours_weight_the_first_half_is_the_old_score():
    rows, query = drawn(20, 8), drawn(8, seed=1)
    old = rows @ query
    again = rows @ rows[old.topk(4).indices].amax(0)
    torch.testing.assert_close(refined_scores(query[None], rows[None], 3, 0.0)[0], (old + again) / 2)
    alone = rows @ rows[old.argmax()]
    torch.testing.assert_close(refined_scores(query[None], rows[None], 0, 0.5)[0], (old + alone) / 2)


def test_a_copy_does_not_take_the_place_of_the_row_itself():
    rows = drawn(10, 6)
    rows[3] = rows[2]
    found = refined_scores(rows[:1], rows[None], 2, 0.3)
    torch.testing.assert_close(found[0, 2], found[0, 3])


def test_rows_behind_the_first_keep_their_order_below_them():
    rows, queries = drawn(50, 16), drawn(4, 16, seed=2)
    flat = FlatVectors.of(rows)
    refined = RefinedVectors.around(flat, 10, 3, 0.15)
    before, after = flat.search(queries, 50)[1], refined.search(queries, 50)[1]
    assert torch.equal(after[:, 10:], before[:, 10:])
    assert torch.equal(after[:, :10].sort().values, before[:, :10].sort().values)
    assert not torch.equal(after, before)
    refined.add(drawn(3, 16, seed=5))
    refined.remove(torch.tensor([0]))
    refined.check()
    assert refined.inner.rows == refined.rows == 52


def test_any_index_is_refined_once_and_its_stages_are_not():
    task = VectorsTask(VectorsOptions(rows=300, dim=32, queries=40))
    for first in (None, RaBitQ(bits=4, fine="int8"), ProductIndex(fine="int8")):
        made = Recipe([*([first] if first else []), SuperGlobal(first=50)]).apply(task.reference(), task)[0]
        assert isinstance(made.index, RefinedVectors)
        assert sum(isinstance(one, RefinedVectors) for one in made.modules()) == 1
        with pytest.raises(NothingMatchedError, match="not refined yet"):
            Recipe([SuperGlobal()]).apply(made, task)
    short = Recipe([ShorterIndex()]).apply(task.reference(), task)[0]
    with pytest.raises(NothingMatchedError, match="rows of full width"):
        Recipe([SuperGlobal()]).apply(short, task)
    with pytest.raises(ConfigError, match="width = 5 does not divide"):
        Recipe([ProductIndex(width=5)]).apply(task.reference(), task)


def test_refining_int8_codes_costs_no_byte():
    rows = drawn(40, 16)
    index = Int8Vectors.of(rows)
    refined = RefinedVectors.around(index, 20, 3, 0.15)
    assert refined.row_bytes == index.row_bytes
    assert refined.shared_bytes == 0


def test_generalised_means():
    maps = torch.rand(2, 3, 7, 9, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(gem(maps, 1.0), maps.mean(dim=(2, 3)))
    torch.testing.assert_close(gem(maps, 200.0), maps.amax(dim=(2, 3)), rtol=0.03, atol=0)
    assert bool(gem(1e6 * maps, 100.0).isfinite().all())
    torch.testing.assert_close(gem(maps, 3.0), (maps**3).mean(dim=(2, 3)) ** (1 / 3))
    with pytest.raises(ConfigError, match="power = 0"):
        gem(maps, 0)


def test_regional_means_of_constant_maps_are_the_maps():
    constant = torch.full((1, 2, 6, 6), 0.7)
    torch.testing.assert_close(regional_gem(constant), constant)
    maps = torch.rand(1, 2, 6, 8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(regional_gem(maps, 1.0, 1), maps)
    padded = F.pad(maps, (2, 2, 2, 2), mode="reflect")
    window = padded[0, 1, 2:7, 3:8]
    expected = 0.5 * (window**2.5).mean() ** (1 / 2.5) + 0.5 * maps[0, 1, 2, 3]
    torch.testing.assert_close(regional_gem(maps)[0, 1, 2, 3], expected)
    with pytest.raises(ConfigError, match="too small"):
        regional_gem(torch.rand(1, 1, 2, 2))


def test_sizes_are_merged():
    one, other = drawn(3, 8), drawn(3, 8, seed=1)
    torch.testing.assert_close(scale_gem([2 * one]), one)
    torch.testing.assert_close(scale_gem([one, other]), F.normalize(torch.maximum(one, other), dim=1))
    torch.testing.assert_close(scale_gem([one, one], 10.0), one, atol=1e-5, rtol=0)
