"""Frames of videos: of a file, an animated picture, a folder of pictures, or a tensor; read a stretch at a time.

open_video(path) -> Video;  video.read(start, end, most) -> float32 [n, 3, H, W] in 0..1, n <= most

A stretch is never decoded whole into memory: every so-many-th frame is kept, as many as are asked for.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lessen.data.readers.boundary import foreign
from lessen.errors import DataError, InputError, MissingExtraError
from lessen.files import sha256

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
ROUNDING = 1e-6
"""Seconds by which a frame may stand before the start of its stretch."""


class Video(ABC):
    """Frames in time."""

    name: str
    rate: float
    """Frames a second."""
    seconds: float

    @property
    @abstractmethod
    def digest(self) -> str:
        """SHA-256 of what is seen, so that a video that was changed is known."""

    @abstractmethod
    def _frames(self, start: float, end: float) -> Iterator[Any]:
        """Yield what decodes to the frames from `start` to before `end`, in order."""

    @abstractmethod
    def _pixels(self, frame: Any) -> Tensor:
        """Return float32 [3, H, W] in 0..1."""

    def read(self, start: float, end: float, most: int) -> Tensor:
        """Return at most `most` frames from `start` to before `end` seconds, float32 [n, 3, H, W] in 0..1.

        Every max(1, int(total / most))-th frame is taken from the first on, as Goldfish does.

        Raises:
            InputError: `most` is below 1. DataError: no frame lies there, or one cannot be decoded.
        """
        if most < 1:
            raise InputError(f"{self.name}: {most} frames were asked for; ask for at least 1")
        total = max(1, round((min(end, self.seconds) - start) * self.rate))
        chosen = islice(self._frames(start, end), 0, None, max(1, int(total / most)))
        frames = [self._pixels(frame) for frame in islice(chosen, most)]
        if not frames:
            raise DataError(f"{self.name} shows no frame from {start:g} to {end:g} seconds; it lasts {self.seconds:g}")
        return torch.stack(frames)


class FrameVideo(Video):
    """Frames that are there already.

    Args:
        frames: [T, C, H, W] of 1 or 3 colours, float in 0..1 or uint8; rate: frames a second.

    Raises:
        DataError: there is no frame, or they are of another form.
    """

    def __init__(self, frames: Tensor, rate: float = 1.0, name: str = "the video") -> None:
        if frames.dim() != 4 or frames.shape[1] not in (1, 3):
            raise DataError(f"{name} has the shape {list(frames.shape)}; give frames [T, 3, H, W], or [T, 1, H, W]")
        if not len(frames):
            raise DataError(f"{name} has no frames; give at least one")
        if not rate > 0:
            raise DataError(f"{name} has {rate:g} frames a second; give more than 0")
        self.frames, self.rate, self.name = frames, rate, name
        self.seconds = len(frames) / rate

    @property
    def digest(self) -> str:
        """SHA-256 of the frames and their rate."""
        raw = self.frames.detach().cpu().contiguous().numpy()
        return hashlib.sha256(f"{raw.dtype} {raw.shape} {self.rate}".encode() + raw.tobytes()).hexdigest()

    def _frames(self, start: float, end: float) -> Iterator[Tensor]:
        first = max(0, int(np.ceil((start - ROUNDING) * self.rate)))
        yield from self.frames[first : max(first, int(np.ceil((end - ROUNDING) * self.rate)))]

    def _pixels(self, frame: Tensor) -> Tensor:
        scaled = frame.float() / 255 if frame.dtype == torch.uint8 else frame.float()
        return scaled.expand(3, *scaled.shape[1:])


class PictureVideo(Video):
    """A folder of pictures in the order of their names, at a rate that the folder does not say."""

    def __init__(self, paths: Sequence[Path], rate: float, name: str) -> None:
        self.paths, self.rate, self.name = paths, rate, name
        self.seconds = len(paths) / rate

    @property
    def digest(self) -> str:
        """SHA-256 of the pictures, their order and their rate."""
        said = [f"{self.rate}", *(sha256(path) for path in self.paths)]
        return hashlib.sha256("\n".join(said).encode()).hexdigest()

    def _frames(self, start: float, end: float) -> Iterator[Path]:
        first = max(0, int(np.ceil((start - ROUNDING) * self.rate)))
        yield from self.paths[first : max(first, int(np.ceil((end - ROUNDING) * self.rate)))]

    def _pixels(self, frame: Path) -> Tensor:
        from PIL import Image

        with foreign(f"{frame} is not a picture that can be read"), Image.open(frame) as opened:
            return _array(np.array(opened.convert("RGB")))


class FileVideo(Video):
    """A file that PyAV decodes (mp4, mkv, webm, avi, gif, ...)."""

    def __init__(self, path: Path) -> None:
        self.path, self.name = path, str(path)
        with self._open() as container, foreign(f"{path} is not a video that can be decoded"):
            stream = container.streams.video[0]
            self.rate = float(stream.average_rate or stream.guessed_rate)
            length = container.duration / 1e6 if container.duration else stream.frames / self.rate
            if not length > 0 or next(container.decode(stream), None) is None:
                raise ValueError("it holds no frame")
            self.seconds = float(length)

    @property
    def digest(self) -> str:
        """SHA-256 of the file."""
        return sha256(self.path)

    def _open(self) -> Any:
        try:
            import av
        except ImportError as error:
            raise MissingExtraError("video", "av", f"decoding {self.path}") from error
        with foreign(f"{self.path} is not a video that can be decoded"):
            return av.open(str(self.path))

    def _frames(self, start: float, end: float) -> Iterator[Any]:
        with self._open() as container, foreign(f"{self.path} cannot be decoded from {start:g} seconds on"):
            stream = container.streams.video[0]
            origin = float((stream.start_time or 0) * stream.time_base)
            if start > 0:  # to the key frame before
                container.seek(int((start + origin) / stream.time_base), stream=stream)
            for frame in container.decode(stream):
                if frame.time is None or frame.time - origin < start - ROUNDING:
                    continue
                if frame.time - origin >= end - ROUNDING:
                    return
                yield frame

    def _pixels(self, frame: Any) -> Tensor:
        return _array(frame.to_ndarray(format="rgb24"))


def open_video(path: Path | str, rate: float = 1.0) -> Video:
    """Return the video of a file or of a folder of pictures.

    Args:
        rate: frames a second of a folder of pictures; files say their own.

    Raises:
        DataError: nothing is there, or it cannot be decoded. MissingExtraError: PyAV is not installed.
    """
    place = Path(path)
    if place.is_dir():
        pictures = sorted(one for one in place.iterdir() if one.suffix.lower() in PICTURES)
        if not pictures:
            raise DataError(f"{place} holds no picture ({', '.join(PICTURES)}); give the frames of a video by name")
        if not rate > 0:
            raise DataError(f"{place} would show {rate:g} frames a second; give more than 0")
        return PictureVideo(pictures, rate, str(place))
    if not place.is_file():
        raise DataError(f"no video at {place}")
    return FileVideo(place)


def _array(pixels: Any) -> Tensor:
    return torch.from_numpy(pixels).permute(2, 0, 1).float() / 255
