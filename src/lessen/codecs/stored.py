"""Codecs that an artifact can name: their settings are all they store."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lessen.codecs.pictures import PictureCodec, decode_picture, encode_jpeg
from lessen.stored import checks
from lessen.stored.base import StoredModule, stored


@stored
class JpegCodec(PictureCodec, StoredModule):
    """JPEG of one quality, 1 to 100 (libjpeg's scale). State: none."""

    kind = "jpeg-codec"

    def __init__(self, quality: int = 75) -> None:
        super().__init__()
        self.quality = checks.whole("quality", quality, 1, 100)

    def config(self) -> dict[str, Any]:
        """Return the quality."""
        return {"quality": self.quality}

    def compress(self, picture: Tensor) -> bytes:
        """Return the JPEG bytes of a picture, uint8 [3, H, W]."""
        return encode_jpeg(picture, self.quality)

    def decompress(self, raw: bytes) -> Tensor:
        """Return the picture of some JPEG bytes, uint8 [3, H, W]. Raises DataError: they are no picture."""
        return decode_picture(raw)

    def dequantise(self) -> Tensor:
        """Return no weight: a codec stands for none."""
        return torch.empty(0)
