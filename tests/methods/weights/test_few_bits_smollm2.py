"""On a real language model: the grid it lies on is told, and calibration is worth more than a searched range."""

from __future__ import annotations

import pytest

from lessen.data.cache import cache_folder
from lessen.methods.weights.gptq import GPTQ
from lessen.methods.weights.rtn import RTN
from lessen.metrics import PERPLEXITY
from lessen.recipe import Recipe
from lessen.tasks import get_task

BLOCKS = "model.layers.1[2-3]"


@pytest.mark.slow
def test_smollm2_lies_on_a_grid_and_gptq_beats_round_to_nearest():
    if not (cache_folder() / "models" / "smollm2-135m-instruct" / "config.json").exists():
        pytest.skip("SmolLM2 is not in the cache; run: lessen generate smollm2-135m-instruct -p hello")
    task = get_task({"name": "language-smollm2", "documents": 4, "window": 256, "stride": 128})
    model = task.reference()

    def perplexity(method):
        made, ledger = Recipe([method]).apply(model, task)
        return PERPLEXITY(task.outcomes(made)), ledger[0].findings

    exact = PERPLEXITY(task.outcomes(model))
    same, findings = perplexity(RTN(bits=4, group=32, only=BLOCKS))
    assert len(findings["lossless"]) == 14
    assert same == pytest.approx(exact, rel=1e-5)
    nearest, _ = perplexity(RTN(bits=2, group=64, only=BLOCKS))
    calibrated, findings = perplexity(GPTQ(bits=2, group=64, only=BLOCKS, calibration_batches=3))
    assert exact < calibrated < nearest
    assert "warning" not in findings
