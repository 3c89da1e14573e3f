from __future__ import annotations

import pytest
import torch

from lessen.artifact import folder as artifact
from lessen.errors import InputError
from lessen.tokens import Keep, Merge, RankMerge
from lessen.tokens.reducers import Pool, reducer_from
from lessen.tokens.stored import TokenReduction, detach, patch_of
from towers import IMAGES, build, output

REDUCERS = [
    Merge(removed=(6,) * 4),
    Keep(rates=(1.0, 0.5, 1.0, 0.5)),
    RankMerge(pruned=(65, 50, 40, 30), merged=(65, 45, 35, 20)),
    Pool(blocks=4, at=1, grid=(8, 8), target=(4, 4)),
]


@pytest.mark.parametrize("reducer", REDUCERS, ids=lambda reducer: reducer.kind)
@pytest.mark.parametrize("name", ["plain", "vit-classifier"])
def test_an_artifact_brings_the_reduction_back(name, reducer, tmp_path):
    assert reducer_from(reducer.config()) == reducer
    base, model = build(name), build(name)

    TokenReduction(reducer).attach(model, tokens=65, example=IMAGES)
    artifact.save(tmp_path / "a", model, base)
    loaded = artifact.load(tmp_path / "a", base)
    assert torch.equal(output(loaded), output(model))
    assert patch_of(loaded).reducer == reducer
    assert patch_of(base) is None


def test_blocks_are_tried_with_their_weights_and_not_with_what_memory_held_before(monkeypatch, tmp_path):
    def stale(*given):
        made = hollow(*given)
        for name, tensor in made.state_dict().items():
            same = any(part in name for part in ("query", "key", "q_proj", "k_proj"))
            tensor.copy_(torch.full_like(tensor, 1e5 if "bias" in name else 0.0) if same else torch.rand_like(tensor))
        return made

    hollow = artifact.hollow
    monkeypatch.setattr(artifact, "hollow", stale)  # every logit equal, and so large that log sizes round away
    base, model = build("vit-classifier"), build("vit-classifier")
    TokenReduction(REDUCERS[0]).attach(model)
    artifact.save(tmp_path / "a", model, base)
    loaded = artifact.load(tmp_path / "a", base)
    assert torch.equal(output(loaded), output(model))


def test_detaching_undoes_it():
    model = build("plain")
    before, keys = output(model), list(model.state_dict())
    TokenReduction(REDUCERS[0]).attach(model)
    with pytest.raises(InputError, match="already patched"):
        TokenReduction(REDUCERS[0]).attach(model)
    detach(model)
    assert torch.equal(output(model), before)
    assert list(model.state_dict()) == keys
    detach(model)  # nothing left to undo


def test_unknown_reducers_are_refused():
    with pytest.raises(ValueError, match="unknown reducer 'shred'"):
        TokenReduction.from_config({"reducer": "shred"})
    with pytest.raises(ValueError, match="has no field rate"):
        TokenReduction.from_config({"reducer": "merge", "rate": 3})
    for bad in ({"removed": "many"}, {"removed": [-1]}, {"removed": [1.5]}, {"seed": "7"}, {"restore": 1}):
        with pytest.raises(ValueError):
            TokenReduction.from_config({"reducer": "merge", **bad})
