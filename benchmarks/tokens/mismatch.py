"""ToCom in its published setting: fine-tuned at one merging rate, served at another, on CIFAR-10.

    python -m benchmarks.tokens.mismatch [--budget-seconds 600]

The backbone is the reference ViT. One plug-in per seed is distilled on it, without labels, for all pairs of rates. The
downstream models are the backbone fine-tuned with labels at one rate each; the plug-in never sees them. Each is served
at every rate, plainly and with the plug-in folded in; the scale is chosen for each pair on validation pictures.

Two losses are told, paired over the 10,000 test pictures with 95 % bootstrap intervals:
  mismatch   to the model that was fine-tuned at the rate it is served at (what the right training would have given)
  change     to the same model served at the rate it was fine-tuned at
What is finished is kept in the cache folder by its settings; `--budget-seconds` stops in good order.
"""

from __future__ import annotations

import argparse
import copy
import sys
from functools import lru_cache
from pathlib import Path

import torch
import torch.nn.functional as F

from benchmarks.tokens.cifar10 import Kept, interval, recovered
from benchmarks.tokens.speed import packed
from lessen.data.catalogue import get
from lessen.data.cifar10 import Cifar10, load_cifar10
from lessen.environment import environment
from lessen.files import atomic_write, dump_json, sha256
from lessen.method import Context
from lessen.methods.tokens._shared.common import survey_tower
from lessen.methods.tokens.tocom import ToCom
from lessen.task import Split
from lessen.tasks.vision.cifar10 import WEIGHTS, Cifar10Options, Cifar10Task
from lessen.tasks.vision.train_cifar10 import Settings, learn
from lessen.tasks.vision.vit import PlainViT, ViTOptions
from lessen.tokens import Merge
from lessen.tokens.compensate import Compensator
from lessen.tokens.schedules import constant, possible
from lessen.tokens.stored import TokenReduction, detach

RESULTS = Path(__file__).parents[1] / "results" / "tokens_mismatch.json"
SOURCES = {"reference": 0, "tuned at 0": 0, "tuned at 16": 16}
"""Downstream models, and the rate each was trained at."""
TARGETS = (0, 12, 16)
LARGEST = 16
SCALES = (0.0, 0.5, 1.0, 1.5)
"""Factors on the scale of the distillation: off, the ends of the published list, and 1."""


def merging(model: PlainViT, rate: int) -> PlainViT:
    """Let every block merge `rate` pairs, or as many as there are, as the published code does."""
    if rate:
        removed = possible(1 + model.grid[0] * model.grid[1], constant(rate, len(model.blocks)), 1)
        TokenReduction(Merge(removed=removed)).attach(model)
    return model


@lru_cache(maxsize=1)
def pictures() -> Cifar10:
    return load_cifar10(get("cifar10"))


def fine_tune(reference: PlainViT, rate: int, epochs: int, learning_rate: float) -> dict[str, torch.Tensor]:
    """Train the whole reference with merging in place, by the recipe it was trained with; the rate falls linearly."""
    settings = Settings(
        epochs=epochs, cooldown=epochs, full=epochs, learning_rate=learning_rate, warmup_steps=50, seed=1
    )
    model = PlainViT(ViTOptions())
    model.load_state_dict(reference.state_dict())
    done = learn(merging(model, rate), pictures().train, settings)
    for entry in done.history:
        print(f"fine-tuning at {rate}: epoch {entry['epoch']} loss {entry['loss']:.4f}", flush=True)
    if rate:
        detach(model)
    return dict(model.state_dict())


def tuned(reference: PlainViT, rate: int, arguments: argparse.Namespace, kept: Kept) -> PlainViT:
    """Return the model fine-tuned at a rate."""
    name = f"tuned at {rate}, {arguments.epochs} epochs at {arguments.tune_rate}"
    tensors = kept.get(name, lambda: fine_tune(reference, rate, arguments.epochs, arguments.tune_rate))
    model = PlainViT(ViTOptions())
    model.load_state_dict({k: v for k, v in tensors.items() if k != "seconds"})
    return model.eval()


