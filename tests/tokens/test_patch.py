from __future__ import annotations

import copy

import pytest
import torch

from lessen.errors import InputError
from lessen.tokens import Keep, Merge, RankMerge, reduce_tokens
from lessen.tokens.reducers import Pool
from towers import IMAGES, build, output

REDUCERS = [
    Merge(removed=(6,) * 4),
    Merge(removed=(6,) * 4, metric="hidden"),
    Merge(removed=(6,) * 4, metric="random", seed=3),
    Merge(removed=(6,) * 4, proportional=False),
    Keep(rates=(1.0, 0.6, 1.0, 0.6)),
    Keep(rates=(1.0, 0.6, 1.0, 0.6), fuse=False),
    Keep(rates=(1.0, 0.6, 1.0, 0.6), fuse=False, scorer="class_similarity"),
    Keep(rates=(1.0, 0.6, 1.0, 0.6), fuse=False, scorer="received_attention"),
    Keep(rates=(1.0, 0.6, 1.0, 0.6), fuse=False, scorer="random", seed=1),
    RankMerge(pruned=(65, 50, 40, 30), merged=(65, 45, 35, 20)),
    RankMerge(pruned=(65, 50, 40, 30), merged=(55, 45, 35, 20), matching="pairs"),
    Pool(blocks=4, at=1, grid=(8, 8), target=(4, 4)),
]
NAMES = [f"{reducer.kind}-{number}" for number, reducer in enumerate(REDUCERS)]


@pytest.mark.parametrize("reducer", REDUCERS, ids=NAMES)
def test_each_image_is_reduced_on_its_own(reducer):
    model = build("plain")
    patch = reduce_tokens(model, reducer)
    together = output(model)
    assert patch.state.group.amax() == reducer.counts(65, 1)[-1] - 1
    order = torch.tensor([2, 0, 1])
    assert torch.allclose(output(model, IMAGES[order]), together[order], atol=1e-6)
    assert torch.allclose(output(model, IMAGES[:1]), together[:1], atol=1e-5)
    assert torch.isfinite(together).all()


@pytest.mark.parametrize("reducer", REDUCERS, ids=NAMES)
def test_the_class_token_stays_first_and_alone(reducer):
    model = build("plain")
    patch = reduce_tokens(model, reducer)
    output(model)
    group = patch.state.group
    assert (group[:, 0] == 0).all()
    assert ((group == 0).sum(1) == 1).all()


@pytest.mark.parametrize("reducer", REDUCERS, ids=NAMES)
def test_gradients_reach_every_weight(reducer):
    model = build("plain").train()
    reduce_tokens(model, reducer)
    model(IMAGES).square().mean().backward()
    without = [name for name, p in model.named_parameters() if p.grad is None or not torch.isfinite(p.grad).all()]
    assert without == []


def test_a_copy_stays_patched_and_apart():
    model = build("clip")
    patch = reduce_tokens(model, Merge(removed=(6,) * 4))
    twin = copy.deepcopy(model)
    patch.remove()
    assert output(model).shape[1] == 65
    assert output(twin).shape[1] == 41


def test_repeated_calls_start_afresh():
    model = build("vit-classifier")
    reduce_tokens(model, Merge(removed=(6,) * 4))
    assert torch.equal(output(model), output(model))


def test_r_too_large_is_refused_and_what_fits_is_named():
    with pytest.raises(
        InputError, match="cannot merge 40 of 65 .* largest constant r for 65 tokens and 4 blocks is 16"
    ):
        reduce_tokens(build("plain"), Merge(removed=(40,) * 4), tokens=65)
    greedy = RankMerge(pruned=(65, 60, 20, 9), merged=(65, 30, 20, 9), matching="pairs")
    with pytest.raises(InputError, match="block 1 cannot merge 30 pairs of 60"):
        reduce_tokens(build("plain"), greedy, tokens=65)


def test_schedules_that_do_not_fit_the_tower_are_refused():
    with pytest.raises(InputError, match="speaks of 3 blocks, .* has 4"):
        reduce_tokens(build("plain"), Merge(removed=(4,) * 3))
    with pytest.raises(InputError, match="3 pruning counts for 4"):
        RankMerge(pruned=(5,) * 3, merged=(5,) * 4)
    with pytest.raises(InputError, match="drops tokens"):
        reduce_tokens(build("plain"), Keep(rates=(0.5,) * 4, fuse=False), restore=True)


