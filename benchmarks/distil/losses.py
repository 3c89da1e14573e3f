"""Losses of language distillation beside one another: all probabilities, draws, clipped by rule and by a learned net.

    python -m benchmarks.distil.losses --seeds 8 [--seconds 150]   # writes benchmarks/results/distil_losses.json

Texts are drawn from a random process of two earlier tokens over a vocabulary of 256. A Llama of two layers that has
seen 2000 rows teaches one of a layer, a third as wide, on 320 rows. Numbers are nats a token of 200 test rows: the
student's loss on the texts, and its divergence from the teacher. Run it again to go on where the time was over.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load, save
from torch import Tensor, nn

from benchmarks.distil.results import Rows, paired, table
from lessen.data.cache import cache_folder
from lessen.files import atomic_write
from lessen.method import Context
from lessen.methods.distil._shared.divergences import divergence
from lessen.methods.distil.gkd import GKD
from lessen.methods.distil.random_sampling_kd import RandomSamplingKD
from lessen.methods.distil.semantic_revision import SemanticRevision
from lessen.metrics import ACCURACY
from lessen.task import Split, Task
from lessen.train.settings import FitSettings

RESULT = Path("benchmarks/results/distil_losses.json")
WORDS, LENGTH, BATCH = 256, 32, 16
CLIPPED = SemanticRevision(on_policy=0.0, correct=False, span_weight=0.0, task_weight=0.0)
METHODS: dict[str, Any] = {
    "forward kl": GKD(kind="forward", on_policy=0.0),
    "12 draws": RandomSamplingKD(),
    "clipped at 0.95": CLIPPED.model_copy(update={"clip": "fixed"}),
    "dac-kl": CLIPPED,
    "reverse kl": GKD(kind="reverse", on_policy=0.0),
    "jsd": GKD(kind="jsd", on_policy=0.0),
}


@cache
def drawn(rows: int, seed: int) -> Tensor:
    """Return rows of tokens, int64 [rows, LENGTH]."""
    fixed = torch.Generator().manual_seed(0)
    first, second = (torch.randn(WORDS, 8, generator=fixed) for _ in range(2))
    out = torch.randn(16, WORDS, generator=fixed)
    generator = torch.Generator().manual_seed(1 + seed)
    ids = torch.randint(WORDS, (rows, 2), generator=generator)
    for _ in range(LENGTH - 2):
        logits = 0.8 * torch.cat([first[ids[:, -1]], second[ids[:, -2]]], dim=1) @ out
        ids = torch.cat([ids, torch.multinomial(logits.softmax(dim=1), 1, generator=generator)], dim=1)
    return ids


class Process(Task):
    """Predict the next token; batches are ({input_ids, attention_mask}, labels), int64 [16, 32]."""

    name = "process"
    metrics = {"accuracy": ACCURACY}
    settings = FitSettings(
        epochs=8, learning_rate=5e-3, optimizer="adamw", schedule="cosine", warmup_steps=10, patience=None, keep="last"
    )

    def __init__(self, width: int, layers: int, rows: int) -> None:
        self.width, self.layers, self.rows = width, layers, rows

    def build(self) -> nn.Module:
        """Return the untrained Llama."""
        import transformers

        return transformers.LlamaForCausalLM(  # type: ignore[no-any-return]
            transformers.LlamaConfig(
                vocab_size=WORDS,
                hidden_size=self.width,
                intermediate_size=2 * self.width,
                num_hidden_layers=self.layers,
                num_attention_heads=4,
                num_key_value_heads=2,
                bos_token_id=0,
                eos_token_id=0,
            )
        )

    def batches(self, split: Split, seed: int = 0) -> Iterator[Any]:
        """Yield rows; the train split is shuffled by `seed`."""
        ids = drawn(self.rows, 0) if split == "train" else drawn(200, 1 if split == "test" else 2)
        if split == "train":
            ids = ids[torch.randperm(len(ids), generator=torch.Generator().manual_seed(seed))]
        for part in ids.split(BATCH):
            labels = part.clone()
            labels[:, :2] = -100
            yield {"input_ids": part, "attention_mask": torch.ones_like(part)}, labels

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        """Return the mean cross-entropy of judged tokens."""
        logits = self.forward(model, batch)
        return F.cross_entropy(logits[:, 1:-1].flatten(0, 1), batch[1][:, 2:].flatten())


@torch.no_grad()
def judged(task: Process, model: nn.Module, master: nn.Module) -> tuple[float, float]:
    """Return the loss on test rows, and the divergence from the teacher."""
    losses, gaps = [], []
    for batch in task.batches("test"):
        losses.append(float(task.loss(model.eval(), batch)) * len(batch[1]))
        own, wanted = (task.forward(one, batch)[:, 1:-1].flatten(0, 1) for one in (model, master))
        gaps.append(float(divergence(own, wanted, "forward").mean()) * len(batch[1]))
    return sum(losses) / 200, sum(gaps) / 200


def teacher_of(task: Process) -> nn.Module:
    """Return the teacher, trained the first time and kept in the cache."""
    place = cache_folder() / "distil" / "process.safetensors"
    torch.manual_seed(1000)
    master = task.build()
    if not place.is_file():
        task.view(score=lambda *_: 0.0).train(master, seed=1000)
        place.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(place, save(dict(master.state_dict())))
    master.load_state_dict(load(place.read_bytes()))
    return master.eval()


def main() -> None:
    """Measure what is not there yet and write the tables."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=float("inf"))
    given = parser.parse_args()
    torch.set_num_threads(1)
    rows = Rows(RESULT, given.seconds)
    large, small = Process(64, 2, 2000), Process(24, 1, 320)
    large.settings = dataclasses.replace(large.settings, learning_rate=3e-3)
    master = teacher_of(large)
    taught = small.view(teacher=lambda seed: master, score=lambda *_: 0.0)
    for seed, name in itertools.product(range(given.seeds), ("no teacher", *METHODS)):
        if not rows.open("divergence", str(seed), name):
            continue
        torch.manual_seed(seed)
        model = small.build()
        if name == "no teacher":
            small.view(score=lambda *_: 0.0).train(model, seed=seed)
        else:
            model = METHODS[name].apply(model, taught, Context(seed=seed))
        loss, gap = judged(small, model, master)
        rows.add("loss", str(seed), name, loss)
        rows.add("divergence", str(seed), name, gap)
        against = {what: table(rows.whole(what), "forward kl") for what in rows.rows}
        ratio = [run["12 draws"] / run["forward kl"] for run in rows.whole("loss") if "12 draws" in run]
        share = paired(ratio, [1.0] * len(ratio)) if ratio else {}
        made = {"teacher": judged(small, master, master)[0], "against forward kl": against, "draws / dense": share}
        rows.write(made, "python -m benchmarks.distil.losses")


if __name__ == "__main__":
    main()
