"""What is special about dual encoders (CLIP, SigLIP): the layers that bring both towers into one space."""

from __future__ import annotations

from torch import nn

from lessen.architectures.parts import Part, Stack, outside

NAMES = {"text": ("text_projection", "text_proj"), "vision": ("visual_projection", "vision_proj", "image_projection")}


def projections(model: nn.Module, text: Stack, vision: Stack) -> dict[str, Part]:
    """Return the last layer of each tower by role: a linear layer, or the pooling head that takes its place."""
    found: dict[str, Part] = {}
    around = outside(model, [text, vision])
    for role, stack in (("text", text), ("vision", vision)):
        tower = stack.path.partition(".")[0]
        fits = [part for part in around if part.path.rpartition(".")[2] in NAMES[role] or part.path == f"{tower}.head"]
        if fits:
            found[role] = fits[0]
    return found
