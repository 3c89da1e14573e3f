"""LightWaveS against aeon's MiniRocket on the data sets that aeon ships: accuracy, channels, time of one sample.

Needs aeon beside lessen:  python -m benchmarks.series.lightwaves
Times are of one series through features and head, single-threaded, taken in alternation; the ratio is the median over
pairs. `port` is what the official code (or, but for ACSF1, a port of it) gives: the accuracy to be within a point of.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

for name in ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[name] = "1"

import numpy as np  # noqa: E402 - after the thread counts

from lessen.series import LightWaves  # noqa: E402

RESULTS = Path(__file__).parents[1] / "results" / "series_lightwaves.json"
PORT = {
    "BasicMotions": 1.000,
    "JapaneseVowels": 0.922,
    "GunPoint": 1.000,
    "ArrowHead": 0.897,
    "OSULeaf": 0.946,
    "ItalyPowerDemand": 0.938,
    "ACSF1": 0.84,
}


def equal_length(series: Any, length: int) -> np.ndarray:
    """Zero-pad at the end, as the published JapaneseVowels files do; longer series are cut."""
    result = np.zeros((len(series), len(series[0]), length), dtype=np.float32)
    for number, one in enumerate(series):
        result[number, :, : one.shape[1]] = one[:, :length]
    return result


def one(name: str) -> dict[str, Any]:
    from aeon.classification.convolution_based import MiniRocketClassifier
    from aeon.datasets import load_classification

    parts = [load_classification(name, split=split) for split in ("train", "test")]
    length = max(series.shape[1] for series in parts[0][0])
    (train, label), (test, wanted) = [(equal_length(x, length), y) for x, y in parts]
    start = time.perf_counter()
    ours = LightWaves().fit(train, label)
    seconds = time.perf_counter() - start
    peer = MiniRocketClassifier(random_state=0, n_jobs=1).fit(train.astype(np.float64), label)
    samples = []
    for turn in range(105):
        single = test[turn % len(test)][None]
        begun = time.perf_counter()
        ours.predict(single)
        between = time.perf_counter()
        peer.predict(single.astype(np.float64))
        if turn >= 5:
            samples.append([1000 * (between - begun), 1000 * (time.perf_counter() - between)])
    with tempfile.TemporaryDirectory() as folder:
        ours.save(Path(folder) / "model")
        size = (Path(folder) / "model").stat().st_size
    return {
        "accuracy": float((ours.predict(test) == wanted).mean()),
        "port": PORT[name],
        "minirocket_accuracy": float((peer.predict(test.astype(np.float64)) == wanted).mean()),
        "channels": [len(ours.used_channels), train.shape[1]],
        "kernels": len(ours.rows),
        "file_bytes": size,
        "fit_s": seconds,
        "ms": statistics.median(pair[0] for pair in samples),
        "minirocket_ms": statistics.median(pair[1] for pair in samples),
        "time_ratio": statistics.median(pair[0] / pair[1] for pair in samples),
        "raw_ms": samples,
    }


def main() -> None:
    import aeon

    rows = {name: one(name) for name in PORT}
    result = {
        "command": "python -m benchmarks.series.lightwaves",
        "machine": platform.machine(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "aeon": aeon.__version__,
        "threads": 1,
        "rows": rows,
    }
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(result, indent=1) + "\n")
    print(
        f"{'data':18} {'acc':>6} {'port':>6} {'mini':>6} {'channels':>9} {'kernels':>7} {'ms':>7} {'mini ms':>8} ratio"
    )
    for name, row in rows.items():
        print(
            f"{name:18} {row['accuracy']:.3f}  {row['port']:.3f}  {row['minirocket_accuracy']:.3f} "
            f"{row['channels'][0]:>4}/{row['channels'][1]:<4} {row['kernels']:7} {row['ms']:7.2f} "
            f"{row['minirocket_ms']:8.2f} {row['time_ratio']:.2f}"
        )


if __name__ == "__main__":
    main()
