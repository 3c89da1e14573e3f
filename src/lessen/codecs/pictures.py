"""Picture codecs as modules: pictures in, pictures and the bits that they took out.

pictures uint8 [B, 3, H, W] --compress--> bytes --decompress--> pictures'        bits = 8 x bytes of each picture
"""

from __future__ import annotations

import io
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from lessen.errors import DataError


class Coded(NamedTuple):
    """What a codec gives back: the pictures that the receiver sees, and what they took."""

    pictures: Tensor
    """uint8 [B, 3, H, W]"""
    bits: Tensor
    """int64 [B], headers included"""


class PictureCodec(nn.Module):
    """A codec of RGB pictures. Subclasses code one picture at a time."""

    def compress(self, picture: Tensor) -> bytes:
        """Return the bytes of a picture, uint8 [3, H, W]."""
        raise NotImplementedError(f"{type(self).__name__}.compress")

    def decompress(self, raw: bytes) -> Tensor:
        """Return the picture of some bytes, uint8 [3, H, W]. Raises DataError: they are no picture."""
        raise NotImplementedError(f"{type(self).__name__}.decompress")

    def forward(self, pictures: Tensor) -> Coded:
        """Send pictures, uint8 [B, 3, H, W], through the codec and back."""
        sent = [self.compress(picture) for picture in pictures]
        bits = torch.tensor([8 * len(raw) for raw in sent], dtype=torch.int64)
        return Coded(torch.stack([self.decompress(raw) for raw in sent]), bits)


def encode_jpeg(picture: Tensor, quality: int) -> bytes:
    """Return a baseline JPEG (4:2:0, optimised Huffman tables) of a picture, uint8 [3, H, W]."""
    from PIL import Image

    into = io.BytesIO()
    array = picture.detach().cpu().permute(1, 2, 0).contiguous().numpy()
    Image.fromarray(array, "RGB").save(into, "JPEG", quality=quality, optimize=True)
    return into.getvalue()


def decode_picture(raw: bytes) -> Tensor:
    """Return the picture in JPEG or PNG bytes, uint8 [3, H, W]. Raises DataError: they are none, or cut short."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(raw), formats=("JPEG", "PNG")) as image:
            array = np.asarray(image.convert("RGB"))
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"{len(raw)} bytes are no whole JPEG or PNG picture: {error}") from error
    return torch.from_numpy(array.copy()).permute(2, 0, 1).contiguous()
