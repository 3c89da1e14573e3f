"""The executable contract of a method: run `check_method(MyMethod())` in your own tests.

from lessen.testing import check_method
def test_contract(): check_method(MyMethod(), task=MySmallTask())
"""

from __future__ import annotations

from collections.abc import Callable

from lessen.errors import TaskError
from lessen.method import Method
from lessen.task import Task
from lessen.testing import behaviour, knobs, odd_models
from lessen.testing.case import Case, ContractError, NotApplicable
from lessen.testing.toys import TOYS

__all__ = ["CHECKS", "Case", "ContractError", "NotApplicable", "check_method", "contract_case"]

CHECKS: dict[str, Callable[[Case], None]] = {
    check.__name__: check
    for check in (
        knobs.card_is_complete,
        knobs.knobs_round_trip,
        knobs.ranges_are_enforced,
        knobs.every_number_is_bounded,
        behaviour.outputs_are_sound,
        behaviour.refuses_non_finite,
        behaviour.nothing_matched_is_an_error,
        behaviour.missing_needs_are_named,
        behaviour.empty_training_data_is_refused,
        behaviour.callers_model_is_untouched,
        behaviour.batches_are_untouched,
        behaviour.globals_are_untouched,
        behaviour.leaves_no_hooks,
        behaviour.same_seed_same_result,
        behaviour.twice_finds_nothing_or_changes_nothing,
        behaviour.saves_and_loads_bit_for_bit,
        behaviour.stored_modules_have_twins,
        behaviour.refuses_hostile_configurations,
        behaviour.claims_only_what_it_saves,
        behaviour.findings_are_json,
        behaviour.training_is_accounted,
        odd_models.frozen_parameters,
        odd_models.strided_parameters,
        odd_models.tied_parameters,
        odd_models.shared_modules,
        odd_models.parametrised_modules,
        odd_models.hooked_modules,
        odd_models.own_forward,
    )
}
"""Every check by name, in the order in which they run."""


def contract_case(method: Method, task: Task | None = None) -> Case:
    """Return the case that the checks take; the task defaults to the toy task of the method's family.

    Raises:
        TaskError: the family has no toy task and none was given.
    """
    if task is None:
        toy = TOYS.get(method.card.name) or TOYS.get(method.card.family)
        if toy is None:
            raise TaskError(f"no contract task is known for the family {method.card.family!r}; pass a small Task")
        task = toy()
    return Case(method, task)


def check_method(method: Method, task: Task | None = None) -> list[str]:
    """Run the whole battery and return the names of the checks that applied.

    Args:
        method: the method with the knobs to check.
        task: a small task whose reference the method can compress.

    Raises:
        ContractError: at least one check failed; the message lists each.
    """
    case = contract_case(method, task)
    passed, failed = [], []
    for name, check in CHECKS.items():
        try:
            check(case)
        except NotApplicable:
            continue
        except ContractError as error:
            failed.append(f"{name}: {error}")
        else:
            passed.append(name)
    if failed:
        raise ContractError(f"{method.card.name} breaks the contract\n  " + "\n  ".join(failed))
    return passed
