"""Checkpoints of a CTR model with sparse tables: what coding only touched rows saves, beside zstd and ZipNN.

    python -m benchmarks.checkpoints.ctr

Trains the run `ctr` of `runs` first if it is not in the cache. SparseAdam leaves the rows alone that no
example of a batch names. What is done is kept in the cache; `--one` does one unit of work and stops.
"""

from __future__ import annotations

import shutil
import statistics
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zstandard

from benchmarks.checkpoints import runs
from benchmarks.checkpoints.bench import LATE, MARKS, RESUME_STEPS, SEEDS, Progress, late_ratio, pack_run, save
from lessen.checkpoints import Archive, PackSettings, adam_step, blocks


def resume_ctr(path: Path, seed: int, data: tuple[np.ndarray, np.ndarray]) -> dict[str, float]:
    state = torch.load(path, weights_only=True)
    model = runs.ClickModel()
    model.load_state_dict(state["model"])
    optimizers = runs.ctr_optimizers(model)
    for name, optimizer in optimizers.items():
        optimizer.load_state_dict(state[name])
    losses = [runs.ctr_step(model, optimizers, data[0], state["step"] + k, seed) for k in range(RESUME_STEPS)]
    return {"first_ten": statistics.fmean(losses[:10]), "final": runs.ctr_validate(model, data[1])}


CTR_VARIANTS = {
    "exact, all rows": ("exact", False, False),
    "exact, touched rows": ("exact", True, False),
    "exact, touched rows, steps replayed": ("exact", True, True),
    "near, all rows": ("near", False, True),
    "near, touched rows": ("near", True, True),
}


