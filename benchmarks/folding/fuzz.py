"""Folds of drawn networks and of published architectures, each against the network before it in float64.

    python -m benchmarks.folding.fuzz [--count 1000] [--peers onnxsim,onnxslim]

Networks are those of `networks.Drawn`, as many of each kind; architectures have drawn weights and statistics. An error
is the largest difference of an answer to inputs that the fold was not proven on, over the largest answer. Peers (PyPI)
get the same networks as float64 ONNX files and are judged by ONNX's reference evaluator. Results are kept by fifty
seeds, so that a run may be cut short.
"""

from __future__ import annotations

import argparse
import importlib
import io
import json
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.folding.networks import Drawn, stir
from lessen.environment import environment, package_version
from lessen.files import atomic_write, dump_json
from lessen.folding.run import fold

RESULT = Path(__file__).parents[1] / "results" / "folding_fuzz.json"
KINDS = ("dense", "conv")
AT_ONCE = 50
BOUND = 1e-12
CHANGED = "folding it changes an answer"
SMALL = {"hidden_sizes": [8, 16], "depths": [1, 1]}
ARCHITECTURES: dict[str, tuple[str, str, int, dict[str, Any]]] = {
    "ResNet": ("ResNetModel", "ResNetConfig", 32, {"embedding_size": 8, **SMALL}),
    "RegNet": ("RegNetModel", "RegNetConfig", 32, {"embedding_size": 8, "groups_width": 4, **SMALL}),
    "MobileNetV1": ("MobileNetV1Model", "MobileNetV1Config", 32, {"depth_multiplier": 0.25, "image_size": 32}),
    "MobileNetV2": ("MobileNetV2Model", "MobileNetV2Config", 32, {"depth_multiplier": 0.35, "image_size": 32}),
    "EfficientNet": ("EfficientNetModel", "EfficientNetConfig", 64, {
        "width_coefficient": 0.25, "image_size": 64, "hidden_dim": 320,
    }),
    "LeViT": ("LevitModel", "LevitConfig", 64, {
        "image_size": 64, "hidden_sizes": [16, 24, 32], "num_attention_heads": [2, 2, 2], "depths": [1, 1, 1],
        "key_dim": [8, 8, 8], "mlp_ratio": [2, 2, 2], "attention_ratio": [2, 2, 2],
    }),
    "MobileViT": ("MobileViTModel", "MobileViTConfig", 64, {
        "image_size": 64, "hidden_sizes": [16, 24, 32], "neck_hidden_sizes": [8, 16, 16, 24, 24, 24, 32],
        "num_attention_heads": 2,
    }),
    "CvT": ("CvtModel", "CvtConfig", 64, {"embed_dim": [16, 32, 32], "num_heads": [1, 2, 2], "depth": [1, 2, 3]}),
    "SwiftFormer": ("SwiftFormerModel", "SwiftFormerConfig", 64, {
        "image_size": 64, "embed_dims": [16, 16, 24, 32], "depths": [1, 1, 1, 2], "drop_path_rate": 0.0,
    }),
}  # fmt: skip