@pytest.mark.parametrize("scorer", ["class_attention", "class_similarity"])
def test_a_class_score_needs_a_class_token(scorer):
    model = build("siglip")
    with pytest.raises(InputError, match="has none; use merging, or the scorer received_attention"):
        reduce_tokens(model, Keep(rates=(0.5,) * 4, scorer=scorer))
    reduce_tokens(model, Keep(rates=(0.5,) * 4, scorer="received_attention"))


def test_a_model_already_patched_is_refused_until_the_patch_is_removed():
    model = build("plain")
    patch = reduce_tokens(model, Merge(removed=(4,) * 4))
    with pytest.raises(InputError, match="already patched; call remove"):
        reduce_tokens(model, Merge(removed=(4,) * 4))
    patch.remove()
    reduce_tokens(model, Merge(removed=(4,) * 4))


def test_pictures_of_the_wrong_size_are_refused():
    model = build("plain")
    patch = reduce_tokens(model, Merge(removed=(4,) * 4))
    with pytest.raises(InputError, match=r"takes images \[batch, 3, 64, 64\]"):
        model(torch.randn(1, 3, 32, 32))
    patch.remove()
    reduce_tokens(model, Pool(blocks=4, at=1, grid=(4, 4), target=(2, 2)))
    with pytest.raises(InputError, match="the tower has 64 patches, the grid says 4x4"):
        model(IMAGES)


def test_what_no_mask_of_the_batch_says_is_refused():
    """A mask that hides other keys from some tokens than from others cannot follow tokens that move."""
    model = build("clip")
    patch = reduce_tokens(model, Merge(removed=(2, 1, 0, 0)))
    causal = torch.ones(1, 1, 9, 9, dtype=torch.bool).tril()
    with pytest.raises(InputError, match="only padding can be followed"):
        patch.tower.blocks[0](torch.randn(1, 9, 48), causal)


def test_merging_what_is_equal_changes_nothing():
    """Merging a patch with its equal neighbour, sizes kept, gives the same output."""
    model = build("plain")
    with torch.no_grad():
        model.position.zero_()
    images = torch.randn(1, 3, 64, 64)
    images[..., 8::16] = images[..., 0::16]
    for column in range(0, 64, 16):  # each pair of neighbouring patches is equal
        images[..., column + 8 : column + 16] = images[..., column : column + 8]
    before = output(model, images)
    # tokens 1+2k and 2+2k are the copies; sources are even positions, targets odd ones
    reduce_tokens(model, Merge(removed=(32, 0, 0, 0)))
    assert torch.allclose(output(model, images), before, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["plain", "vit"])
@pytest.mark.parametrize("reducer", [REDUCERS[0], REDUCERS[4], REDUCERS[9]], ids=["merge", "keep", "rank"])
def test_compiled_models_agree(name, reducer):
    model = build(name)
    reduce_tokens(model, reducer)
    wanted = output(model)
    torch._dynamo.reset()
    compiled = torch.compile(model)
    assert torch.allclose(output(compiled), wanted, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    "reducer", [REDUCERS[0], REDUCERS[4], REDUCERS[5], REDUCERS[9]], ids=["merge", "fuse", "drop", "rank"]
)
def test_exported_models_agree(reducer, tmp_path):
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    model = build("plain")
    reduce_tokens(model, reducer)
    wanted = output(model)
    path = tmp_path / "model.onnx"
    torch.onnx.export(model, (IMAGES,), str(path), dynamo=True, input_names=["images"], verbose=False)
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (got,) = session.run(None, {"images": IMAGES.numpy()})
    assert torch.allclose(torch.from_numpy(got), wanted, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["plain", "vit", "dinov2", "clip", "siglip"])
def test_reduced_towers_leave_as_onnx_with_a_free_batch(name, tmp_path):
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    model = Outputs(build(name)).eval()
    reduce_tokens(model.tower, Merge(removed=(8, 8, 8, 8)))
    path, free = tmp_path / "model.onnx", {"images": {0: torch.export.Dim("batch", min=1, max=64)}}
    torch.onnx.export(model, (IMAGES,), str(path), input_names=["images"], dynamic_shapes=free, verbose=False)
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    for images in (IMAGES, IMAGES[:1], torch.randn(5, *IMAGES.shape[1:])):
        (got,) = session.run(None, {"images": images.numpy()})
        assert torch.allclose(torch.from_numpy(got), output(model.tower, images), atol=1e-4)


class Outputs(torch.nn.Module):
    """A tower as the function of pictures that `output` calls."""

    def __init__(self, tower):
        super().__init__()
        self.tower = tower

    def forward(self, images):
        return output(self.tower, images)
