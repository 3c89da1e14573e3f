from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from lessen.stored.fields import Segment
from lessen.stored.tables.embedding import TableShape
from lessen.stored.tables.tensor_train import TensorTrainEmbedding
from lessen.train.fit import fit
from lessen.train.optimizers import TableDecay, build_optimizers, clip_norm
from lessen.train.settings import FitSettings
from lessen.train.tables import LazyAdam, RowwiseAdagrad, summed_rows


def sparse(rows: list[int], values: Tensor, size: int) -> Tensor:
    return torch.sparse_coo_tensor(torch.tensor([rows]), values, (size, values.shape[1]))


@pytest.mark.parametrize("kind", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("rows", [[], [3], [2, 2, 2], [4, 0, 4, 1, 0, 4]])
def test_summed_rows_is_coalesce(rows: list[int], kind: torch.dtype) -> None:
    torch.manual_seed(0)
    gradient = torch.sparse_coo_tensor(
        torch.tensor([rows], dtype=torch.int64),
        torch.randint(-4, 5, (len(rows), 3)).to(kind),
        (5, 3),
        check_invariants=True,
    )
    found, expected = summed_rows(gradient), gradient.coalesce()
    assert found.is_coalesced()
    assert torch.equal(found.indices(), expected.indices())
    assert torch.equal(found.values(), expected.values())


def test_lazy_adam_is_adam_when_every_row_is_touched() -> None:
    torch.manual_seed(0)
    lazy = nn.Parameter(torch.randn(6, 3))
    dense = nn.Parameter(lazy.detach().clone())
    ours, theirs = LazyAdam([lazy], lr=0.01), torch.optim.Adam([dense], lr=0.01)
    for _ in range(20):
        gradient = torch.randn(6, 3)
        order = torch.randperm(6).tolist()
        lazy.grad, dense.grad = sparse(order, gradient[order], 6), gradient
        ours.step()
        theirs.step()
    assert torch.allclose(lazy, dense, atol=1e-6)


def test_lazy_adam_keeps_the_moments_of_dense_adam_and_moves_touched_rows_only() -> None:
    torch.manual_seed(0)
    lazy = nn.Parameter(torch.randn(5, 2))
    dense = nn.Parameter(lazy.detach().clone())
    ours, theirs = LazyAdam([lazy], lr=0.01), torch.optim.Adam([dense], lr=0.01)
    for step in range(30):
        rows = [0, step % 5]  # row 0 always, the others now and then
        gradient = sparse(rows, torch.randn(2, 2), 5)
        lazy.grad, dense.grad = gradient, gradient.to_dense()
        before = lazy.detach().clone()
        ours.step()
        theirs.step()
        still = [row for row in range(5) if row not in rows]
        assert torch.equal(lazy[still], before[still])
        for mine, other in (("first", "exp_avg"), ("second", "exp_avg_sq")):
            assert torch.allclose(ours.state[lazy][mine][rows], theirs.state[dense][other][rows], atol=1e-6)
    assert torch.allclose(lazy[0], dense[0], atol=1e-6)


def test_rowwise_adagrad_equals_its_formula() -> None:
    torch.manual_seed(0)
    table = nn.Parameter(torch.randn(4, 3))
    expected, total = table.detach().clone(), torch.zeros(4)
    optimizer = RowwiseAdagrad([table], lr=0.1)
    for _ in range(5):
        first, second, other = torch.randn(3, 3)
        table.grad = sparse([2, 0, 2], torch.stack([first, other, second]), 4)
        optimizer.step()
        for row, gradient in ((2, first + second), (0, other)):
            total[row] += gradient.square().mean()
            expected[row] -= 0.1 * gradient / (total[row].sqrt() + 1e-8)
    assert torch.allclose(table, expected, atol=1e-6)
    assert optimizer.state[table]["sum"].shape == (4,)


@pytest.mark.parametrize("kind", [LazyAdam, RowwiseAdagrad])
def test_dense_gradient_touches_every_row(kind: type[LazyAdam]) -> None:
    table = nn.Parameter(torch.ones(3, 2))
    table.grad = torch.ones(3, 2)
    kind([table], lr=0.1).step()
    assert torch.allclose(table, torch.full((3, 2), 0.9), atol=1e-5)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(50, 4, padding_idx=0)
        self.out = nn.Linear(4, 1)

    def forward(self, ids: Tensor) -> Tensor:
        return self.out(self.table(ids).sum(1)).squeeze(1)


def net() -> Net:
    torch.manual_seed(0)
    return Net()


def batches(epoch: int) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(epoch)
    ids = torch.randint(0, 40, (64, 3), generator=generator)  # rows 40 to 49 are never touched
    return [(ids[i : i + 16], (ids[i : i + 16].sum(1) % 2).float()) for i in range(0, 64, 16)]


def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return nn.functional.binary_cross_entropy_with_logits(model(batch[0]), batch[1])


@torch.no_grad()
def validate(model: nn.Module) -> float:
    return -sum(float(loss(model, batch)) for batch in batches(1))


@pytest.mark.parametrize("updates", ["lazy-adam", "rowwise-adagrad"])
def test_fit_with_sparse_tables_learns_leaves_other_rows_alone_and_restores_the_flag(updates: str) -> None:
    model = net()
    start = model.table.weight.detach().clone()
    before = validate(model)
    settings = FitSettings(epochs=5, learning_rate=0.05, table_updates=updates, table_l2=0.1, patience=5)  # type: ignore[arg-type]
    result = fit(model, batches=batches, loss=loss, validate=validate, settings=settings)
    assert result.best_score > before
    assert torch.equal(model.table.weight[40:], start[40:])
    assert torch.equal(model.table.weight[0], start[0])
    assert not model.table.sparse


@pytest.mark.parametrize("updates", ["lazy-adam", "rowwise-adagrad"])
def test_resume_with_sparse_tables_is_exact(tmp_path: Path, updates: str) -> None:
    settings = FitSettings(epochs=4, learning_rate=0.05, table_updates=updates, patience=9)  # type: ignore[arg-type]
    whole, resumed, path = net(), net(), tmp_path / "state"
    fit(whole, batches=batches, loss=loss, validate=validate, settings=settings)

    def dying(epoch: int) -> list[tuple[Tensor, Tensor]]:
        if epoch == 3:
            raise KeyboardInterrupt
        return batches(epoch)

    with pytest.raises(KeyboardInterrupt):
        fit(net(), batches=dying, loss=loss, validate=validate, settings=settings, checkpoint=path)
    fit(resumed, batches=batches, loss=loss, validate=validate, settings=settings, checkpoint=path)
    assert torch.equal(whole.table.weight, resumed.table.weight)
    assert torch.equal(whole.out.weight, resumed.out.weight)


def test_first_step_is_the_same_dense_or_lazy() -> None:
    """Touched rows move alike: gradient, L2, clipping and Adam's first step agree."""
    models = []
    for updates in ("dense", "lazy-adam"):
        model = net()
        settings = FitSettings(epochs=1, table_l2=0.5, clip_norm=0.05, table_updates=updates)  # type: ignore[arg-type]
        ids = torch.arange(50).view(25, 2)
        fit(model, batches=lambda _, i=ids: [(i, i[:, 0] % 2.0)], loss=loss, validate=lambda _: 0.0, settings=settings)
        models.append(model)
    assert torch.allclose(models[0].table.weight[1:], models[1].table.weight[1:], atol=1e-6)
    assert torch.allclose(models[0].out.weight, models[1].out.weight, atol=1e-6)


def test_clipping_sums_repeated_rows_first() -> None:
    table, dense = nn.Parameter(torch.zeros(3, 1)), nn.Parameter(torch.zeros(1))
    table.grad, dense.grad = sparse([1, 1], torch.tensor([[2.0], [1.0]]), 3), torch.tensor([4.0])
    clip_norm([table, dense], 1.0)  # joint norm 5
    assert table.grad.to_dense().flatten().tolist() == pytest.approx([0.0, 0.6, 0.0], abs=1e-5)
    assert dense.grad.item() == pytest.approx(0.8, abs=1e-5)


def test_decay_without_any_gradient_reaches_a_dense_table() -> None:
    model = net()
    TableDecay(model, 0.5).add_gradient()
    assert torch.allclose(model.table.weight.grad, 0.5 * model.table.weight)  # type: ignore[arg-type]
    assert [type(o).__name__ for o in build_optimizers(model, FitSettings(table_updates="lazy-adam"))] == [
        "Adam",
        "LazyAdam",
    ]


def test_decay_reaches_rows_but_not_the_cores_that_rows_are_products_of() -> None:
    table = TensorTrainEmbedding(TableShape(60, 8, segments=(Segment("a", 0, 10), Segment("b", 10, 50))), [0], 2)
    table.reset(0.1, torch.Generator().manual_seed(0))
    TableDecay(nn.Sequential(table), 0.5).add_gradient()
    assert torch.equal(table.exact.weight.grad, 0.5 * table.exact.weight)  # type: ignore[arg-type]
    assert all(core.weight.grad is None for core in (table.first, table.middle, table.last))


@pytest.mark.parametrize("updates", ["lazy-adam", "rowwise-adagrad"])
def test_padding_stays_where_it_is_and_the_table_is_as_before(updates: str) -> None:
    """Padding in every row of the batch: torch's own mask and ours give the same table."""

    class Masked(nn.Embedding):
        def forward(self, ids: Tensor) -> Tensor:  # a forward of its own keeps torch's mask
            return super().forward(ids)

    tables = []
    for kind in (nn.Embedding, Masked):
        torch.manual_seed(0)
        model = nn.Sequential(kind(7, 3, padding_idx=2), nn.Flatten(), nn.Linear(6, 1))
        ids = torch.tensor([[2, 4], [2, 2], [1, 2], [4, 1]])
        fit(
            model,
            batches=lambda _: [ids, ids[:2]],  # noqa: B023
            loss=lambda m, batch: (m(batch) - 1).square().mean(),
            validate=lambda _: 0.0,
            settings=FitSettings(epochs=3, table_updates=updates, patience=3),  # type: ignore[arg-type]
        )
        assert model[0].padding_idx == 2
        assert not model[0].sparse
        assert torch.equal(model[0].weight[2], torch.zeros(3))
        tables.append(model[0].weight.detach().clone())
    assert torch.equal(*tables)
    assert not torch.equal(tables[0][4], tables[0][0])
