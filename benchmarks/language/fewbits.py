"""What few-bit weights cost a language model: perplexity, KL to the original, flipped tokens, bits really stored.

    python -m benchmarks.language.fewbits [--rows GLOB] [--gguf Q4_0.gguf Q3_K_M.gguf]

SmolLM2-135M-Instruct, float32, news text, one thread. Rows are made one by one; a row that the result file holds
already is not made again. `part` rows round blocks 10 to 15 of 30 (42 linears), `whole` rows all 210 linears of the
blocks and, by RTN and GPTQ, the embedding, which is also the head, at 8 bits. Calibration: 24 sequences of 192 tokens
of the train split. Each document is judged in windows of 512 tokens; its sums are kept, so that any two rows are
compared in pairs.

KL is that of next-token distributions, original to made, in nats; flips are the share of tokens whose arg-max changed.
Trap: the weights lie on a 4-bit grid in groups of 32, so that 4 bits in such groups lose nothing and show nothing.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import resource
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import lessen
from lessen.architectures.loading import load_host
from lessen.environment import environment, package_version
from lessen.files import atomic_write, dump_json
from lessen.methods.sites import module_bytes, state_bytes
from lessen.recipe import Recipe
from lessen.stored.base import StoredModule

RESULT = Path(__file__).parents[1] / "results" / "language_fewbits.json"
PART = "model.layers.1[0-5]"
CALIBRATION = {"calibration_batches": 6}
OAC = {"hessian": "output", **CALIBRATION}


def rows() -> dict[str, dict[str, Any]]:
    """Return the steps by row, those of the bars first."""
    found: dict[str, dict[str, Any]] = {}
    for where, bits in (("part", 3), ("whole", 4), ("part", 2), ("whole", 3), ("whole", 2), ("whole", 8)):
        # a part is compared at equal linears; of a whole model the embedding counts too, at its default of 8 bits
        common = {"bits": bits, "group": 64, **({"only": PART, "table_bits": None} if where == "part" else {})}
        oac = {**OAC, "blocks_a_pass": 6 if where == "part" else 15}
        found[f"{where} {bits} rtn"] = {"rtn": common}
        found[f"{where} {bits} gptq"] = {"gptq": {**common, **CALIBRATION}}
        found[f"{where} {bits} oac"] = {"gptq": {**common, **oac}}
        found[f"{where} {bits} gptq searched"] = {"gptq": {**common, **CALIBRATION, "ranges": "search"}}
        found[f"{where} {bits} oac searched"] = {"gptq": {**common, **oac, "ranges": "search"}}
    # what benchmarks.language.importance found best: scales of 6 bits, solved for
    best = {**CALIBRATION, "hessian": "tokens", "blocks_a_pass": 15, "ranges": "search", "refit": 2}
    for bits in (3, 4):
        found[f"whole {bits} coded scales"] = {"gptq": {"bits": bits, "group": 32, "scale_bits": 6, **best}}
    for kind, knobs in (("", CALIBRATION), (" oac", {**OAC, "blocks_a_pass": 6})):
        only = {"only": PART, **knobs}
        for bits in (3, 2):
            found[f"part {bits} spqr{kind}"] = {"spqr": {"bits": bits, **only}}
        found[f"part billm{kind}"] = {"billm": only}
        found[f"part billm of one bit{kind}"] = {"billm": {"split": False, "block": None, **only}}
    return found


class Judge:
    """The documents with what the original model says of them: fp16 log-probabilities, and the likeliest token."""

    def __init__(self, task: Any, original: nn.Module) -> None:
        self.task = task
        self.original = [
            [(labels, said.half(), said.argmax(1)) for labels, said in windows] for windows in self._documents(original)
        ]

    def _documents(self, model: nn.Module) -> Iterator[list[tuple[Tensor, Tensor]]]:
        """Yield, for each document, its windows: (labels int64 [judged], log-probabilities float32 [judged, words])."""
        for _, ids in self.task._documents("test"):
            windows = []
            for window in self.task._windows(ids):
                with torch.no_grad():
                    logits = model(input_ids=window.ids[None]).logits[0, :-1].float()
                labels = window.labels[1:]
                windows.append((labels[labels >= 0], logits[labels >= 0].log_softmax(-1)))
            yield windows

    def __call__(self, model: nn.Module) -> dict[str, list[float]]:
        """Return sums a document: nll, kl, flips and tokens."""
        found: dict[str, list[float]] = {"nll": [], "kl": [], "flips": [], "tokens": []}
        for windows, known in zip(self._documents(model), self.original, strict=True):
            sums = dict.fromkeys(found, 0.0)
            for (labels, said), (_, original, likeliest) in zip(windows, known, strict=True):
                before = original.float()
                sums["nll"] -= float(said.gather(1, labels[:, None]).double().sum())
                sums["kl"] += float((before.exp() * (before - said)).double().sum())
                sums["flips"] += float((likeliest != said.argmax(1)).sum())
                sums["tokens"] += len(labels)
            for name, value in sums.items():
                found[name].append(round(value, 4))
        return found


def densely(model: nn.Module, kind: type[StoredModule] = StoredModule) -> nn.Module:
    """Put the own weights of each compact layer of a kind into a dense one, which judges the same weights faster."""
    for path, module in list(model.named_modules()):
        if isinstance(module, kind) and hasattr(module, "in_features"):
            dense = nn.Linear(module.in_features, module.out_features, bias=module.bias is not None)
            dense.weight.data = module.dequantise()
            if module.bias is not None:
                dense.bias.data = module.bias.float()
            parent, _, name = path.rpartition(".")
            setattr(model.get_submodule(parent), name, dense)
    return model


def bits_of(model: nn.Module) -> dict[str, float]:
    """Return bytes of the whole state, and the bits of a weight in the compact layers of the blocks."""
    compact = [m for path, m in model.named_modules() if ".layers." in path and isinstance(m, StoredModule)]
    compact = [module for module in compact if hasattr(module, "in_features")]
    taken = sum(module_bytes(module) for module in compact)
    weights = sum(module.in_features * module.out_features for module in compact)
    return {"layers": len(compact), "state_bytes": state_bytes(model), "bits_per_weight": round(8 * taken / weights, 4)}


def made(original: nn.Module, task: Any, judge: Judge, step: dict[str, Any]) -> dict[str, Any]:
    start, cpu = time.perf_counter(), time.process_time()
    model, _ = Recipe.parse({"name": "row", "steps": [step]}).apply(original, task, seed=0)
    seconds = {"wall_s": time.perf_counter() - start, "cpu_s": time.process_time() - cpu}
    return {"step": step, **bits_of(model), **seconds, "documents": judge(densely(model))}


def peer(path: str, judge: Judge) -> dict[str, Any]:
    """Judge a GGUF file by its weights, decoded to float32: its own runtime rounds activations to 8 bits as well."""
    from gguf import GGUFReader

    tensors = GGUFReader(path).tensors
    linears = [tensor for tensor in tensors if tensor.name.startswith("blk.") and len(tensor.shape) == 2]
    bits = 8 * sum(int(one.n_bytes) for one in linears) / sum(int(one.n_elements) for one in linears)
    return {
        "file": Path(path).name, "file_bytes": Path(path).stat().st_size, "bits_per_weight": round(bits, 4),
        "state_bytes": sum(int(one.n_bytes) for one in tensors), "documents": judge(load_host(path, "float32")),
        "cpu_s": 0.0,
    }  # fmt: skip


def perplexity(row: dict[str, Any]) -> float:
    documents = row["documents"]
    return float(torch.tensor(sum(documents["nll"]) / sum(documents["tokens"])).exp())


def mean(row: dict[str, Any], name: str) -> float:
    return sum(row["documents"][name]) / sum(row["documents"]["tokens"])


def apart(one: dict[str, Any], other: dict[str, Any], name: str = "nll") -> tuple[float, float, float]:
    """Return the mean of one minus that of other over tokens, with its 95 % interval: a jackknife over documents."""
    a, b, n = (torch.tensor(x, dtype=torch.float64) for x in
               (one["documents"][name], other["documents"][name], one["documents"]["tokens"]))  # fmt: skip
    difference = a - b
    whole = float(difference.sum() / n.sum())
    left = (difference.sum() - difference) / (n.sum() - n)
    half = 2.36 * float(((len(n) - 1) / len(n) * (left - left.mean()).square().sum()).sqrt())  # Student, 7 degrees
    return whole, whole - half, whole + half


def table(record: dict[str, Any]) -> None:
    for name, row in record["rows"].items():
        print(
            f"{name:28} {row['bits_per_weight'] or 32:7.3f} bits  perplexity {perplexity(row):9.2f}  "
            f"KL {mean(row, 'kl'):.4f}  flips {100 * mean(row, 'flips'):5.1f} %  {row['cpu_s']:6.0f} s cpu"
        )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", default="*", help="glob over row names")
    parser.add_argument("--gguf", nargs="*", default=[], help="files to judge beside, see requantise.py")
    parser.add_argument("--documents", type=int, default=8)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    task = lessen.get_task({"name": "language-smollm2", "window": 192, "stride": 96})
    judged = lessen.get_task({"name": "language-smollm2", "documents": asked.documents})
    record: dict[str, Any] = json.loads(RESULT.read_text()) if RESULT.exists() else {
        "benchmark": "language_fewbits", "command": "python -m benchmarks.language.fewbits", "rows": {},
        "environment": {**environment(1), "transformers": package_version("transformers")},
        "judged": judged.describe(), "calibrated": task.describe(),
    }  # fmt: skip
    original = judged.reference()
    judge = Judge(judged, original)
    if "original" not in record["rows"]:
        record["rows"]["original"] = {"bits_per_weight": None, "cpu_s": 0.0, "documents": judge(original)}
        atomic_write(RESULT, dump_json(record))
    for path in asked.gguf:
        record["rows"][f"llama.cpp {Path(path).stem}"] = peer(path, judge)
        atomic_write(RESULT, dump_json(record))
    for name, step in rows().items():
        if name in record["rows"] or not fnmatch.fnmatch(name, asked.rows):
            continue
        record["rows"][name] = made(original, task, judge, step)
        record["rows"][name]["peak_rss_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        atomic_write(RESULT, dump_json(record))
        table({"rows": {name: record["rows"][name]}})
    table(record)


if __name__ == "__main__":
    main()
