"""Training DeepFM beside FuxiCTR: samples per CPU-second on the same batches, in alternation, one thread.

    python -m benchmarks.ctr.training --peer FUXICTR_CHECKOUT --ids 250000 --updates lazy-adam
    python -m benchmarks.ctr.training --peer FUXICTR_CHECKOUT --ids 25000 --updates dense

39 fields, dimension 10, batch 4096, MLP 400-400-400 with BatchNorm, Adam 1e-3, gradient clipping at 10, no regulariser;
ids are drawn from a Zipf law. FUXICTR_CHECKOUT is a source tree of reczoo/FuxiCTR (model_zoo/DeepFM/DeepFM_torch is
used); its dependencies must be importable. FuxiCTR is handed ready int64 tensors, so that its loader is left out.
Blocks of steps alternate inside one process, so that both see the same machine; the ratio is of medians of blocks.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lessen.data.columns import Batch, Columns, IdField, Layout
from lessen.stored.fields import Segment
from lessen.tasks.ctr.models.deepfm import DeepFM
from lessen.train.fit import fit
from lessen.train.settings import FitSettings

FIELDS, DIM, BATCH, HIDDEN = 39, 10, 4096, (400, 400, 400)
RESULTS = Path(__file__).parents[1] / "results"


def examples(ids: int, batches: int) -> Columns:
    """Return Zipf ids with a planted first-order signal, so that loss curves mean something."""
    generator = np.random.default_rng(0)
    rows = batches * BATCH
    local = (generator.zipf(1.1, (rows, FIELDS)) - 1) % ids
    weight = generator.normal(0, 0.25, (FIELDS, ids)).astype(np.float32)
    logit = sum(weight[field, local[:, field]] for field in range(FIELDS))
    label = (generator.random(rows) < 1 / (1 + np.exp(-logit))).astype(np.float32)
    segments = tuple(Segment(f"c{field}", 1 + field * ids, ids) for field in range(FIELDS))
    layout = Layout(tuple(IdField(s.name, "categorical", i, 1, s.name) for i, s in enumerate(segments)), segments)
    offsets = np.array([segment.start for segment in segments])
    return Columns(torch.from_numpy((local + offsets).astype(np.int32)), torch.from_numpy(label), layout)


def peer(checkout: Path, ids: int, data: Columns) -> Callable[[int], float]:
    """Return a function that takes FuxiCTR's own training step on one batch and gives its loss."""
    sys.path[:0] = [str(checkout / "model_zoo" / "DeepFM" / "DeepFM_torch"), str(checkout)]
    from fuxictr.features import FeatureMap
    from src.DeepFM import DeepFM as PeerDeepFM

    features = FeatureMap("bench", ".")
    names = [f"c{field}" for field in range(FIELDS)]
    for name in names:
        features.features[name] = {"source": "", "type": "categorical", "vocab_size": ids + 1, "padding_idx": 0}
    features.default_emb_dim = DIM
    features.labels, features.num_fields, features.total_features = ["label"], FIELDS, FIELDS * (ids + 1)
    torch.manual_seed(0)
    model = PeerDeepFM(
        features,
        gpu=-1,
        embedding_dim=DIM,
        hidden_units=list(HIDDEN),
        batch_norm=True,
        learning_rate=1e-3,
        optimizer="adam",
        loss="binary_crossentropy",
        task="binary_classification",
        metrics=["AUC"],
        model_root=tempfile.mkdtemp(),
        verbose=0,
    )
    model._max_gradient_norm = 10.0
    offsets = torch.tensor([segment.start for segment in data.layout.segments])
    ready = []
    for inputs, label in data.batches(BATCH):
        local = (inputs["ids"].long() - offsets + 1).unbind(dim=1)
        ready.append({**{n: column.contiguous() for n, column in zip(names, local, strict=True)}, "label": label})
    model.train()
    return lambda number: float(model.train_step(ready[number]).detach())


def alternate(arguments: argparse.Namespace) -> dict[str, Any]:
    """Run both in alternating blocks and return the raw samples."""
    data = examples(arguments.ids, arguments.steps)
    theirs = peer(arguments.peer, arguments.ids, data)
    torch.manual_seed(0)
    ours = DeepFM(data.layout, dim=DIM, hidden=HIDDEN, dropout=0.0, std=1e-4)
    seconds: dict[str, list[float]] = {"lessen": [], "fuxictr": []}
    losses: dict[str, list[float]] = {"lessen": [], "fuxictr": []}

    def batches(_: int) -> Iterator[Batch]:
        """Give our loop a block of batches, then let the peer have the same block; CPU time of each is kept."""
        ready = list(data.batches(BATCH))
        for start in range(0, len(ready), arguments.block):
            began = time.process_time()
            yield from ready[start : start + arguments.block]
            seconds["lessen"].append(time.process_time() - began)
            began = time.process_time()
            losses["fuxictr"] += [theirs(n) for n in range(start, min(start + arguments.block, len(ready)))]
            seconds["fuxictr"].append(time.process_time() - began)

    def loss(model: torch.nn.Module, batch: Batch) -> Tensor:
        value = F.binary_cross_entropy_with_logits(model(**batch[0]), batch[1])
        losses["lessen"].append(float(value.detach()))
        return value

    settings = FitSettings(epochs=1, table_updates=arguments.updates)
    fit(ours, batches=batches, loss=loss, validate=lambda _: 0.0, settings=settings)
    return {"seconds": seconds, "losses": losses}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", type=Path, required=True, help="source tree of FuxiCTR")
    parser.add_argument("--ids", type=int, default=250_000, help="rows of each field")
    parser.add_argument("--updates", default="lazy-adam", choices=["dense", "lazy-adam", "rowwise-adagrad"])
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--repeat", type=int, default=3, help="fresh models each time")
    parser.add_argument("--block", type=int, default=3, help="steps of one side before the other has its turn")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    repetitions = [alternate(arguments) for _ in range(arguments.repeat)]
    # the first block of each pays for state that is built once
    medians = [{who: statistics.median(v[1:]) for who, v in raw["seconds"].items()} for raw in repetitions]
    ratios = [median["fuxictr"] / median["lessen"] for median in medians]
    ratio = statistics.median(ratios)
    speed = {who: arguments.block * BATCH / statistics.median(m[who] for m in medians) for who in medians[0]}
    raw = repetitions[-1]
    print(f"{'':10}{'samples per CPU-second':>24}{'last loss':>12}")
    for who in speed:
        print(f"{who:10}{speed[who]:>24,.0f}{np.mean(raw['losses'][who][-3:]):>12.4f}")
    print(
        f"lessen ({arguments.updates}) / fuxictr at {FIELDS} x {arguments.ids:,} ids: {ratio:.2f}x "
        f"(repetitions: {', '.join(f'{one:.2f}' for one in ratios)})"
    )
    RESULTS.mkdir(exist_ok=True)
    options = {key: str(value) if key != "peer" else "FUXICTR_CHECKOUT" for key, value in vars(arguments).items()}
    result = {
        "command": "python -m benchmarks.ctr.training",
        "options": options,
        "ratio": ratio,
        "ratios": ratios,
        "samples_per_cpu_second": speed,
        "load_average": os.getloadavg(),
        "machine": platform.processor() or platform.machine(),
        "torch": torch.__version__,
        "peer": "FuxiCTR 2.3.10",
        "repetitions": repetitions,
    }
    name = f"ctr_training_{arguments.ids}_{arguments.updates}.json"
    (RESULTS / name).write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