def distilled(
    task: Cifar10Task, reference: PlainViT, seed: int, arguments: argparse.Namespace, kept: Kept
) -> dict[str, torch.Tensor]:
    """Return the weights of one plug-in, distilled on the reference for all pairs of rates."""

    def distil() -> dict[str, torch.Tensor]:
        method = ToCom(
            r=LARGEST,
            source=0,
            largest=LARGEST,
            scale=1.0,
            steps=arguments.steps,
            rank=arguments.rank,
            learning_rate=arguments.learning_rate,
        )
        return method.distil(survey_tower(copy.deepcopy(reference), task, Context(seed=seed))).state_dict()

    name = f"plug-in {seed}, {arguments.steps} steps at {arguments.learning_rate}, rank {arguments.rank}"
    return {k: v for k, v in kept.get(name, distil).items() if k != "seconds"}


class Served:
    """One downstream model, its tokens before the first block, and what it answers at any rate."""

    def __init__(self, task: Cifar10Task, name: str, model: PlainViT, kept: Kept) -> None:
        self.task, self.name, self.model, self.kept = task, name, model, kept
        self.source = SOURCES[name]
        self.inputs: dict[Split, tuple[list[torch.Tensor], torch.Tensor]] = {}

    def at(self, rate: int) -> dict[str, torch.Tensor]:
        """Return the outcomes on the test pictures as it is."""
        return self.kept.get(f"{self.name} served at {rate}", lambda: self._outcomes(self.model, rate, "test"))

    def compensated(self, rate: int, plug_in: dict[str, torch.Tensor], name: str, rank: int) -> dict[str, torch.Tensor]:
        """Return the outcomes with a plug-in, at the scale that is best on validation pictures."""

        def serve() -> dict[str, torch.Tensor]:
            losses = [float(self._mended(rate, plug_in, rank, s, "validation")["loss"].mean()) for s in SCALES]
            scale = SCALES[losses.index(min(losses))]
            return {**self._mended(rate, plug_in, rank, scale, "test"), "scale": torch.tensor(scale)}

        return self.kept.get(f"{self.name} served at {rate} with {name}", serve)

    def _mended(
        self, rate: int, plug_in: dict[str, torch.Tensor], rank: int, scale: float, split: Split
    ) -> dict[str, torch.Tensor]:
        model = copy.deepcopy(self.model)
        folded = Compensator(model, largest=LARGEST, rank=rank)
        folded.load_state_dict(plug_in)
        folded.fold(self.source, rate, scale)
        return self._outcomes(model, rate, split)

    @torch.inference_mode()
    def _outcomes(self, model: PlainViT, rate: int, split: Split) -> dict[str, torch.Tensor]:
        if split not in self.inputs:
            batches = list(self.task.batches(split))
            tokens = [self.model.embed(pictures) for pictures, _ in batches]
            self.inputs[split] = tokens, torch.cat([labels for _, labels in batches])
        tokens, labels = self.inputs[split]
        quick = merging(packed(model), rate)
        logits = torch.cat([quick.head(quick.encode(piece)[:, 0]) for piece in tokens]).double()
        loss = F.nll_loss(logits.log_softmax(-1), labels, reduction="none")
        return {"right": (logits.argmax(1) == labels).double(), "loss": loss}


