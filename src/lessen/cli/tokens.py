"""`lessen tokens show IMAGE`: draw which patches a token reduction merges or drops, block by block."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lessen.cli.arguments import new_file, parse_call
from lessen.cli.output import AsJson, emit, line

if TYPE_CHECKING:
    from torch import Tensor

app = typer.Typer(name="tokens", help="Look at token reductions of vision Transformers.", no_args_is_help=True)


@app.callback()
def tokens() -> None:
    """Look at token reductions of vision Transformers."""


@app.command()
def show(
    image: Annotated[Path, typer.Argument(metavar="IMAGE", help="A picture; it is cut square and made 32 x 32.")],
    step: Annotated[str, typer.Option("--step", help="METHOD:knob=value of the family tokens.")] = "tome:macs=0.6",
    out: Annotated[Path | None, typer.Option("--out", help="PNG to write; default IMAGE with .tokens.png.")] = None,
    as_json: AsJson = False,
) -> None:
    """Draw what a reduction does to the patches of IMAGE in the reference ViT of image-cifar10.

    Example: lessen tokens show cat.png --step evit:keep=0.6
    """
    from lessen.files import atomic_write
    from lessen.tokens.draw import draw, trace

    target = new_file(out or image.with_suffix(".tokens.png"))
    pixels = read_picture(image)
    patch, labels = _reduced(step, pixels)
    groups = trace(patch, labels["inputs"])
    counts = patch.reducer.counts(patch.model.position.shape[1], patch.tower.protected)
    atomic_write(target, draw(pixels, groups, patch.model.grid, patch.tower.protected))
    if as_json:
        names = {key: labels[key] for key in ("before", "after")}
        emit({"picture": str(target), "tokens_after_block": counts, **names})
        return
    line(f"tokens after each block: {' '.join(map(str, counts))}")
    line(f"class: {labels['before']} with all tokens, {labels['after']} with the reduction")
    line(f"drawn in {target}")


def read_picture(path: Path) -> Tensor:
    """Return the central square of a picture as uint8 [3,32,32]. Raises DataError for a file that is no picture."""
    import numpy as np
    import torch
    from PIL import Image, ImageOps

    from lessen.errors import DataError

    try:
        with Image.open(path) as opened:
            small = ImageOps.fit(opened.convert("RGB"), (32, 32), Image.Resampling.BICUBIC)
    except FileNotFoundError as error:
        raise DataError(f"{path} does not exist") from error
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"{path} is not a picture that can be read: {error}") from error
    return torch.from_numpy(np.array(small)).permute(2, 0, 1).contiguous()


def _reduced(step: str, pixels: Tensor) -> tuple[Any, dict[str, Any]]:
    """Apply the step to the reference and return its patch with the classes it gives before and after."""
    import torch

    from lessen.data.cifar10 import CLASSES, normalise
    from lessen.errors import ConfigError
    from lessen.recipe import Recipe, parse_step
    from lessen.tasks.vision.cifar10 import Cifar10Task
    from lessen.tokens.stored import patch_of

    name, knobs = parse_call(step, "--step")
    method = parse_step({name: knobs}, "--step", own=True)
    inputs = normalise(pixels[None])

    class OnePicture(Cifar10Task):
        """The task with the given picture as example, so that looking needs no data set."""

        def example_batch(self) -> tuple[Tensor, Tensor]:
            return inputs, torch.zeros(1, dtype=torch.int64)

    task = OnePicture()
    reference = task.reference()
    compact, _ = Recipe([method]).apply(reference, task)
    patch = patch_of(compact)
    if patch is None:
        raise ConfigError(f"--step {step!r}: {name} leaves no token reduction in the model; try tome, evit or diffrate")
    with torch.no_grad():
        before, after = (CLASSES[int(model(inputs).argmax())] for model in (reference, compact))
    return patch, {"inputs": inputs, "before": before, "after": after}
