from __future__ import annotations

import pytest
import torch

from lessen.errors import InputError
from lessen.tasks.vision.vit import PlainViT
from lessen.tokens.attentive import AttentionMap, MovingAverage, attentive_plan, keep_cells, view_of


def tower():
    torch.manual_seed(0)
    return PlainViT(image_size=16, patch_size=4, width=32, depth=3, heads=2, stem=()).eval()


def test_published_counts_and_whole_cells():
    kept = keep_cells(torch.rand(3, 14, 14), 0.5)
    assert kept.flatten(1).sum(1).tolist() == [100, 100, 100]
    assert torch.equal(kept[:, ::2, ::2], kept[:, 1::2, 1::2])
    assert keep_cells(torch.rand(2, 8, 8), 1.0).all()
    with pytest.raises(InputError, match="use cell=1"):
        keep_cells(torch.rand(1, 7, 7), 0.5)


def test_a_hot_cell_stays_on_its_object():
    attention = torch.zeros(1, 14, 14)
    attention[0, 10, 3] = 1.0  # pixels 160..175 by 48..63 of a crop of 224
    view = view_of(attention, torch.tensor([[112, 0, 224, 112]]), 224)
    row, column = divmod(int(view.argmax()), 14)
    assert (row // 2, column // 2) == (3, 3)  # (160 - 112) / 8 = 6, 48 / 8 = 6
    whole = view_of(attention, torch.tensor([[0, 0, 224, 224]]), 224)
    assert torch.allclose(whole, attention, atol=1e-5)


def test_the_map_is_the_mean_class_row_of_all_blocks():
    model, images = tower(), torch.randn(2, 3, 16, 16)
    attention = AttentionMap(model)(model, images)
    rows, x = [], model.embed(images)
    for block in model.blocks:
        normed = block.norm1(x)
        q, k = (block.attn._heads(p(normed)) for p in (block.attn.q_proj, block.attn.k_proj))
        rows.append((q @ k.transpose(-1, -2) / 4).softmax(-1)[:, :, 0].mean(1))
        x = block(x)
    assert torch.allclose(attention, torch.stack(rows).mean(0), atol=1e-5)
    plan = attentive_plan(attention, (4, 4), 0.5, 1, 2)
    assert plan.kept == 1 + 3 * 4
    assert (plan.row[:, 0] == 0).all()


def test_the_average_is_the_closed_form_and_takes_no_gradient():
    model = tower()
    average = MovingAverage(model, momentum=0.9)
    start = model.head.weight.detach().clone()
    with torch.no_grad():
        model.head.weight.add_(1.0)
    for _ in range(5):
        average.update(model)
    assert torch.allclose(average.model.head.weight, start + (1 - 0.9**5), atol=1e-5)
    assert not any(p.requires_grad for p in average.model.parameters())
