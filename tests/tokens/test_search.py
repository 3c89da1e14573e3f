from __future__ import annotations

import pytest
import torch
from torch import nn

from lessen.errors import InputError
from lessen.tasks.vision.vit import PlainViT
from lessen.tokens import RankMerge, reduce_tokens
from lessen.tokens.macs import TowerShape, full_macs, tower_macs
from lessen.tokens.search import Rate, RateSearch, find_rates, merge_tail

SHAPE = TowerShape(17, 32, 3, 64)


def tower():
    torch.manual_seed(0)
    return PlainViT(image_size=16, patch_size=4, width=32, depth=3, heads=2, stem=()).eval()


def search_on(model, target=0.7):
    return RateSearch(model, SHAPE, granularity=1, target=target)


def test_survival_falls_with_rank_and_spares_the_class_token():
    rate = Rate(16, 1, 9.0)
    survival = rate.survival(17).detach()
    assert survival[0] == pytest.approx(1.0)
    assert (survival[1:] <= survival[:-1] + 1e-6).all()
    # its sum over the patches is the expected count
    assert float(survival[1:].sum()) == pytest.approx(
        float((rate.probabilities() * rate.candidates).sum().detach()), rel=1e-5
    )


def test_masks_are_hard_and_differentiable():
    rate = Rate(16, 1, 9.0)
    mask = rate.mask(rate.kept(), 14, 17)
    kept = int(rate.kept())
    assert mask.detach().round().tolist() == [1.0] * kept + [0.0] * (14 - kept) + [1.0] * 3
    mask[:14].sum().backward()
    assert rate.logits.grad.abs().sum() > 0


def test_the_count_starts_at_the_target_and_its_gradient_is_right():
    search = search_on(tower())
    full = full_macs(SHAPE)
    assert float(search.macs().detach()) / full == pytest.approx(0.7, abs=0.08)
    search.macs().backward()
    rate = search.merge["2"]
    step = 1e-2

    def smooth(shift):
        """The part of the count that this rate decides, without the rounding up."""
        logits = rate.logits.detach() + shift
        expected = (logits.softmax(0) * rate.candidates).sum()
        return float(2 * expected * SHAPE.width * SHAPE.hidden)

    for index in (0, 5, 10):
        shift = torch.zeros(16)
        shift[index] = step
        slope = (smooth(shift) - smooth(-shift)) / (2 * step)
        assert float(rate.logits.grad[index]) == pytest.approx(slope, rel=1e-2, abs=5.0)


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ({"1": (11.0, 16.0), "2": (7.0, 16.0)}, RankMerge(pruned=(17, 12, 8), merged=(17, 12, 8))),
        ({"1": (14.0, 10.0), "2": (9.0, 6.0)}, RankMerge(pruned=(17, 15, 10), merged=(17, 11, 7))),
    ],
    ids=["pruning", "merging"],
)
def test_masked_reduction_equals_the_real_one(counts, expected, monkeypatch):
    """With hard masks, the search's forward is that of the model whose tokens are removed (first case) or merged.

    Merged tokens count for 1 at least in the search only, so that floor is taken away here.
    """
    monkeypatch.setattr("lessen.tokens.search.FLOOR", 0.0)
    model, images = tower(), torch.randn(2, 3, 16, 16)
    search = search_on(model)
    with torch.no_grad():
        for layer, (pruned, merged) in counts.items():
            for rate, count in ((search.prune[layer], pruned), (search.merge[layer], merged)):
                rate.logits.copy_(torch.where(rate.candidates == count, 200.0, -200.0))
        with search:
            masked = model(images)
        assert search.reducer() == expected
        plain = model(images)
        patch = reduce_tokens(model, expected)
        reduced = model(images)
        patch.remove()
    assert torch.allclose(masked, reduced, atol=1e-4)
    assert not torch.allclose(plain, reduced, atol=1e-4)


def test_the_tail_stays_in_place_and_sizes_never_shrink():
    x, size = torch.randn(2, 9, 4), torch.ones(2, 9)
    merged, sizes = merge_tail(x, size, 4, 7)
    assert torch.equal(merged[:, 4:], x[:, 4:])
    assert (sizes[:, :4] >= 1).all()
    assert torch.equal(sizes[:, 4:], size[:, 4:])


def test_the_search_finds_where_tokens_do_not_matter():
    """The classifier reads patches that only the last block moves: the budget holds and the loss is no worse."""
    model, generator = tower(), torch.Generator().manual_seed(0)
    model.requires_grad_(False)
    images = torch.randn(16, 3, 16, 16, generator=generator)
    labels = model(images).argmax(1)
    search = search_on(model, target=0.75)

    def loss(batch):
        return nn.functional.cross_entropy(model(batch), labels)

    history = find_rates(search, loss, lambda _: [images] * 7, target=0.75, steps=60, learning_rate=0.1, weight=100.0)
    assert len(history) == 60
    counts = search.reducer().counts(17, 1)
    # counts are whole tokens of few: one token of one block is 2 % here
    assert tower_macs(SHAPE, counts) / full_macs(SHAPE) == pytest.approx(0.75, abs=0.03)
    assert not any("forward" in block.__dict__ for block in model.blocks)
    assert all(p.grad is None for p in model.parameters())


def test_a_tower_without_class_token_is_refused():
    from towers import build

    with pytest.raises(InputError, match="ranks by the class token"):
        RateSearch(build("timm-mean"), TowerShape(64, 48, 4, 96), granularity=1, target=0.5)


def test_what_is_merged_counts_for_one_token_at_least():
    """The floor of the published search: an unlike tail token adds 1 to its head and not its cosine."""
    x = torch.tensor([[[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [0, 0.6, 0.8], [0, -1, 0.1]]])
    _, size = merge_tail(x, torch.tensor([[1.0, 2, 3, 4, 1]]), 3, 5)
    assert size[0, :3].tolist() == pytest.approx([1, 2, 3 + 4 * 0.8 + 1])
