"""A quarter of the visual tokens by pooling (DeCo), by learned queries or by a Q-Former, trained equally and shortly.

    python -m benchmarks.tokens.projectors [--steps 60] [--seeds 3] [--arms deco ...]   # rows are added to the result

The model of the task vision-language-grid; 36 tokens of each picture in place of 144. What makes them is new in every
arm, the projector behind it starts from the trained one, the decoder goes on learning and the tower rests: the same
lessons, in the same order, for all arms of a seed. Judged on lessons that were never taught.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lessen.data.scenes import KINDS, LOCATION, SIDE
from lessen.environment import environment
from lessen.files import atomic_write, dump_json, parse_json, read_checked
from lessen.tasks.multimodal.grid import GridTask
from lessen.tasks.multimodal.train_grid import right_by_kind, train_answers
from lessen.tokens.pooling import pool_features

RESULTS = Path(__file__).parents[1] / "results" / "tokens_projectors.json"
TARGET = SIDE // 2
LESSONS = 16


class Pooled(nn.Module):
    """DeCo: means of windows, then the projector; nothing new to learn."""

    def __init__(self, projector: nn.Module, width: int) -> None:
        super().__init__()
        self.projector = projector

    def forward(self, features: Tensor) -> Tensor:
        """Return [P, 36, C] of features [P, 144, D]."""
        out: Tensor = self.projector(pool_features(features, (SIDE, SIDE), (TARGET, TARGET)))
        return out


class Queries(nn.Module):
    """Learned queries that look at the features once, then the projector."""

    def __init__(self, projector: nn.Module, width: int) -> None:
        super().__init__()
        self.queries = nn.Parameter(0.02 * torch.randn(TARGET**2, width))
        self.norm_query, self.norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.look = nn.MultiheadAttention(width, 4, batch_first=True)
        self.projector = projector

    def forward(self, features: Tensor) -> Tensor:
        """Return [P, 36, C] of features [P, 144, D]."""
        seen = self.norm(features)
        asked = self.norm_query(self.queries).expand(len(features), -1, -1)
        out: Tensor = self.projector(self.look(asked, seen, seen, need_weights=False)[0])
        return out


class QFormer(nn.Module):
    """Learned queries, two layers of attention among themselves and to the features (BLIP-2), then the projector."""

    def __init__(self, projector: nn.Module, width: int) -> None:
        super().__init__()
        self.queries = nn.Parameter(0.02 * torch.randn(TARGET**2, width))
        layer = nn.TransformerDecoderLayer(width, 4, 2 * width, dropout=0.0, batch_first=True, norm_first=True)
        self.layers = nn.TransformerDecoder(layer, 2, nn.LayerNorm(width))
        self.norm, self.projector = nn.LayerNorm(width), projector

    def forward(self, features: Tensor) -> Tensor:
        """Return [P, 36, C] of features [P, 144, D]."""
        asked = self.queries.expand(len(features), -1, -1)
        out: Tensor = self.projector(self.layers(asked, self.norm(features)))
        return out


ARMS: dict[str, type[Any]] = {"deco": Pooled, "learned-queries": Queries, "q-former": QFormer}


def run(arm: str, seed: int, steps: int) -> dict[str, Any]:
    """Train one arm and return its right answers by kind."""
    model: Any = GridTask().reference()
    torch.manual_seed(seed)
    width = model.config.vision_config.hidden_size
    model.model.multi_modal_projector = ARMS[arm](model.model.multi_modal_projector, width)
    added = sum(p.numel() for p in model.model.multi_modal_projector.parameters())
    began = time.thread_time()
    train_answers(model, steps, 100 + seed, rate=1e-3, tokens=TARGET**2)
    seconds = time.thread_time() - began
    right = {kind: [sum(found), len(found)] for kind, found in right_by_kind(model, LESSONS, TARGET**2).items()}
    return {"arm": arm, "seed": seed, "steps": steps, "projector_params": added, "cpu_s": seconds, "right": right}


def whole() -> dict[str, Any]:
    """Return the right answers of the untouched model, and pooled without training."""
    model: Any = GridTask().reference()
    found = {"whole": right_by_kind(model, LESSONS)}
    model.model.multi_modal_projector = Pooled(model.model.multi_modal_projector, 0)
    found["deco, not trained"] = right_by_kind(model, LESSONS, TARGET**2)
    return {arm: {kind: [sum(one), len(one)] for kind, one in right.items()} for arm, right in found.items()}


def shares(right: dict[str, list[float]]) -> dict[str, float]:
    """Return the share of right answers about places, of all other kinds, and of all."""
    parts = {"location": LOCATION, "others": tuple(kind for kind in KINDS if kind not in LOCATION), "all": KINDS}
    return {
        name: sum(right[kind][0] for kind in kinds if kind in right) / sum(right[k][1] for k in kinds if k in right)
        for name, kinds in parts.items()
    }


def main() -> None:
    """Run what is not in the results yet, and write them after each run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--arms", nargs="*", default=list(ARMS), choices=list(ARMS))
    given = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = parse_json(read_checked(RESULTS), str(RESULTS))["rows"] if RESULTS.exists() else []
    done = {
        "command": " ".join(["python", "-m", "benchmarks.tokens.projectors", *sys.argv[1:]]),
        "settings": vars(given), "tokens": [SIDE**2, TARGET**2], "untrained": whole(), "rows": rows,
        "load": os.getloadavg(), "threads": 1, "env": environment(),
    }  # fmt: skip
    for seed in range(given.seeds):
        for arm in given.arms:
            if any((row["arm"], row["seed"], row["steps"]) == (arm, seed, given.steps) for row in rows):
                continue
            rows.append(run(arm, seed, given.steps))
            print(arm, seed, {name: round(share, 3) for name, share in shares(rows[-1]["right"]).items()}, flush=True)
            atomic_write(RESULTS, dump_json(done))


if __name__ == "__main__":
    main()
