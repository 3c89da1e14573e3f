"""Leading tokens - class token, distillation token, registers - are never merged, moved or dropped, at r > 0."""

from __future__ import annotations

import pytest
import torch

from lessen.tokens import Keep, Merge, RankMerge, plans, reduce_tokens
from lessen.tokens.rows import Plan
from towers import IMAGES, build, output

REDUCERS = {
    "merge": Merge(removed=(8,) * 4),
    "hidden": Merge(removed=(8,) * 4, metric="hidden"),
    "random": Merge(removed=(8,) * 4, metric="random"),
    "fuse": Keep(rates=(1.0, 0.6, 1.0, 0.6), scorer="received_attention"),
    "drop": Keep(rates=(1.0, 0.6, 1.0, 0.6), fuse=False, scorer="received_attention"),
    "tail": RankMerge(pruned=(60, 50, 40, 30), merged=(55, 45, 35, 20), matching="tail"),
    "pairs": RankMerge(pruned=(60, 50, 40, 30), merged=(55, 45, 35, 25), matching="pairs"),
}
LEADING = {
    "plain": 1,
    "vit-classifier": 1,
    "clip": 1,
    "dinov2": 1,
    "timm": 1,
    "registers": 5,
    "deit": 2,
    "mae": 1,
    "dinov3": 5,
}


def host(name):
    if name not in ("deit", "mae"):
        return build(name)
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    shape = {"hidden_size": 48, "num_hidden_layers": 4, "num_attention_heads": 3, "intermediate_size": 96}
    if name == "mae":
        config = transformers.ViTMAEConfig(**shape, image_size=64, patch_size=8, mask_ratio=0.0)
        return transformers.ViTMAEModel(config).eval()
    return transformers.DeiTModel(transformers.DeiTConfig(**shape, image_size=64, patch_size=8)).eval()


@pytest.mark.parametrize("kind", REDUCERS)
@pytest.mark.parametrize("name", LEADING)
def test_every_leading_token_stays_in_place_and_alone(name, kind):
    model, protected = host(name), LEADING[name]
    patch = reduce_tokens(model, REDUCERS[kind], tokens=64 + protected)
    output(model, IMAGES[:2])
    group = patch.state.group
    assert group[:, :protected].tolist() == [list(range(protected))] * 2
    assert ((group >= 0) & (group < protected)).sum(1).tolist() == [protected] * 2
    assert group.amax() == REDUCERS[kind].counts(64 + protected, protected)[-1] - 1


@pytest.mark.parametrize("protected", range(7))
@pytest.mark.parametrize("tokens", [15, 16])
def test_merging_again_and_again_keeps_leading_tokens_first(protected, tokens):
    x = torch.randn(3, tokens, 4, generator=torch.Generator().manual_seed(protected))
    x[..., 0] = torch.arange(tokens)
    for removed in (2, 1, 1):
        plan = plans.merge_similar(x, removed, protected)
        assert isinstance(plan, Plan)
        assert all(sorted(set(row)) == list(range(plan.kept)) for row in plan.row.tolist())  # no output is empty
        x = plan.features(x)
        assert x[:, :protected, 0].tolist() == [list(range(protected))] * 3


def test_equal_scores_do_not_move_leading_tokens():
    """A sort that lifts leading tokens to infinity gives them in any order."""
    scores, hidden = torch.zeros(2, 40), torch.randn(2, 40, 4)
    plan = plans.rank_and_merge(scores, hidden, 30, 20, 5)
    assert plan.row[:, :5].tolist() == [[0, 1, 2, 3, 4]] * 2
