"""Choosing tokens of one picture: against references that are slow and plain."""

from __future__ import annotations

import pytest
import torch

from lessen.architectures.visual_host import find_visual_host
from lessen.tokens.visual import Stage, VisualPruning
from lessen.tokens.visual.choose import best, determinant, even, on_grid, to_unit
from lessen.tokens.visual.row import last_row, mean_attention
from seeing_models import prompts, seeing


def plain_determinant(features, relevance, keep):
    """Try every token at every step and keep the one with the largest determinant, float64."""
    unit = torch.nn.functional.normalize(features.double(), dim=-1)
    kernel = relevance[:, None] * (unit @ unit.T) * relevance[None]
    chosen = []
    for _ in range(keep):
        left = [i for i in range(len(unit)) if i not in chosen]
        values = [torch.linalg.det(kernel[[*chosen, i]][:, [*chosen, i]]) for i in left]
        chosen.append(left[int(torch.stack(values).argmax())])
    return sorted(chosen)


@pytest.mark.parametrize("seed", range(4))
def test_the_determinantal_choice_is_the_greedy_maximum_of_the_determinant(seed):
    draw = torch.Generator().manual_seed(seed)
    features, relevance = torch.randn(30, 16, generator=draw), torch.rand(30, generator=draw).double() + 0.1
    assert determinant(features, relevance, 9).tolist() == plain_determinant(features, relevance, 9)
    alike = determinant(torch.cat([features[:3]] * 4), None, 3)  # copies of three tokens: one of each
    assert sorted(alike.remainder(3).tolist()) == [0, 1, 2]
    assert len(determinant(torch.cat([features[:3]] * 4), None, 8).unique()) == 8  # beyond the rank


def test_even_and_grid_places():
    assert even(16, 4).tolist() == [2, 6, 10, 14]
    assert even(9, 9).tolist() == list(range(9))
    assert even(5, 0).tolist() == []
    assert on_grid(torch.arange(15), (3, 5), 2).tolist() == [0, 2, 4, 10, 12, 14]
    assert len(on_grid(torch.arange(729), (27, 27), 3)) == 81
    assert on_grid(torch.tensor([0, 4, 5, 8]), None, 2).tolist() == [0, 1, 3]
    assert best(torch.tensor([1.0, 3.0, 3.0, 2.0]), 2).tolist() == [1, 2]
    assert to_unit(torch.tensor([2.0, 4.0, 3.0])).tolist() == [0.0, 1.0, 0.5]


def test_published_counts():
    feather = VisualPruning((Stage(8, 1 - 0.7, stride=3), Stage(16, (1 - 0.7) ** 2)), rope=False)
    assert feather.stages[0].keep(729) == 218
    assert feather.stages[1].keep(275) == 24
    assert [Stage(2, 1 - r).keep(576) for r in (0.875, 0.75, 0.5, 0.25)] == [72, 144, 288, 432]
    assert VisualPruning.from_config(feather.config()) == feather


@pytest.mark.parametrize("name", ["llava", "qwen2-vl"])
def test_one_row_equals_the_eager_attention_map(name):
    """The map's last row, cut to the picture and normalised again by head."""
    model, batch = seeing(name), prompts(name, (1,))
    model.set_attn_implementation("eager")
    host = find_visual_host(model)
    block, seen = host.blocks[1], {}

    def look(_module, arguments, keywords):
        seen.update(keywords, hidden=arguments[0])

    handle = block.module.register_forward_pre_hook(look, with_kwargs=True)
    with torch.no_grad():
        maps = model(**batch, output_attentions=True).attentions[1]
        where = torch.isin(batch["input_ids"], torch.tensor(host.placeholders))
        (logits,) = last_row(host, block, seen["hidden"], where, seen["position_embeddings"])
        (plain,) = last_row(host, block, seen["hidden"], where, None)
    handle.remove()
    row = maps[0, :, -1][:, where[0]]
    assert torch.allclose(logits.softmax(-1), row / row.sum(-1, keepdim=True), atol=1e-6)
    assert torch.allclose(mean_attention(logits).sum(), torch.tensor(1.0))
    assert not torch.allclose(plain, logits, atol=1e-3)  # positions matter


def test_more_tokens_than_directions_are_filled_by_relevance():
    features = torch.randn(30, 4, generator=torch.Generator().manual_seed(0))
    relevance = torch.linspace(0.1, 1, 30)
    chosen = determinant(features, relevance, 12)
    assert len(chosen.unique()) == 12
    first = set(determinant(features, relevance, 4).tolist())
    rest = [place for place in range(29, -1, -1) if place not in first][:8]
    assert set(chosen.tolist()) == first | set(rest)
    same = determinant(torch.ones(5, 3), None, 3)
    assert same.tolist() == [0, 1, 2]
