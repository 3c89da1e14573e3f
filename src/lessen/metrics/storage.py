"""Outcomes as files: one of what the data give, shared by all models of a study, and one a model of what it made.

<folder>/units.safetensors            target, tokens, group, ...: the columns that the data give
<folder>/<recipe>-<seed>.safetensors  score, nll, ...: the columns that a model made, and each metric of the task with
                                      groups of units left out: a verdict needs the metric's class no more
Metadata: digest of the units.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from lessen.errors import DataError, LessenError
from lessen.files import atomic_write
from lessen.metrics.base import Floats
from lessen.metrics.outcomes import GROUP, Array, Outcomes

UNITS = "units.safetensors"
JACKKNIFE = "jackknife/"
_EMPTY = "no/columns"
"""Tensor that stands in a file of units without columns: it says how many there are."""


def write_outcomes(path: Path, outcomes: Outcomes, jackknife: Mapping[str, Floats] | None = None) -> None:
    """Write what a model made to `path`, and what the data give beside it if that is not there yet.

    Args:
        jackknife: by the task's name of a metric, `Metric.jackknife` of these outcomes.

    Raises:
        TaskError: the units differ from those of the models that were judged before.
        OutputError: the folder cannot be written.
    """
    shared = path.parent / UNITS
    if shared.is_file():
        outcomes.check_same_units(_joined(outcomes.made, shared))
    else:
        atomic_write(shared, _packed(outcomes.units or {_EMPTY: np.zeros(len(outcomes), np.uint8)}, outcomes.digest))
    judged = {f"{JACKKNIFE}{name}": values for name, values in (jackknife or {}).items()}
    atomic_write(path, _packed({**outcomes.made, **judged}, outcomes.digest))


def read_outcomes(path: Path) -> Outcomes | None:
    """Return the outcomes of a model, or None where `path` is absent.

    Raises:
        DataError: a file is damaged, or was made on other units than those of its folder.
    """
    if not path.is_file():
        return None
    made = {name: values for name, values in _unpacked(path).items() if not name.startswith(JACKKNIFE)}
    try:
        return _joined(made, path.parent / UNITS)
    except LessenError as error:
        raise DataError(f"{path}: {error}; remove it and resume the study") from error


def read_jackknife(path: Path) -> dict[str, Floats]:
    """Return the metrics of a model with groups of units left out, by name; empty where they were not kept.

    Raises:
        DataError: a file is damaged, or was made on other units than those of its folder.
    """
    if not path.is_file():
        return {}
    arrays = _unpacked(path)
    return {
        name.removeprefix(JACKKNIFE): np.asarray(values, dtype=np.float64)
        for name, values in arrays.items()
        if name.startswith(JACKKNIFE)
    }


def load_arrays(path: Path) -> dict[str, Array]:
    """Return the arrays of a safetensors file. Raises DataError if it is absent or damaged."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        return dict(load_file(path))
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise DataError(f"{path} is damaged ({error}); remove it and resume the study") from error


def _joined(made: Mapping[str, Array], shared: Path) -> Outcomes:
    units = _unpacked(shared)
    group = units.pop(GROUP, None)
    units.pop(_EMPTY, None)
    return Outcomes({**made, **units}, group, frozenset(units))


def _packed(arrays: Mapping[str, Array], units: str) -> bytes:
    from safetensors.numpy import save

    whole = {name: np.ascontiguousarray(values) for name, values in arrays.items()}
    return save(whole, {"units": units})


def _unpacked(path: Path) -> dict[str, Array]:
    """Return the arrays of a file whose units are those of its folder."""
    arrays = load_arrays(path)
    if path.name != UNITS and _metadata(path).get("units") != _metadata(path.parent / UNITS).get("units"):
        raise DataError(f"{path} was made on other test units than the rest; remove it and resume the study")
    return arrays


def _metadata(path: Path) -> dict[str, str]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "numpy") as file:
            return dict(file.metadata() or {})
    except (SafetensorError, OSError, ValueError) as error:
        raise DataError(f"{path} is damaged ({error}); remove it and resume the study") from error
