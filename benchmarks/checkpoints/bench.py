"""Checkpoint archives beside torch.save, safetensors + zstd, 7-zip, ZipNN and ExCP's published recipe.

    python -m benchmarks.checkpoints.bench sizes    # language model: bytes per step, seconds, unpacking
    python -m benchmarks.checkpoints.bench gap      # language model: resume gap beside the noise of the seed
    python -m benchmarks.checkpoints.bench memory   # one checkpoint of 1.2 GB: peak memory of packing and unpacking

Trains the runs of `runs` first if they are not in the cache. ZipNN and py7zr are used if installed.
Sparse tables have a script of their own, `ctr`; the peers are called in `peers`.
What is done is kept in the cache: a benchmark that was stopped goes on, and `--one` does one unit of work and stops.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

import lessen
from benchmarks.checkpoints import excp_recipe as excp
from benchmarks.checkpoints import runs
from benchmarks.checkpoints.peers import safetensors_zstd, seven_zip_bytes, triples, zipnn_bytes
from lessen.checkpoints import Archive, NearSettings, Packer, PackSettings, find_snapshots

RESULTS = Path(__file__).parents[1] / "results"
LATE = slice(10, 20)
MARKS = (13, 19)
SEEDS, RESUME_STEPS = 3, 20


def cpu(call: Callable[..., Any], *arguments: Any) -> tuple[Any, float]:
    """Return what `call` returns and its CPU seconds."""
    began = time.process_time()
    value = call(*arguments)
    return value, time.process_time() - began


class Progress:
    """Results by key, kept in the cache after each unit of work."""

    def __init__(self, name: str) -> None:
        self.path = runs.cache() / f"progress-{name}.json"
        self.done: dict[str, Any] = json.loads(self.path.read_text()) if self.path.exists() else {}

    def unit(self, key: str, work: Callable[[], Any]) -> Any:
        """Return the result under `key`, working it out if it is not there yet, or was left out."""
        if self.done.get(key) is None:
            self.done[key] = work()
            self.path.write_text(json.dumps(self.done))
            print("done:", key, flush=True)
            if "--one" in sys.argv:
                raise SystemExit(9)
        return self.done[key]


def save(name: str, result: dict[str, Any]) -> None:
    versions = {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__}
    for package in ("zstandard", "constriction", "zipnn", "py7zr", "safetensors"):
        try:
            from importlib.metadata import version

            versions[package] = version(package)
        except ImportError:
            versions[package] = "absent"
    machine = f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} torch thread(s)"
    command = ["python", "-m", f"benchmarks.checkpoints.{Path(sys.argv[0]).stem}", *sys.argv[1:]]
    document = {"command": " ".join(command), "machine": machine}
    document |= {"versions": versions, "lessen": lessen.__version__, **result}
    (RESULTS / f"checkpoints_{name}.json").write_text(json.dumps(document, indent=1) + "\n")


# -- peers -----------------------------------------------------------------------------------------------------
def peer_sizes(paths: list[Path], progress: Progress) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    peers: list[tuple[str, Callable[[Path], int], list[Path]]] = [
        ("torch.save", lambda path: path.stat().st_size, paths),
        ("safetensors + zstd -3", lambda path: len(safetensors_zstd(path, 3)), paths[LATE]),
        ("ZipNN", zipnn_bytes, paths),
        ("7-zip (LZMA2, default level)", seven_zip_bytes, [paths[14]]),
    ]
    for name, call, chosen in peers:

        def measure(call: Any = call, chosen: Any = chosen, name: str = name) -> dict[str, Any] | None:
            try:
                rows = [cpu(call, path) for path in chosen]
            except ImportError as error:
                print(f"{name}: left out ({error})")
                return None
            return {
                "bytes": [row[0] for row in rows],
                "cpu_seconds": [row[1] for row in rows],
                "steps": [path.stem for path in chosen],
            }

        if (row := progress.unit(name, measure)) is not None:
            found[name] = row
    return found


# -- ours ------------------------------------------------------------------------------------------------------
def pack_run(paths: list[Path], out: Path, settings: PackSettings) -> dict[str, Any]:
    rows = []
    with Packer(out, settings) as packer:
        for snapshot in find_snapshots(paths):
            packed, seconds = cpu(packer.add, snapshot)
            rows.append((packed, seconds))
    raw = [packed.raw_bytes for packed, _ in rows]
    result = {
        "bytes": [packed.bytes for packed, _ in rows],
        "cpu_seconds": [seconds for _, seconds in rows],
        "raw_bytes": raw,
    }
    archive = Archive(out)
    with tempfile.TemporaryDirectory(dir=out.parent) as scratch:
        _, seconds = cpu(archive.unpack_all, Path(scratch) / "all")
        result["unpack_all_mb_per_cpu_second"] = sum(raw) / seconds / 1e6
        _, seconds = cpu(archive.unpack, archive.steps[-1], Path(scratch) / "one")
        result["unpack_last_cpu_seconds"] = seconds
        result |= {"unpack_last_" + key: value for key, value in decoded_for_last(archive).items()}
        if settings.mode == "exact":
            same = [
                (Path(scratch) / "all" / f"step-{step}" / path.name).read_bytes() == path.read_bytes()
                for step, path in zip(archive.steps, paths, strict=True)
            ]
            result["bit_identical"] = all(same)
    result["pack_mb_per_cpu_second"] = sum(raw[1:]) / sum(result["cpu_seconds"][1:]) / 1e6
    return result


def decoded_for_last(archive: Archive) -> dict[str, int]:
    """Return how many frames the last step needs, and how many bytes of arrays must be rebuilt for it.

    In mode near the moments of steps passed through are not decoded.
    """
    with archive.chain(archive.steps[-1]) as chain:
        layout, frames, total = chain.layouts[-1], len(chain.frames), 0
        for group in layout.groups:
            for role, place in group.members.items():
                every = archive.mode == "exact" or (group.near and role == "weight")
                total += layout.array(place).nbytes * (frames if every else 1)
    return {"frames": frames, "decoded_bytes": total}


def late_ratio(raw: list[int], packed: list[int]) -> float:
    return sum(raw[LATE]) / sum(packed[LATE])


def sizes() -> None:
    paths = runs.ensure("lm")
    progress = Progress("sizes")
    result: dict[str, Any] = {"peers": {}, "lessen": {}}
    raw = [path.stat().st_size for path in paths]
    with tempfile.TemporaryDirectory(dir=runs.cache()) as scratch:
        for name, settings in SIZE_SETTINGS.items():
            out = Path(scratch) / name.replace(" ", "-")
            result["lessen"][name] = progress.unit(name, partial(pack_run, paths, out, settings))
    result["peers"] = peer_sizes(paths, progress)
    columns = f"{'MB/step, late half':>18s} {'x smaller':>10s} {'pack MB/CPU-s':>14s} {'unpack':>8s}"
    print(f"{'method':44s} {columns} {'one step, CPU s':>16s}")
    for name, row in [*result["peers"].items(), *result["lessen"].items()]:
        late = row["bytes"][LATE] if len(row["bytes"]) == 20 else row["bytes"]
        mean = statistics.fmean(late)
        row["late_half_ratio"] = statistics.fmean(raw) / mean
        speed = statistics.fmean(raw) * len(row["cpu_seconds"]) / max(sum(row["cpu_seconds"]), 1e-9) / 1e6
        unpack = f"{row['unpack_all_mb_per_cpu_second']:8.0f}" if "unpack_all_mb_per_cpu_second" in row else ""
        one = f"{row['unpack_last_cpu_seconds']:16.2f}" if "unpack_last_cpu_seconds" in row else ""
        print(f"{name:44s} {mean / 1e6:18.3f} {row['late_half_ratio']:10.2f} {speed:14.0f} {unpack} {one}")
    exact = sum(result["lessen"]["exact"]["bytes"])
    for peer in ("ZipNN", "safetensors + zstd -3"):
        if peer in result["peers"]:
            ours = result["lessen"]["exact"]["bytes"]
            theirs = result["peers"][peer]["bytes"]
            ours = ours if len(theirs) == 20 else ours[LATE]
            result[f"exact_smaller_than_{peer}"] = 1 - sum(ours) / sum(theirs)
            print(f"exact is {100 * (1 - sum(ours) / sum(theirs)):.1f} % smaller than {peer}")
    result["exact_total"] = exact
    save("sizes", result)


SIZE_SETTINGS = {
    "exact": PackSettings(mode="exact"),
    "near": PackSettings(),
    "near, key frame every 10": PackSettings(key_every=10),
    "near, key frame every 5": PackSettings(key_every=5),
}
GAP_SETTINGS = {
    "near": PackSettings(),
    "near, coarser (step 3, moments 6)": PackSettings(near=NearSettings(step=3.0, first_step=6.0, second_octaves=6.0)),
}


# -- the published recipe ----------------------------------------------------------------------------------------
PUBLISHED = {"ExCP as published": False, "ExCP, threshold scaled to 2.5 medians": True}


def published(paths: list[Path], scaled: bool, states: Path, name: str) -> list[int]:
    """Run the recipe along the series, keep the states rebuilt at MARKS in `states`, return bytes per step."""
    before = {key: value[0] for key, value in triples(paths[0]).items()}
    sizes = [paths[0].stat().st_size]
    for k, path in enumerate(paths[1:], start=1):
        stored, back = excp.compress(triples(path), before, scaled)
        before = {key: value[0] for key, value in back.items()}
        sizes.append(len(excp.archive(stored)) if k >= LATE.start else len(stored))  # only the late half is reported
        if k in MARKS:
            torch.save(put(path, back), states / f"{name}-{path.stem}.pt")
    return sizes


# -- resume ------------------------------------------------------------------------------------------------------
def resume_lm(file: Path, seed: int, data: tuple[np.ndarray, np.ndarray]) -> dict[str, float]:
    state = torch.load(file, weights_only=True)
    model = runs.LanguageModel()
    model.load_state_dict(state["model"])
    optimizer = runs.lm_optimizer(model)
    optimizer.load_state_dict(state["optimizer"])
    losses = [runs.lm_step(model, optimizer, data[0], state["step"] + k, seed) for k in range(RESUME_STEPS)]
    return {"first_ten": statistics.fmean(losses[:10]), "final": runs.lm_validate(model, data[1], 6)}


def put(path: Path, back: dict[str, Any]) -> dict[str, Any]:
    """Return the state of a checkpoint with weights and moments replaced by rebuilt ones."""
    state = torch.load(path, weights_only=True)
    for k, (name, (weight, first, second)) in enumerate(back.items()):
        state["model"][name] = torch.from_numpy(weight)
        state["optimizer"]["state"][k]["exp_avg"] = torch.from_numpy(first)
        state["optimizer"]["state"][k]["exp_avg_sq"] = torch.from_numpy(second)
    return state


def gap() -> None:
    """Compare resumes. What is done is kept in the cache, so that a run that was stopped goes on."""
    paths, data = runs.ensure("lm"), runs.text()
    states = runs.cache() / "gap"
    states.mkdir(exist_ok=True)
    progress = Progress("gap")
    result: dict[str, Any] = {"bytes": {}, "rows": {}}
    for k in reversed(MARKS):
        for name in ["original", "near", *PUBLISHED, *list(GAP_SETTINGS)[1:]]:
            result["bytes"][name] = progress.unit(f"bytes of {name}", partial(make_states, name, paths, states))
            file, rows = states / f"{name}-{paths[k].stem}.pt", []
            for seed in range(SEEDS):
                key = f"{name}, {paths[k].stem}, seed {seed}"
                rows.append(progress.unit(key, partial(resume_lm, file, seed, data)))
            result["rows"].setdefault(name, {})[paths[k].stem] = rows
    result |= {"steps": RESUME_STEPS, "seeds": SEEDS, "marks": [paths[k].stem for k in MARKS]}
    raw = result["bytes"]["original"]
    result["late_half_ratio"] = {name: late_ratio(raw, row) for name, row in result["bytes"].items()}
    summarise_gap(result)
    save("gap", result)


def make_states(name: str, paths: list[Path], states: Path) -> list[int]:
    """Write what a method gives back at MARKS, and return its bytes per step."""
    if name == "original":
        for k in MARKS:
            shutil.copy(paths[k], states / f"{name}-{paths[k].name}")
        return [path.stat().st_size for path in paths]
    if name in PUBLISHED:
        return published(paths, PUBLISHED[name], states, name)
    with tempfile.TemporaryDirectory(dir=states) as scratch:
        with Packer(Path(scratch) / "a", GAP_SETTINGS[name]) as packer:
            sizes = [packer.add(snapshot).bytes for snapshot in find_snapshots(paths)]
        for k in MARKS:
            step = int(paths[k].stem.split("-")[1])
            folder = Archive(Path(scratch) / "a").unpack(step, Path(scratch) / f"o{k}")
            shutil.copy(folder / paths[k].name, states / f"{name}-{paths[k].name}")
    return sizes


def summarise_gap(result: dict[str, Any]) -> None:
    original = result["rows"]["original"]
    noise = {}
    for key in ("final", "first_ten"):
        pairs = [abs(a[key] - b[key]) for rows in original.values() for i, a in enumerate(rows) for b in rows[i + 1 :]]
        noise[key] = statistics.fmean(pairs)
    result["noise_between_two_seeds"] = noise
    print(f"noise between two seeds: final {noise['final']:.4f}, first ten steps {noise['first_ten']:.4f}")
    result["gaps"] = {}
    for name, marks in result["rows"].items():
        row = {
            key: statistics.fmean(
                a[key] - b[key] for mark, rows in marks.items() for a, b in zip(rows, original[mark], strict=True)
            )
            for key in ("first_ten", "final")
        }
        result["gaps"][name] = row
        ratio = result["late_half_ratio"].get(name, 1.0)
        gaps = "  ".join(f"{key} {value:+.4f}" for key, value in row.items())
        print(f"{name:44s} {ratio:6.1f}x  {gaps}")
    result["smaller_at_no_larger_gap"] = {name: at_no_larger_gap(result, name) for name in PUBLISHED}
    for name, row in result["smaller_at_no_larger_gap"].items():
        print(f"{row['setting']}: {row['times']:.2f} times smaller than {name},", end=" ")
        print(f"gap {row['gap']:+.4f} to {row['its_gap']:+.4f}")
    result["near_inside_noise"] = {key: abs(result["gaps"]["near"][key]) <= noise[key] for key in noise}


def at_no_larger_gap(result: dict[str, Any], published_name: str) -> dict[str, Any]:
    """Return the smallest setting of ours whose final gap and first-ten bump are no larger than the recipe's."""
    ratios, gaps = result["late_half_ratio"], result["gaps"]
    theirs = gaps[published_name]
    fitting = [name for name in GAP_SETTINGS if all(abs(gaps[name][key]) <= abs(theirs[key]) for key in theirs)]
    best = max(fitting, key=lambda name: ratios[name])
    return {
        "setting": best,
        "times": ratios[best] / ratios[published_name],
        "gap": gaps[best]["final"],
        "its_gap": theirs["final"],
    }


