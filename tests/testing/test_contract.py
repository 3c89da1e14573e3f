"""Every built-in method is a row of the public contract."""

from __future__ import annotations

import pytest
from torch import nn

from lessen.errors import TaskError
from lessen.method import Card, Method
from lessen.methods import builtin_methods
from lessen.testing import CHECKS, Case, ContractError, NotApplicable, check_method, contract_case
from lessen.testing.toys import TOYS, TableTask

ROWS = {name: cls for name, cls in builtin_methods().items() if cls.card.family in TOYS}
_cases: dict[str, Case] = {}


@pytest.fixture
def case(request):
    name = request.param
    if name not in _cases:
        _cases[name] = contract_case(ROWS[name]())
    return _cases[name]


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("case", ROWS, indirect=True)
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
