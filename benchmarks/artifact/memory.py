"""Peak memory of writing and of loading the artifact of a 2 GB model, above the model itself.

    python -m benchmarks.artifact.memory

Each step runs in a process of its own, whose high-water mark is reset before the step and read from the system after
it; mapped files count. "Above the model" is that mark less what the process held before the step and, of a step that
makes a model, less the bytes of that model.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from torch import nn

from lessen.artifact import folder as artifact
from lessen.artifact.delta import base_of
from lessen.artifact.tensors import SHARD_BYTES
from lessen.version import __version__

RESULTS = Path(__file__).parents[1] / "results" / "artifact_memory.json"
WIDTH = 4096
LIMIT = 1.3
"""Largest peak above the model, in shares of the largest shard."""


class Tower(nn.Module):
    """Layers of 64 MiB each."""

    def __init__(self, layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(layers))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            inputs = torch.tanh(layer(inputs))
        return inputs


def filled(layers: int) -> Tower:
    """Return a model whose every page is touched."""
    model = empty(layers).to_empty(device="cpu")
    for number, layer in enumerate(model.layers):
        nn.init.constant_(layer.weight, (number + 1) / WIDTH / layers)  # type: ignore[arg-type]
    return model.eval()


def empty(layers: int) -> Tower:
    with torch.device("meta"):
        return Tower(layers)


def status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(f"{field}:")).split()[1]) * 1024


def step(name: str, layers: int, path: Path) -> dict[str, float]:
    """Run one step in this process and return what it took, in bytes."""
    torch.set_num_threads(1)
    size = layers * WIDTH * WIDTH * 4
    given = empty(layers) if name == "load" else filled(layers)
    probe = torch.ones(1, WIDTH)
    reference = base_of(given) if name.endswith("delta") else None
    if name == "write delta":
        nn.init.ones_(given.layers[0].weight)  # type: ignore[arg-type]
    base = filled(layers) if name == "write delta" else given
    before = status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    made = 0
    if name.startswith("write"):
        artifact.save(path, given, base, reference=reference, probe=probe)
    elif name == "size":
        artifact.stored_size(given, given)
    else:
        model = artifact.load(path, model=given)
        made = size
        assert not any(parameter.is_meta for parameter in model.parameters())
    peak = status("VmHWM")
    return {"before": before, "peak": peak, "model_made": made, "above_the_model": peak - before - made}


STEPS = ["write", "size", "load", "load beside its base", "write delta", "load delta"]


def measure(layers: int) -> dict[str, object]:
    found: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in STEPS:
            path = Path(folder) / ("delta" if name.endswith("delta") else "whole")
            command = [sys.executable, "-m", "benchmarks.artifact.memory", "--step", name, "--path", str(path)]
            done = subprocess.run([*command, "--layers", str(layers)], capture_output=True, text=True, check=False)
            if done.returncode:
                raise SystemExit(f"{name}: {done.stderr[-800:]}")
            found[name] = json.loads(done.stdout)
        largest = max(item.stat().st_size for item in (Path(folder) / "whole").glob("model*.safetensors"))
        shards = len(list((Path(folder) / "whole").glob("model*.safetensors")))
        delta = sum(item.stat().st_size for item in (Path(folder) / "delta").glob("model*.safetensors"))
    for values in found.values():
        values["share_of_largest_shard"] = round(values["above_the_model"] / largest, 3)
    return {
        "command": "python -m benchmarks.artifact.memory", "lessen": __version__, "torch": str(torch.__version__),
        "python": platform.python_version(), "machine": platform.machine(), "cpus": os.cpu_count(),
        "model_bytes": layers * WIDTH * WIDTH * 4, "shard_limit": SHARD_BYTES, "shards": shards,
        "largest_shard": largest, "delta_of_one_layer_bytes": delta, "limit": LIMIT, "steps": found,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--step", choices=STEPS)
    parser.add_argument("--path", type=Path)
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args()
    if given.step:
        sys.stdout.write(json.dumps(step(given.step, given.layers, given.path)))
        return
    found = measure(given.layers)
    steps = found["steps"]
    assert isinstance(steps, dict)
    for name, values in steps.items():
        above, share = values["above_the_model"] / 2**20, values["share_of_largest_shard"]
        print(f"{name:22} {above:8.1f} MiB above the model, {share:.2f} of the largest shard")
    given.out.write_text(json.dumps(found, indent=2) + "\n")
    worst = max(values["share_of_largest_shard"] for values in steps.values())
    raise SystemExit(0 if worst < LIMIT else f"{worst:.2f} of the largest shard is more than {LIMIT}")


if __name__ == "__main__":
    main()
