"""Clips of a long video and what is known of each: cut points, records, and the text that an answer is given from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lessen import files
from lessen.errors import ArtifactError, ConfigError, DataError

Stretch = tuple[float, float]
MARK = "#"
"""Between the name of a video, the number of a clip and the kind of a document."""


class Clip(BaseModel):
    """One clip of one video, as it is written."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    format: Literal["lessen-clip"] = "lessen-clip"
    video: str
    number: int = Field(ge=0)
    start: float = Field(ge=0)
    end: float
    source: str
    """Digest of the video that was seen."""
    texts: dict[str, str] = {}
    seen: tuple[str, ...] = ()
    """Kinds of documents that are a vector without a text."""

    @property
    def name(self) -> str:
        """Name of the clip among all."""
        return f"{self.video}{MARK}{self.number:06d}"

    @property
    def documents(self) -> list[str]:
        """Names of the clip's documents in the index."""
        return [f"{self.name}{MARK}{kind}" for kind in (*self.texts, *self.seen)]


def cut(seconds: float, clip: float, overlap: float = 0.0) -> list[Stretch]:
    """Return consecutive stretches of `clip` seconds that cover the video exactly; the last one may be shorter.

    Args:
        overlap: seconds that a clip shares with the one before, against events that a border cuts (not in the paper).

    Raises:
        ConfigError: a clip lasts no time, or not longer than the overlap. DataError: the video lasts no time.
    """
    if not 0 <= overlap < clip:
        raise ConfigError(f"clips of {clip:g} seconds with an overlap of {overlap:g}: give more seconds than overlap")
    if not seconds > 0:
        raise DataError(f"a video of {seconds:g} seconds has no clip")
    found: list[Stretch] = []
    start = 0.0
    while not found or found[-1][1] < seconds:
        start = len(found) * (clip - overlap)
        found.append((start, min(seconds, start + clip)))
    return found


def read_clip(path: Path) -> Clip:
    """Return the record of a clip. Raises ArtifactError: absent, torn, or not one of ours."""
    raw = files.parse_json(files.read_checked(path, limit=files.MAX_TEXT_BYTES), str(path))
    try:
        return Clip.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the record"
        raise ArtifactError(f"{path} is not the record of a clip: {where}: {first['msg'].lower()}") from error


def context(clips: Sequence[Clip], words: int = 10_000) -> str:
    """Return what a language model is given of the chosen clips, in the order of time.

    Text is left as it is: the published code takes out all but Latin letters and digits, decimal points too.

    Args:
        words: at most; the rest is cut off, as published.
    """
    lines = []
    for clip in clips:
        told = [f"Clip {kind.capitalize()}: {text}" for kind, text in clip.texts.items() if text]
        lines.append(f"[{clip.start:g} to {clip.end:g} s] " + ", ".join(told))
    left, kept = words, []
    for line in lines:
        parts = line.split()[:left]
        left -= len(parts)
        if parts:
            kept.append(" ".join(parts))
    return "\n".join(kept)
