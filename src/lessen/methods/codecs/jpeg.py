"""JPEG at another quality: the baseline of every picture codec."""

from __future__ import annotations

from pydantic import Field
from torch import nn

from lessen.codecs.pictures import PictureCodec
from lessen.codecs.stored import JpegCodec
from lessen.method import Card, Context
from lessen.methods.modules import ModuleMethod
from lessen.methods.sites import replace_everywhere
from lessen.task import Task


class JPEG(ModuleMethod):
    """Code pictures as JPEG of one quality.

    Source: ITU-T T.81 (1992), by the libjpeg that pillow ships; 4:2:0, Huffman tables optimised for the picture. What a
    learned codec has to beat at equal bits per pixel.
    """

    card = Card(
        name="jpeg",
        family="codecs",
        summary="Send pictures as JPEG of one quality.",
        acts_on=(PictureCodec,),
        source="ITU-T T.81, 1992",
        claims=frozenset({"bits_per_pixel"}),
    )
    quality: int = Field(50, ge=1, le=100, description="libjpeg's scale: 1 coarsest, 100 finest")

    def apply(self, model: nn.Module, task: Task, context: Context) -> nn.Module:  # noqa: ARG002
        """Replace every picture codec. Raises NothingMatchedError: the model has none, or only this one."""
        found = [codec for codec in self.parts(model, PictureCodec) if not self._is_this(codec)]
        if not found:
            raise self.nothing_matched(model, f"no other codec than JPEG of quality {self.quality}")
        for module in found:
            model = replace_everywhere(model, module, JpegCodec(self.quality))
        return model

    def _is_this(self, module: nn.Module) -> bool:
        return isinstance(module, JpegCodec) and module.quality == self.quality