def largest(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """Return the largest difference over the largest answer."""
    return float((found - wanted).abs().max() / wanted.abs().max().clamp(min=1e-30))


def drawn(seed: int, kind: str) -> tuple[Any, torch.Tensor]:
    """Return a network of a seed in float64 and inputs that no fold is proven on."""
    model = Drawn(seed, kind).double()
    generator = torch.Generator().manual_seed(10**6 + seed)
    return model, 2 * torch.randn(20, *model.shape, dtype=torch.float64, generator=generator)


def ours(seed: int, kind: str) -> dict[str, Any]:
    """Return what was folded of a network, and the error; "failed" says why, where it went wrong."""
    model, fresh = drawn(seed, kind)
    generator = torch.Generator().manual_seed(seed)
    given = torch.randn(6, *model.shape, dtype=torch.float64, generator=generator)
    found = fold(model, [((given,), {})], generator)
    with torch.no_grad():
        apart = largest(found.model(fresh), model(fresh))
    undone = [path for path, why in found.kept.items() if why == CHANGED]
    failed = f"{apart:.1e} apart" if apart > BOUND else f"{undone[0]} was folded wrongly" if undone else None
    return {"error": apart, "failed": failed, "folds": [kind_of(one.kind) for one in found.folds],
            "parameters": [_size(model), _size(found.model)]}  # fmt: skip


def kind_of(said: str) -> str:
    """Return a kind without its count: "3 units" are units."""
    return said.lstrip("0123456789 ")


def peer(name: str) -> Callable[[int, str], dict[str, Any]]:
    """Return what folds a network by a package from PyPI, as ONNX."""
    import onnx
    from onnx.reference import ReferenceEvaluator

    module = importlib.import_module(name)

    def said(graph: Any, x: torch.Tensor) -> torch.Tensor:
        evaluator: Any = ReferenceEvaluator(graph)
        return torch.from_numpy(evaluator.run(None, {"x": x.numpy()})[0])

    def run(seed: int, kind: str) -> dict[str, Any]:
        model, fresh = drawn(seed, kind)
        file: Any = io.BytesIO()
        torch.onnx.export(model, (fresh,), file, dynamo=False, input_names=["x"], do_constant_folding=False)
        whole = onnx.load_model_from_string(file.getvalue())
        wanted = said(whole, fresh)
        try:
            made = module.simplify(whole)[0] if name == "onnxsim" else module.slim(whole)
            found = said(made, fresh)
        except Exception as error:  # whatever a package does wrong is what is counted
            return {"error": 0.0, "failed": f"{type(error).__name__}: {error}"[:200], "folds": [],
                    "parameters": [_size(model)] * 2}  # fmt: skip
        apart = largest(found, wanted)
        sizes = [_size(model), sum(_numbers(one) for one in made.graph.initializer)]
        failed = f"{apart:.1e} apart" if apart > BOUND else None
        return {"error": apart, "failed": failed, "folds": [], "parameters": sizes}

    return run


def _numbers(tensor: Any) -> int:
    count = 1
    for size in tensor.dims:
        count *= size
    return count


def _size(model: nn.Module) -> int:
    tensors = {id(t): t.numel() for t in (*model.parameters(), *model.buffers()) if t.is_floating_point()}
    return sum(tensors.values())


def architecture(name: str) -> dict[str, Any]:
    """Return the same of a published architecture with drawn weights."""
    import transformers

    cls, config, size, changes = ARCHITECTURES[name]
    torch.manual_seed(0)
    model = stir(getattr(transformers, cls)(getattr(transformers, config)(**changes))).double()
    given, fresh = torch.randn(2, 4, 3, size, size, dtype=torch.float64)
    norms = [m for m in model.modules() if isinstance(m, (nn.BatchNorm1d, nn.BatchNorm2d))]
    found = fold(model, [((), {"pixel_values": given})], torch.Generator().manual_seed(0))
    with torch.no_grad():
        one, other = (each(pixel_values=fresh).last_hidden_state for each in (found.model, model))
    left = sum(isinstance(m, (nn.BatchNorm1d, nn.BatchNorm2d)) for m in found.model.modules())
    return {"error": largest(one, other), "folds": dict(Counter(kind_of(f.kind) for f in found.folds)),
            "norms": [len(norms), left], "parameters": [_size(model), _size(found.model)]}  # fmt: skip


def add(total: dict[str, Any], one: dict[str, Any], seed: int) -> None:
    """Add one network to the counts of a row."""
    total["networks"] = total.get("networks", 0) + 1
    total["error"] = max(total.get("error", 0.0), one["error"] if one["failed"] is None else 0.0)
    total["folds"] = dict(Counter(total.get("folds", {})) + Counter(one["folds"]))
    total["folded"] = total.get("folded", 0) + (one["parameters"][1] < one["parameters"][0])
    total["parameters"] = [a + b for a, b in zip(total.get("parameters", [0, 0]), one["parameters"], strict=True)]
    total.setdefault("failed", {})
    if one["failed"] is not None:
        total["failed"][str(seed)] = one["failed"]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--peers", default="")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    record: dict[str, Any] = json.loads(RESULT.read_text()) if RESULT.exists() else {
        "benchmark": "folding_fuzz", "command": "python -m benchmarks.folding.fuzz --peers onnxsim,onnxslim",
        "bound": BOUND, "environment": environment(1), "versions": {}, "rows": {}, "architectures": {},
    }  # fmt: skip
    names = [name for name in asked.peers.split(",") if name]
    record["versions"] |= {name: package_version(name) for name in ("transformers", "onnx", *names)}
    for who in ("lessen", *names):
        by = ours if who == "lessen" else peer(who)
        for kind in KINDS:
            row = record["rows"].setdefault(f"{who} {kind}", {})
            start = time.process_time()
            for seed in range(row.get("networks", 0), asked.count):
                add(row, by(seed, kind), seed)
                if (seed + 1) % AT_ONCE == 0 or seed + 1 == asked.count:
                    row["cpu_s"] = round(row.get("cpu_s", 0.0) + time.process_time() - start, 1)
                    start = time.process_time()
                    atomic_write(RESULT, dump_json(record))
            print(who, kind, {k: v for k, v in row.items() if k != "failed"}, len(row["failed"]), flush=True)
    for name in ARCHITECTURES:
        if name not in record["architectures"]:
            record["architectures"][name] = architecture(name)
            atomic_write(RESULT, dump_json(record))
            print(name, record["architectures"][name], flush=True)


if __name__ == "__main__":
    main()
