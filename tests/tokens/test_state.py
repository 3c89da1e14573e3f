from __future__ import annotations

import pytest
import torch

from lessen.errors import InputError
from lessen.tokens import plans
from lessen.tokens.state import TokenState, follow, require_nothing_dropped


def test_the_group_map_equals_the_chain_of_unmerges():
    x, state = torch.randn(2, 21, 4), TokenState()
    chain = []
    y = x
    for removed in (6, 4, 2):
        plan = plans.merge_pairs(y.shape[1], *plans.match_alternating(y, removed, 1))
        y, state = state.apply(plan, y)
        chain.append(plan)
    back = y
    for plan in reversed(chain):
        back = back.gather(1, plan.row[..., None].expand(-1, -1, 4))
    assert torch.equal(state.unmerge(y), back)
    assert state.size.sum(1).tolist() == [21.0, 21.0]
    # unmerge then mean over the input tokens is the size-weighted mean
    weighted = (y * state.size[..., None]).sum(1) / 21
    assert torch.allclose(state.unmerge(y).mean(1), weighted, atol=1e-6)


def test_a_fresh_state_changes_nothing():
    x = torch.randn(1, 5, 2)
    assert TokenState().unmerge(x) is x
    assert TokenState().bias() is None


def test_dropped_tokens_stay_dropped():
    group = torch.tensor([[0, -1, 1, 2]])
    assert follow(group, torch.tensor([[0, -1, 1]])).tolist() == [[0, -1, -1, 1]]
    with pytest.raises(InputError, match="cannot be restored"):
        require_nothing_dropped(True, "evit")
