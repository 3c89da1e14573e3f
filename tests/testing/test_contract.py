"""Every built-in method is a row of the public contract."""

from __future__ import annotations

import pytest
from torch import nn

from lessen.errors import TaskError
from lessen.method import Card, Method
from lessen.methods import builtin_methods
from lessen.testing import CHECKS, Case, ContractError, NotApplicable, check_method, contract_case
from lessen.testing.toys import TOYS, TableTask

ROWS = builtin_methods()
MORE = {
    "emb-half bf16": ("emb-half", {"dtype": "bf16"}),
    "emb-rowwise-quant 4 of items": ("emb-rowwise-quant", {"bits": 4, "only": "items"}),
    "emb-prune-rows 0.3": ("emb-prune-rows", {"share": 0.3}),
    "emb-hash 0.2": ("emb-hash", {"share": 0.2}),
    "linear-int8 tensor": ("linear-int8", {"activations": "tensor", "min_weights": 64}),
    "linear-half fp16": ("linear-half", {"dtype": "fp16", "skip": "first"}),
    "rtn 2 symmetric": ("rtn", {"bits": 2, "group": 32, "symmetric": True, "ranges": "search", "min_weights": 64}),
    "gptq 3": (
        "gptq",
        {"bits": 3, "group": 32, "symmetric": True, "ranges": "search", "act_order": False, "min_weights": 64},
    ),
    "awq 2": ("awq", {"bits": 2, "group": 32, "scale_bits": 6, "min_weights": 64, "grid": 4, "calibration_batches": 2}),
    "smoothquant 0.8": ("smoothquant", {"strength": 0.8, "only": "second"}),
    "gptq coded scales": ("gptq", {"bits": 2, "group": 16, "scale_bits": 4, "refit": 1, "min_weights": 64}),
    "efficient-qat 2": (
        "efficient-qat",
        {"bits": 2, "group": 32, "scale_bits": 6, "min_weights": 64, "steps": 3, "accumulate": 2},
    ),
    "gptq by the loss": ("gptq", {"bits": 2, "hessian": "output", "min_weights": 64}),
    "spqr 2": ("spqr", {"bits": 2, "hessian": "output", "leave_one_out": False, "act_order": False}),
    "magnitude-sparsity 1:4 trained": (
        "magnitude-sparsity",
        {"pattern": "1:4", "values": "int8", "fine_tune_epochs": 1, "min_weights": 64},
    ),
    "magnitude-sparsity model": ("magnitude-sparsity", {"density": 0.2, "among": "model", "min_weights": 64}),
    "wanda 2:4": ("wanda", {"pattern": "2:4", "values": "fp16", "min_weights": 64}),
    "nm-progressive stepwise": (
        "nm-progressive",
        {"pattern": "1:4", "schedule": "stepwise", "straight_through": True, "min_weights": 64, "epochs": 1},
    ),
    "feature-mimicking 0.4": ("feature-mimicking", {"share": 0.4, "mimic_epochs": 1, "min_weights": 64}),
    "class-dependent ranked": (
        "class-dependent",
        {"rank_weight": 1.0, "rounds": 2, "slack": 0.5, "epochs": 1, "min_weights": 64},
    ),
    "weight-clustering 5": (
        "weight-clustering",
        {"clusters": 5, "density": 0.5, "values": "fp32", "fine_tune_epochs": 1},
    ),
    "sparsegpt 0.3": ("sparsegpt", {"density": 0.3, "values": "int8", "activations": "int8", "min_weights": 64}),
    "billm of one bit": ("billm", {"block": None, "split": False, "hessian": "output"}),
    "kivi 2": ("kivi", {"bits": 2, "group": 4, "residual": 4, "first": 1}),
    "int8-static tensor": ("int8-static", {"weights": "tensor", "ranges": "mse"}),
    "linear-mixed-bits random": (
        "linear-mixed-bits",
        {"average": 6.0, "group": 32, "allocation": "random", "rounding": "gptq", "min_weights": 64},
    ),
    "jpeg 10": ("jpeg", {"quality": 10}),
    "lora 1": ("lora", {"rank": 1, "alpha": 1.0}),
    "data-random-rows 0.2": ("data-random-rows", {"share": 0.2}),
    "vtrans of ten steps": ("vtrans", {"steps": 10, "share": 0.6, "of": "parameters"}),
    "layer-drop by likeness": ("layer-drop", {"layers": 0.5, "rule": "similarity"}),
}
"""Settings beside the defaults: what a default never reaches is checked too."""
CASES = {**{name: (name, {}) for name in ROWS}, **MORE}
LONG = {"diffrate", "tocom", "vtrans"}
"""Methods that search or train a Transformer at each application."""
_cases: dict[str, Case] = {}


@pytest.fixture
def case(request):
    if request.param not in _cases:
        name, knobs = CASES[request.param]
        _cases[request.param] = contract_case(ROWS[name](**knobs))
    return _cases[request.param]


def test_every_family_has_a_toy():
    assert {cls.card.family for cls in ROWS.values()} <= set(TOYS)


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize(
    "case", [pytest.param(name, marks=[pytest.mark.slow] * (name in LONG)) for name in CASES], indirect=True
)
def test_contract(case, check):
    try:
        CHECKS[check](case)
    except NotApplicable as reason:
        pytest.skip(str(reason))


class Idle(Method):
    """Claims bytes and does nothing."""

    card = Card("idle", "embeddings", "Does nothing.", (nn.Embedding,), "nobody")
    knob: int = 3

    def apply(self, model, task, context):
        return model


class Vandal(Idle):
    card = Card("vandal", "embeddings", "Writes into the task's batches.", (nn.Embedding,), "nobody")

    def apply(self, model, task, context):
        for inputs, _ in task.batches("train"):
            inputs[0].fill_(1)
        return model


def test_the_contract_catches_what_it_promises_to():
    with pytest.raises(ContractError) as caught:
        check_method(Idle())
    text = str(caught.value)
    for broken in ("claims_only_what_it_saves", "every_number_is_bounded", "nothing_matched_is_an_error", "'knob'"):
        assert broken in text
    assert "callers_model_is_untouched" not in text
    with pytest.raises(ContractError, match="batches_are_untouched"):
        check_method(Vandal(), TableTask())


def test_a_family_without_a_toy_task_needs_one():
    class Other(Idle):
        card = Card("other", "decoding", "Does nothing.", (nn.Embedding,), "nobody")

    with pytest.raises(TaskError, match="pass a small Task"):
        contract_case(Other())