def none_moved_once(
    now: dict[str, np.ndarray], _: dict[str, np.ndarray], columns: int
) -> tuple[np.ndarray, tuple[float, float]]:
    return np.zeros(now["first"].size // columns, bool), (0.0, 0.0)


def pack_ctr(paths: list[Path], out: Path, mode: Any, rows: bool, replayed: bool) -> dict[str, Any]:
    """Pack the run, with what makes tables small switched off as asked; `table_bytes` are those of the tables."""
    shutil.rmtree(out, ignore_errors=True)
    is_table, moved_once = blocks.is_table, adam_step.moved_once
    blocks.is_table = is_table if rows else (lambda _: False)
    if not replayed:
        adam_step.moved_once = none_moved_once
    try:
        row = pack_run(paths, out, PackSettings(mode=mode))
    finally:
        blocks.is_table, adam_step.moved_once = is_table, moved_once
    archive, row["table_bytes"] = Archive(out), []
    for step in archive.steps:
        with archive.chain(step) as chain:
            layout, pieces = chain.layouts[-1], chain.frames[-1].footer["pieces"]
            tables = [g for g, group in enumerate(layout.groups) if is_table(layout.shape(group))]
            row["table_bytes"].append(sum(length for g in tables for _, _, length, _ in pieces[g]))
    return row


ZIPNN_CHILD = """
import sys, zipnn
raw = bytearray(open(sys.argv[1], "rb").read())
print(len(zipnn.ZipNN(bytearray_dtype="float32", input_format="byte").compress(raw)))
"""


def tensors_of(path: Path) -> dict[str, np.ndarray]:
    state = torch.load(path, weights_only=True)
    flat = {name: tensor.numpy() for name, tensor in state["model"].items()}
    for name in ("sparse", "dense"):
        for index, values in state[name]["state"].items():
            flat |= {f"{name}.{index}.{key}": torch.as_tensor(value).numpy() for key, value in values.items()}
    return flat


def ctr_peers(path: Path, before: Path) -> dict[str, Any]:
    """Compress each tensor of a step on its own, as it is and XOR the step before; ZipNN in a process of its own."""
    result: dict[str, Any] = dict.fromkeys(("raw", "zstd -3", "XOR + zstd -3", "ZipNN", "XOR + ZipNN"), 0)
    result["ZipNN crashed on"] = []
    old = tensors_of(before)
    with tempfile.TemporaryDirectory(dir=runs.cache()) as scratch:
        file = Path(scratch) / "tensor"
        for name, values in tensors_of(path).items():
            raw = np.ascontiguousarray(values).tobytes()
            moved = np.bitwise_xor(np.frombuffer(raw, np.uint8), np.frombuffer(old[name].tobytes(), np.uint8)).tobytes()
            result["raw"] += len(raw)
            for prefix, data in (("", raw), ("XOR + ", moved)):
                result[f"{prefix}zstd -3"] += len(zstandard.ZstdCompressor(level=3).compress(data))
                file.write_bytes(data)
                if len(data) < 4096:  # scalars and biases: ZipNN has nothing to gain
                    result[f"{prefix}ZipNN"] += len(data)
                    continue
                child = subprocess.run([sys.executable, "-c", ZIPNN_CHILD, str(file)], capture_output=True, text=True)
                if child.returncode:
                    result["ZipNN crashed on"].append(f"{prefix}{name}: exit status {child.returncode}")
                result[f"{prefix}ZipNN"] += int(child.stdout) if child.returncode == 0 else len(data)
    return result


def ctr() -> None:
    paths, data = runs.ensure("ctr"), runs.text()
    raw = [path.stat().st_size for path in paths]
    progress = Progress("ctr")
    result: dict[str, Any] = {"sizes": {}, "gap": {}, "peers": {}}
    kept = runs.cache() / "ctr-archives"
    for name, (mode, rows, replayed) in CTR_VARIANTS.items():
        out = kept / name.replace(", ", "-").replace(" ", "-")
        row = result["sizes"][name] = progress.unit(name, partial(pack_ctr, paths, out, mode, rows, replayed))
        row["late_half_ratio"] = late_ratio(raw, row["bytes"])
    for k in MARKS:
        result["peers"][paths[k].stem] = progress.unit(f"peers {k}", partial(ctr_peers, paths[k], paths[k - 1]))
    for k in MARKS:
        step = int(paths[k].stem.split("-")[1])
        result["gap"][step] = progress.unit(f"gap {k}", partial(ctr_gap, kept / "near-touched-rows", paths[k], data))
    summarise_ctr(result)
    save("ctr", result)


def ctr_gap(archive: Path, path: Path, data: tuple[np.ndarray, np.ndarray]) -> dict[str, Any]:
    """Resume from the original and from what `near` gives back, for each seed."""
    with tempfile.TemporaryDirectory(dir=runs.cache()) as scratch:
        back = Archive(archive).unpack(int(path.stem.split("-")[1]), Path(scratch) / "out") / path.name
        return {
            "original": [resume_ctr(path, seed, data) for seed in range(SEEDS)],
            "near": [resume_ctr(back, seed, data) for seed in range(SEEDS)],
        }


def summarise_ctr(result: dict[str, Any]) -> None:
    sizes, peers = result["sizes"], result["peers"]
    print(f"{'late half':38s} {'MB/step':>9s} {'x smaller':>10s} {'tables MB/step':>15s}")
    for name, row in sizes.items():
        mean, tables = statistics.fmean(row["bytes"][LATE]), statistics.fmean(row["table_bytes"][LATE])
        print(f"{name:38s} {mean / 1e6:9.3f} {row['late_half_ratio']:10.1f} {tables / 1e6:15.3f}")
    for name in ("zstd -3", "XOR + zstd -3", "ZipNN", "XOR + ZipNN"):
        mean = statistics.fmean(peer[name] for peer in peers.values())
        whole = statistics.fmean(peer["raw"] for peer in peers.values())
        result.setdefault("peer_ratio", {})[name] = whole / mean
        print(f"{name:38s} {mean / 1e6:9.3f} {whole / mean:10.1f}")

    def tables_of(name: str) -> int:
        return sum(sizes[name]["table_bytes"][LATE])

    pairs = {
        "exact": ("exact, all rows", "exact, touched rows, steps replayed"),
        "near": ("near, all rows", "near, touched rows"),
    }
    result["tables_smaller_by_touched_rows"] = {mode: tables_of(a) / tables_of(b) for mode, (a, b) in pairs.items()}
    result["files_smaller_by_touched_rows"] = {
        mode: sum(sizes[a]["bytes"][LATE]) / sum(sizes[b]["bytes"][LATE]) for mode, (a, b) in pairs.items()
    }
    print("tables smaller by touched rows:", result["tables_smaller_by_touched_rows"])
    gaps = [
        a["final"] - b["final"]
        for rows in result["gap"].values()
        for a, b in zip(rows["near"], rows["original"], strict=True)
    ]
    noise = [
        abs(a["final"] - b["final"])
        for rows in result["gap"].values()
        for i, a in enumerate(rows["original"])
        for b in rows["original"][i + 1 :]
    ]
    result |= {"final_gap": statistics.fmean(gaps), "noise_between_two_seeds": statistics.fmean(noise)}
    print(f"final gap {result['final_gap']:+.5f}, noise between two seeds {result['noise_between_two_seeds']:.5f}")


if __name__ == "__main__":
    torch.set_num_threads(1)
    ctr()
