"""Sights in artifacts: what a model sees comes back from its folder, bit for bit."""

from __future__ import annotations

import pytest
import torch

from lessen.artifact import folder as artifact
from lessen.tokens.visual.free_video import FreeVideoLLM, Paths
from lessen.tokens.visual.fused import ADEMVL
from lessen.tokens.visual.hires import HiResLLaVA
from lessen.tokens.visual.sights import SIGHTS, sight_of
from lessen.tokens.visual.slime import SliME
from seeing_models import prompts, seeing

MADE = {
    "adem-vl": (lambda: ADEMVL(32, 32, layers=2, sizes=(4,), inner=8, adapter=3), (1, 0)),
    "free-video-llm": (lambda: FreeVideoLLM(Paths(1, 1, 9, (2, 1))), (3, 1)),
    "hires-llava": (lambda: HiResLLaVA(32, 32, (1, 2), (2, 3), layers=(0,), heads=2), (3, 6)),
    "slime": (lambda: SliME(32, 32, side=2, overview=4, heads=2, keep=3), (3, 1)),
}


@pytest.mark.parametrize("name", MADE)
def test_an_artifact_brings_the_sight_back(name, tmp_path):
    make, pictures = MADE[name]
    torch.manual_seed(0)
    base, model = seeing("llava"), seeing("llava")
    make().eval().attach(model)
    with torch.no_grad():
        for one in getattr(model, sight_of(model).sight.child).parameters():
            one.normal_()
        batch = prompts("llava", pictures)
        wanted = model(**batch).logits
        artifact.save(tmp_path / "a", model, base)
        loaded = artifact.load(tmp_path / "a", seeing("llava")).eval()
        assert torch.equal(loaded(**batch).logits, wanted)
    assert sight_of(loaded).sight.config() == sight_of(model).sight.config()
    assert sight_of(base) is None


def test_all_are_named():
    assert {sight.kind for sight in SIGHTS} == set(MADE)


@pytest.mark.parametrize("sight", SIGHTS)
def test_values_that_make_no_sense_are_refused(sight):
    config = MADE[sight.kind][0]().config()
    assert sight.from_config(config).config() == config
    for name, value in config.items():
        for bad in (-1, 2**62, "7", [2**62], float("nan")):
            if not isinstance(value, bool) and not (name in ("alpha", "beta") and bad == -1):
                with pytest.raises((ValueError, TypeError)), torch.device("meta"):
                    sight.from_config({**config, name: bad})
    with pytest.raises(TypeError):
        sight.from_config({**config, "more": 1})