# -- memory ------------------------------------------------------------------------------------------------------
CHILD = """
import sys
from lessen.checkpoints import Archive, PackSettings, find_snapshots, pack
def peak():
    # not ru_maxrss: a child starts with that of the process that forked it
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
before = peak()
if sys.argv[1] == "pack":
    pack(find_snapshots([__import__("pathlib").Path(sys.argv[2])]), sys.argv[3], PackSettings(mode=sys.argv[4]))
else:
    archive = Archive(sys.argv[3])
    archive.unpack(archive.steps[-1], sys.argv[2])
print(before, peak())
"""


def memory() -> None:
    result: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(dir=runs.cache()) as scratch:
        source = Path(scratch) / "run"
        source.mkdir()
        weight = torch.randn(100_000, 1000)
        for step in (1, 2):
            state = {0: {"exp_avg": torch.randn_like(weight) * 1e-3, "exp_avg_sq": torch.rand_like(weight) * 1e-6}}
            torch.save(
                {"step": step, "model": {"w": weight}, "optimizer": {"state": state}}, source / f"step-{step}.pt"
            )
            weight += 1e-3 * torch.randn_like(weight)
        size = (source / "step-1.pt").stat().st_size
        for mode in ("near", "exact"):
            for verb in ("pack", "unpack"):
                place = source if verb == "pack" else Path(scratch) / f"out-{mode}"
                command = [sys.executable, "-c", CHILD, verb, str(place), str(Path(scratch) / mode), mode]
                said = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
                before, peak = (int(number) / 1000 for number in said)
                result[f"{mode} {verb}"] = {"checkpoint_mb": size / 1e6, "import_mb": before, "peak_mb": peak}
                print(f"{mode} {verb}: checkpoint {size / 1e6:.0f} MB, imports {before:.0f} MB, peak {peak:.0f} MB")
            shutil.rmtree(Path(scratch) / f"out-{mode}")
    save("memory", result)


if __name__ == "__main__":
    torch.set_num_threads(1)
    wanted = [part for part in sys.argv[1:] if part != "--one"] or ["sizes", "gap", "memory"]
    for part in wanted:
        {"sizes": sizes, "gap": gap, "memory": memory}[part]()
