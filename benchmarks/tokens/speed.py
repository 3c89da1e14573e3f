"""Does the time of a merged ViT-B/16 follow its multiply-adds on a CPU? Against the published way of merging.

    python -m benchmarks.tokens.speed --batch 1 --r 16 [--rounds 20]

One rate and one batch size a run; the result file holds the newest run of each.

The tower is Hugging Face's ViT of the published size with random weights: time does not depend on them. The peer is
the pattern of the published ToMe code (a score matrix with the bias added by hand, even/odd copies, scatter_reduce,
concatenation), written here for the same blocks. All variants alternate in one process on one thread; what is compared
is the CPU time of that thread, and the wall time is kept beside it. Work of others on the machine only ever adds to a
time, so the fastest round of each variant is compared; the median over rounds of the paired ratio stands beside it.

Each is measured with two kernels for the linear layers, the same on both sides of a ratio: the stock one, which on some
processors rearranges the whole weight in every call, a cost that no removed token saves; and weights packed once
(`lessen.decoding.packing`). "Over stock" is the gain of both together over the untouched model.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import sys
import time
from pathlib import Path

import torch
from torch import nn

from lessen.decoding.packing import PackedLinear
from lessen.environment import environment
from lessen.files import atomic_write, dump_json
from lessen.tokens import Merge, reduce_tokens
from lessen.tokens.macs import TowerShape, full_macs, tower_macs
from lessen.tokens.reducers import Nothing

RESULTS = Path(__file__).parents[1] / "results" / "tokens_speed.json"


def build() -> nn.Module:
    from transformers import ViTConfig, ViTModel

    torch.manual_seed(0)
    return ViTModel(ViTConfig(), add_pooling_layer=False).eval()


class PublishedStyle:
    """A block forward in the published style, to be timed only."""

    def __init__(self, block: nn.Module, removed: int, shared: dict) -> None:
        self.block, self.removed, self.shared = block, removed, shared

    def __call__(self, x, *_, **__):
        block, attention = self.block, self.block.attention
        batch, tokens, width = x.shape
        normed = block.layernorm_before(x)
        q, k, v = (
            p(normed).view(batch, tokens, 12, 64).transpose(1, 2)
            for p in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        scores = q @ k.transpose(-1, -2) * 64**-0.5
        size = self.shared.get("size")
        if size is not None and tokens < 197:
            scores = scores + size.log()[:, None, None, :, 0]
        else:
            size = None
        out = (scores.softmax(-1) @ v).transpose(1, 2).reshape(batch, tokens, width)
        x = x + attention.o_proj(out)
        removed = min(self.removed, (tokens - 1) // 2)
        if removed:
            x, self.shared["size"] = self.merge(x, k.mean(1), size, removed)
        return x + block.mlp(block.layernorm_after(x))

    @staticmethod
    def merge(x, metric, size, removed):
        metric = metric / metric.norm(dim=-1, keepdim=True)
        scores = metric[:, ::2] @ metric[:, 1::2].transpose(-1, -2)
        scores[:, 0] = -torch.inf
        best, where = scores.max(-1)
        order = best.argsort(-1, descending=True)[..., None]
        kept = order[:, removed:].sort(1).values
        source = order[:, :removed]
        target = where[..., None].gather(1, source)

        def join(values):
            width = values.shape[-1]
            even, odd = values[:, ::2], values[:, 1::2]
            rest = even.gather(1, kept.expand(-1, -1, width))
            gone = even.gather(1, source.expand(-1, -1, width))
            return torch.cat([rest, odd.scatter_reduce(1, target.expand(-1, -1, width), gone, "sum")], 1)

        if size is None:
            size = torch.ones_like(x[..., :1])
        merged, sizes = join(x * size), join(size)
        return merged / sizes, sizes


def packed(base: nn.Module) -> nn.Module:
    """Return a copy whose linear layers read weights that are packed once."""
    model = copy.deepcopy(base)
    sites = [(m, n, c) for m in model.modules() for n, c in m.named_children() if type(c) is nn.Linear]
    for parent, name, linear in sites:
        setattr(parent, name, PackedLinear(linear))
    return model


def variants(base: nn.Module, r: int) -> dict[str, nn.Module]:
    models = {"reference": base, "patched, nothing merged": copy.deepcopy(base), "packed reference": packed(base)}
    reduce_tokens(models["patched, nothing merged"], Nothing(blocks=12))
    models["linear layers r=0"] = LinearLayers(base, [197] * 12)
    models[f"packed lessen r={r}"] = both = packed(base)
    reduce_tokens(both, Merge(removed=(r,) * 12))
    models[f"lessen r={r}"] = ours = copy.deepcopy(base)
    reduce_tokens(ours, Merge(removed=(r,) * 12))
    models[f"linear layers r={r}"] = LinearLayers(base, Merge(removed=(r,) * 12).counts(197, 1))
    models[f"published style r={r}"] = theirs = copy.deepcopy(base)
    shared: dict = {}
    for block in theirs.layers:
        block.__dict__["forward"] = PublishedStyle(block, r, shared)
    return models


def measure(models: dict[str, nn.Module], batch: int, rounds: int) -> dict[str, list[list[float]]]:
    """Return [CPU ms, wall ms] of every round, variants alternating and the order reversed every other round."""
    images = torch.randn(batch, 3, 224, 224)
    times: dict[str, list[list[float]]] = {name: [] for name in models}
    with torch.inference_mode():
        for number in range(-1, rounds):
            names = list(models) if number % 2 else list(models)[::-1]
            for name in names:
                cpu, wall = time.thread_time(), time.perf_counter()
                models[name](images)
                pair = [1e3 * (time.thread_time() - cpu), 1e3 * (time.perf_counter() - wall)]
                if number >= 0:
                    times[name].append(pair)
    return times


class LinearLayers(nn.Module):
    """The linear layers of all blocks alone, on the rows that a schedule leaves: a bound that no merging beats."""

    def __init__(self, base: nn.Module, counts: list[int]) -> None:
        super().__init__()
        self.layers, self.counts = base.layers, counts

    def forward(self, images: torch.Tensor) -> None:
        before = 197
        for block, after in zip(self.layers, self.counts, strict=True):
            attention, rows = block.attention, torch.ones(len(images), before, 768)
            for layer in (attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj):
                layer(rows)
            first, second = (m for m in block.mlp.modules() if isinstance(m, nn.Linear))
            second(first(rows[:, :after]))
            before = after


def fastest(samples: list[list[float]]) -> float:
    """Return the least CPU time of all rounds."""
    return min(cpu for cpu, _ in samples)


def median_ratio(reference: list[list[float]], samples: list[list[float]]) -> float:
    """Return the median over rounds of CPU time before to CPU time after."""
    return statistics.median(before / cpu for (before, _), (cpu, _) in zip(reference, samples, strict=True))


def ratio_of(shape: TowerShape, name: str) -> float:
    if "r=" not in name or name.endswith("r=0"):
        return 1.0
    counts = Merge(removed=(int(name.split("r=")[1]),) * 12).counts(197, 1)
    return full_macs(shape) / tower_macs(shape, counts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--r", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=20)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    batch, r = arguments.batch, arguments.r
    models, shape, rows = variants(build(), r), TowerShape.vit(768, 12, 196), []
    images = torch.ones(1, 3, 224, 224)
    ours, theirs = (models[f"{kind} r={r}"](images).last_hidden_state for kind in ("lessen", "published style"))
    print(f"r={r}: largest difference to the published style {float((ours - theirs).detach().abs().max()):.1e}")
    titles = f"{'batch':>5} {'variant':26} {'CPU ms':>9} {'speed-up':>9} {'MAC ratio':>9} {'share':>6} {'median':>6}"
    print(titles, f"{'over stock':>10}")
    times = measure(models, batch, arguments.rounds)
    for name, samples in times.items():
        kind = name.split(" r=")[0]
        own = {"packed lessen": "packed reference", "linear layers": "linear layers r=0"}.get(kind, "reference")
        gain, middle = fastest(times[own]) / fastest(samples), median_ratio(times[own], samples)
        macs, over_stock = ratio_of(shape, name), fastest(times["reference"]) / fastest(samples)
        text = f"{batch:>5} {name:26} {fastest(samples):9.1f} {gain:9.3f} {macs:9.3f} {gain / macs:6.3f} "
        print(text + f"{middle / macs:6.3f} {over_stock:10.3f}", flush=True)
        rows.append(
            {
                "batch": batch,
                "variant": name,
                "cpu_ms": fastest(samples),
                "speed_up": gain,
                "mac_ratio": macs,
                "share_of_mac_ratio": gain / macs,
                "median_share": middle / macs,
                "over_stock": over_stock,
                "samples_cpu_wall_ms": samples,
            }
        )
    run = {
        "batch": batch,
        "r": r,
        "command": " ".join(["python", "-m", "benchmarks.tokens.speed", *sys.argv[1:]]),
        "threads": 1,
        "env": environment(),
        "transformers": __import__("transformers").__version__,
        "rows": rows,
    }
    runs = json.loads(RESULTS.read_text()).get("runs", []) if RESULTS.exists() else []
    others = [kept for kept in runs if (kept["batch"], kept["r"]) != (batch, r)]
    ordered = sorted([*others, run], key=lambda one: (one["batch"], one["r"]))
    atomic_write(RESULTS, dump_json({"runs": ordered}))


if __name__ == "__main__":
    main()