def compare(served: Served, rate: int, mended: list[dict], matched: dict[str, torch.Tensor] | None) -> dict:
    """Return what is lost at a rate and what plug-ins bring back on average, in accuracy and cross-entropy.

    `matched` are the outcomes of the model that was fine-tuned at this rate, if there is one.
    """
    plain, own = served.at(rate), served.at(served.source)
    row: dict = {"model": served.name, "source": served.source, "target": rate}
    row["scales"] = [float(outcomes["scale"]) for outcomes in mended]
    for key, sign, factor in (("right", 1, 100.0), ("loss", -1, 1.0)):
        after = torch.stack([outcomes[key] for outcomes in mended]).mean(0)
        gain = sign * (after - plain[key])
        part = {
            name: float(factor * outcomes.mean())
            for name, outcomes in (("as_tuned", own[key]), ("plain", plain[key]), ("compensated", after))
        }
        part["gained"] = interval(gain, factor)
        for what, other in (("change", own), ("mismatch", matched)):
            if other is not None:
                lost = sign * (other[key] - plain[key])
                part[what] = {
                    "to": float(factor * other[key].mean()),
                    "lost": interval(lost, factor),
                    "recovered": recovered(gain, lost),
                }
        row[key] = part
    return row


def show(row: dict) -> None:
    print(f"{row['model']}, {row['source']} -> {row['target']}, plug-ins {row['seeds']}, scales {row['scales']}")
    for key in ("right", "loss"):
        part = row[key]
        text = " ".join(f"{part[name]:.4f}" for name in ("as_tuned", "plain", "compensated"))
        print("   ", key, text, part["change"]["recovered"], part.get("mismatch", {}).get("recovered"), flush=True)


def matrix(arguments: argparse.Namespace, served: dict[str, Served], plug_ins: dict[int, dict]) -> list[dict]:
    """Return the comparison of every model at every other rate, for each seed and for all together."""
    rows = []
    matched = {one.source: one for one in served.values() if one.name.startswith("tuned")}
    for one in served.values():
        for rate in (rate for rate in TARGETS if rate != one.source):
            settings = f"{arguments.steps} steps at {arguments.learning_rate}, rank {arguments.rank}"
            mended = [
                one.compensated(rate, plug_in, f"plug-in {seed}, {settings}", arguments.rank)
                for seed, plug_in in plug_ins.items()
            ]
            right = matched[rate].at(rate) if rate in matched else None
            groups = [([seed], [outcomes]) for seed, outcomes in zip(plug_ins, mended, strict=True)]
            for seeds, some in [*groups, (list(plug_ins), mended)]:
                rows.append({"seeds": seeds, **compare(one, rate, some, right)})
                show(rows[-1])
        one.inputs.clear()
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=2, help="of fine-tuning at one rate")
    parser.add_argument("--tune-rate", type=float, default=1e-3, help="learning rate of the fine-tuning, falls to 0")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of the plug-ins")
    parser.add_argument("--steps", type=int, default=400, help="of the distillation, batches of 64 pictures")
    parser.add_argument("--rank", type=int, default=2)
    parser.add_argument("--learning-rate", type=float, default=3e-3, help="of the distillation")
    parser.add_argument("--budget-seconds", type=float, default=1e9, help="begin no new piece after this time")
    parser.add_argument("--only", choices=("distil",), help="stop after this part")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    task = Cifar10Task(Cifar10Options(batch=64, validation_examples=1000))
    reference = task.reference()
    kept = Kept("mismatch", {"weights": sha256(WEIGHTS)}, arguments.budget_seconds)
    plug_ins = {seed: distilled(task, reference, seed, arguments, kept) for seed in arguments.seeds}
    if arguments.only == "distil":
        return
    models = {"reference": reference, "tuned at 16": tuned(reference, 16, arguments, kept)}
    served = {name: Served(task, name, model, kept) for name, model in models.items()}
    result = {
        "rows": matrix(arguments, served, plug_ins),
        "settings": vars(arguments),
        "command": " ".join(["python", "-m", "benchmarks.tokens.mismatch", *sys.argv[1:]]),
        "env": environment(),
        "task": task.describe(),
        "weights_sha256": sha256(WEIGHTS),
    }
    atomic_write(RESULTS, dump_json(result))


if __name__ == "__main__":
    main()
