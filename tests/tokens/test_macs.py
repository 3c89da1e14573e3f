"""The multiply-add counter against published columns and against torch's own counter."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from lessen.architectures.flops import CPU_ATTENTION_FLOPS
from lessen.tasks.vision.vit import PlainViT
from lessen.tokens import Keep, Merge, RankMerge, reduce_tokens
from lessen.tokens.macs import TowerShape, full_macs, tower_macs

SMALL, BASE = TowerShape.vit(384, 12, 196), TowerShape.vit(768, 12, 196)
LARGE, HUGE = TowerShape.vit(1024, 24, 196), TowerShape.vit(1280, 32, 256, patch=14)


def giga(shape, reducer):
    return tower_macs(shape, reducer.counts(shape.tokens, 1)) / 1e9


def test_full_models():
    assert [round(full_macs(shape) / 1e9, 3) for shape in (SMALL, BASE, LARGE, HUGE)] == [
        4.599,
        17.564,
        61.555,
        167.296,
    ]


def test_the_shipped_diffrate_schedule_of_deit_small():
    pruned = (197, 196, 190, 168, 150, 139, 129, 117, 99, 78, 58, 3)
    merged = (197, 194, 176, 156, 141, 133, 121, 107, 88, 64, 56, 3)
    assert round(giga(SMALL, RankMerge(pruned=pruned, merged=merged)), 3) == 2.905


def test_evits_column():
    wanted = {0.9: 4.0, 0.8: 3.5, 0.7: 3.0, 0.6: 2.6, 0.5: 2.3}
    for rate, published in wanted.items():
        rates = tuple(rate if block in (3, 6, 9) else 1.0 for block in range(12))
        assert round(giga(SMALL, Keep(rates=rates)), 1) == published


@pytest.mark.parametrize(("r", "wanted"), [(0, 17.56), (8, 13.10), (13, 10.37), (16, 8.77)])
def test_tome_on_vit_base(r, wanted):
    assert round(giga(BASE, Merge(removed=(r,) * 12)), 2) == wanted


def test_the_closed_form_is_what_torch_counts():
    model = PlainViT(width=64, depth=4, heads=2).eval()
    images = torch.randn(2, 3, 32, 32)

    def counted():
        counter = FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION_FLOPS)
        with torch.no_grad(), counter:
            model(images)
        return counter.get_total_flops() // 2 // 2

    bare = TowerShape(65, 64, 4, 128)
    rest = counted() - full_macs(bare)
    reducer = Keep(rates=(1.0, 0.5, 1.0, 0.5), fuse=False, scorer="random")
    patch = reduce_tokens(model, reducer)
    assert counted() - rest == tower_macs(bare, reducer.counts(65, 1))
    patch.remove()
    merge = Merge(removed=(8,) * 4)
    reduce_tokens(model, merge)
    closed = tower_macs(bare, merge.counts(65, 1))
    matching = sum((n // 2) * ((n - 1) // 2) * 32 for n in (65, 57, 49, 41))  # the class token is compared with none
    assert counted() - rest == closed + matching
