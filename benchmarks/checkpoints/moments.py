"""What mode near does to weights, moments and the next step of Adam, by how finely second moments are kept.

    python -m benchmarks.checkpoints.moments

Trains the language model of runs.py first if it is not in the cache.
"""

from __future__ import annotations

import math
import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch

from benchmarks.checkpoints import bench, runs
from lessen.checkpoints import Archive, NearSettings, PackSettings, find_snapshots, pack

SETTINGS: dict[str, dict[str, float]] = {
    "near": {},
    "near, second_step=1": {"second_step": 1.0},
    "near, second_step=0.5": {"second_step": 0.5},
}
EPS = 1e-8


def measured(original: Path, before: Path, rebuilt: Path) -> dict[str, float]:
    """Compare a rebuilt state with the original one, all tensors together.

    Returns:
        second_error: |rebuilt - true| / |true| of exp_avg_sq, mean over parameters.
        step_cosine, step_length: of exp_avg / (sqrt(exp_avg_sq) + eps), what Adam's next step goes along.
        weight_error: |rebuilt - true| of the weights by how far they moved since the checkpoint before.
    """
    true, past, back = (torch.load(path, weights_only=True) for path in (original, before, rebuilt))
    error, count, dot, size, own, off, way = 0.0, 0, 0.0, 0.0, 0.0, 0.0, 0.0
    for index, moments in true["optimizer"]["state"].items():
        other = back["optimizer"]["state"][index]
        second, number = moments["exp_avg_sq"], moments["exp_avg_sq"].numel()
        error += number * float((other["exp_avg_sq"] - second).norm() / second.norm())
        count += number
        step, rough = (m["exp_avg"] / (m["exp_avg_sq"].sqrt() + EPS) for m in (moments, other))
        dot, size, own = dot + float((step * rough).sum()), size + float((step**2).sum()), own + float((rough**2).sum())
    for name, weight in true["model"].items():
        off += float((back["model"][name] - weight).square().sum())
        way += float((past["model"][name] - weight).square().sum())
    return {
        "second_error": error / count,
        "step_cosine": dot / math.sqrt(size * own),
        "step_length": math.sqrt(own / size),
        "weight_error": math.sqrt(off / way),
    }


def main() -> None:
    paths = runs.ensure("lm")
    rows: dict[str, Any] = {}
    for name, knobs in SETTINGS.items():
        with tempfile.TemporaryDirectory(dir=runs.cache()) as scratch:
            archive = Path(scratch) / "a"
            packed = pack(find_snapshots(paths), archive, PackSettings(near=NearSettings(**knobs)))
            raw, small = [one.raw_bytes for one in packed], [one.bytes for one in packed]
            seen = []
            for mark in bench.MARKS:
                step = int(paths[mark].stem.split("-")[1])
                out = Archive(archive).unpack(step, Path(scratch) / f"o{mark}") / paths[mark].name
                seen.append(measured(paths[mark], paths[mark - 1], out))
        rows[name] = {
            "bytes": small,
            "raw_bytes": raw,
            "whole_ratio": sum(raw) / sum(small),
            "late_half_ratio": bench.late_ratio(raw, small),
            **{key: statistics.fmean(row[key] for row in seen) for key in seen[0]},
        }
        print(name, {key: value for key, value in rows[name].items() if "bytes" not in key}, flush=True)
    bench.save("moments", {"marks": [paths[mark].stem for mark in bench.MARKS], "rows": rows})


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
