"""Keeping measured cost curves in the cache folder, so that a command need not measure the same model twice."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch

from lessen.data.cache import cache_folder
from lessen.decoding.cost import CostCurve
from lessen.environment import environment
from lessen.errors import LessenError
from lessen.files import atomic_write, dump_json, parse_json
from lessen.stored.base import StoredModule


def place_of(model: Any, pack: bool) -> Path:
    """Return the file for this model's shape, dtype and device on this machine with these threads and versions.

    Args:
        pack: whether weights may be packed; whether they were is written in the file.
    """
    found = environment()
    facts = {
        "config": json.loads(model.config.to_json_string(use_diff=False)) | {"_name_or_path": ""},
        "dtype": str(model.dtype),
        "stored": sorted({module.kind for module in model.modules() if isinstance(module, StoredModule)}),
        "device": str(model.device),
        "pack": pack,
        "threads": torch.get_num_threads(),
        "machine": {name: found[name] for name in ("processor", "cores", "capability", "packages")},
    }
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()
    return cache_folder() / "decoding" / f"costs-{digest[:24]}.json"


def load(place: Path) -> CostCurve | None:
    """Return the stored curve, or None where there is none or it cannot be read; then it is measured again."""
    try:
        value = parse_json(place.read_bytes(), str(place))
        sizes, times = tuple(int(size) for size in value["sizes"]), tuple(float(one) for one in value["times"])
        least, most = (int(rows) for rows in value["packed_rows"])
        return CostCurve(sizes, times, (least, most))
    except (OSError, LessenError, KeyError, TypeError, ValueError):
        return None


def save(place: Path, curve: CostCurve) -> None:
    """Store a curve. Raises OutputError when the cache cannot be written."""
    atomic_write(
        place, dump_json({"sizes": curve.sizes, "times": curve.times, "packed_rows": curve.packed_rows or (0, 0)})
    )
