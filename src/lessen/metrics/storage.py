"""Outcomes as files: one of what the data give, shared by all models of a study, and one a model of what it made.

<folder>/units.safetensors            target, tokens, group, ...: the columns that the data give
<folder>/<recipe>-<seed>.safetensors  score, nll, ...: the columns that a model made; metadata: digest of the units
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from lessen.errors import DataError, LessenError
from lessen.files import atomic_write
from lessen.metrics.outcomes import GROUP, Array, Outcomes

UNITS = "units.safetensors"
_EMPTY = "no-columns"
"""Tensor that stands in a file of units without columns: safetensors keeps no empty file."""


def write_outcomes(path: Path, outcomes: Outcomes) -> None:
    """Write what a model made to `path`, and what the data give beside it if that is not there yet.

    Raises:
        TaskError: the units differ from those of the models that were judged before.
        OutputError: the folder cannot be written.
    """
    from safetensors.numpy import save

    shared = path.parent / UNITS
    if shared.is_file():
        outcomes.check_same_units(Outcomes({**outcomes.made, **_columns(shared)}, _group(shared), outcomes.given))
    else:
        units = {name: np.ascontiguousarray(values) for name, values in outcomes.units.items()}
        atomic_write(shared, save(units or {_EMPTY: np.zeros(len(outcomes), np.uint8)}, {"units": outcomes.digest}))
    made = {name: np.ascontiguousarray(values) for name, values in outcomes.made.items()}
    atomic_write(path, save(made, {"units": outcomes.digest}))


def read_outcomes(path: Path) -> Outcomes | None:
    """Return the outcomes of a model, or None where `path` is absent.

    Raises:
        DataError: a file is damaged, or was made on other units than those of its folder.
    """
    if not path.is_file():
        return None
    shared = path.parent / UNITS
    units = _columns(shared)
    try:
        found = Outcomes({**load_arrays(path), **units}, _group(shared), frozenset(units))
    except LessenError as error:
        raise DataError(f"{path}: {error}; remove it and resume the study") from error
    if _metadata(path).get("units") != found.digest:
        raise DataError(f"{path} was made on other test units than {shared}; remove it and resume the study")
    return found


def load_arrays(path: Path) -> dict[str, Array]:
    """Return the arrays of a safetensors file. Raises DataError if it is absent or damaged."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        return dict(load_file(path))
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise DataError(f"{path} is damaged ({error}); remove it and resume the study") from error


def _columns(shared: Path) -> dict[str, Array]:
    return {name: values for name, values in load_arrays(shared).items() if name not in (GROUP, _EMPTY)}


def _group(shared: Path) -> Array | None:
    return load_arrays(shared).get(GROUP)


def _metadata(path: Path) -> dict[str, str]:
    from safetensors import safe_open

    with safe_open(path, "numpy") as file:
        return dict(file.metadata() or {})
