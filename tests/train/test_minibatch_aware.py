from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from lessen.data.columns import Columns, IdField, Layout
from lessen.errors import TaskError
from lessen.stored.fields import Segment
from lessen.train.fit import fit
from lessen.train.minibatch_aware import MiniBatchAware
from lessen.train.settings import FitSettings


def table(rows: int = 6) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Embedding(rows, 3, padding_idx=0)).double()


def run(model: nn.Sequential, ids: list[list[int]], hook: MiniBatchAware, **settings: object) -> None:
    """Train on nothing but the penalty."""
    chosen = FitSettings(epochs=1, optimizer="sgd", learning_rate=0.1, clip_norm=None, **settings)  # type: ignore[arg-type]
    batches = [torch.tensor(batch) for batch in ids]
    fit(
        model,
        batches=lambda _: batches,
        loss=lambda m, b: 0.0 * m(b).sum(),
        validate=lambda _: 0.0,
        settings=chosen,
        hooks=(hook,),
    )


def test_one_batch_pulls_its_distinct_ids_by_their_count_in_the_training_set() -> None:
    model, counts = table(), torch.tensor([0, 4, 2, 1, 7, 0])
    start = model[0].weight.detach().clone()
    run(model, [[1, 1, 2, 0]], MiniBatchAware("0", counts, 0.5))
    expected = start.clone()
    expected[1] *= 1 - 0.1 * 0.5 / 4
    expected[2] *= 1 - 0.1 * 0.5 / 2
    assert torch.allclose(model[0].weight, expected, atol=1e-7)


def test_over_an_epoch_of_single_rows_it_sums_to_plain_l2() -> None:
    """Eq. 4: sum over batches of alpha_mj / n_j ||w_j||^2 = ||W||^2 for fixed W, over the ids that occur."""
    model = table()
    ids = torch.tensor([1, 2, 2, 3, 3, 3])
    layout = Layout((IdField("a", "categorical", 0, 1, "a"),), (Segment("a", 1, 5),))
    counts = Columns(ids[:, None].int(), torch.zeros(6), layout).occurrences()
    assert counts.tolist() == [0, 1, 2, 3, 0, 0]
    hook = MiniBatchAware("0", counts, 2.0)
    hook.start(model)
    total = torch.zeros((), dtype=torch.float64)
    for one in ids:
        model(one)
        total = hook.loss(model, one, total)
    assert float(total.detach()) == pytest.approx(float(model[0].weight[1:4].detach().square().sum()))


def test_sparse_and_dense_tables_agree() -> None:
    counts = torch.tensor([0, 4, 2, 1, 7, 0])
    gradients: list[Tensor] = []
    for sparse in (False, True):
        model = table()
        model[0].sparse = sparse  # type: ignore[assignment]
        hook = MiniBatchAware("0", counts, 0.5)
        hook.start(model)
        model(torch.tensor([3, 4, 4]))
        hook.loss(model, None, torch.zeros(())).backward()  # type: ignore[no-untyped-call]
        gradient = model[0].weight.grad
        gradients.append(gradient.to_dense() if gradient.is_sparse else gradient)  # type: ignore[union-attr, operator]
    assert torch.allclose(*gradients)


def test_watching_ends_with_the_training_even_when_it_fails() -> None:
    model = table()
    with pytest.raises(TaskError, match="train split is empty"):
        run(model, [], MiniBatchAware("0", torch.ones(6), 0.5))
    assert not model[0]._forward_pre_hooks


def test_unknown_table_is_named() -> None:
    with pytest.raises(TaskError, match=r"no nn.Embedding 'vectors.table' of 6 rows"):
        run(table(), [[1]], MiniBatchAware("vectors.table", torch.ones(6), 0.5))
