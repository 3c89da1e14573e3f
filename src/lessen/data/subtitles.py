"""Subtitles of a video: SubRip and WebVTT files, and what is said from one second to another."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lessen.errors import DataError
from lessen.files import read_text

TIME = r"(?:(\d+):)?(\d+):(\d+)[.,](\d+)"
LINE = re.compile(rf"\s*{TIME}\s*-->\s*{TIME}")
MARKUP = re.compile(r"<[^>]*>|\{\\[^}]*\}")


@dataclass(frozen=True)
class Subtitle:
    """What is said from `start` to `end`, in seconds."""

    start: float
    end: float
    text: str


def read_subtitles(path: Path | str) -> list[Subtitle]:
    """Return the subtitles of a .srt or .vtt file, in the order of time.

    Raises:
        DataError: the file is absent or not UTF-8, or holds no line of times.
    """
    place = Path(path)
    found: list[Subtitle] = []
    lines = iter(read_text(place, "file of subtitles").lstrip("\ufeff").splitlines())
    for line in lines:
        times = LINE.match(line)
        if times is None:
            continue
        said = []
        for words in lines:
            if not words.strip():
                break
            said.append(MARKUP.sub("", words).strip())
        parts = times.groups(default="0")
        found.append(Subtitle(_seconds(parts[:4]), _seconds(parts[4:]), " ".join(said)))
    if not found:
        raise DataError(f"{place} holds no subtitles: no line reads 00:00:01,000 --> 00:00:02,000")
    return sorted(found, key=lambda one: (one.start, one.end))


def said_between(subtitles: Sequence[Subtitle], start: float, end: float) -> str:
    """Return what is said in a stretch, each subtitle where it starts (and where the stretch opens inside it)."""
    return " ".join(one.text for one in subtitles if one.start < end and one.end > start)


def _seconds(parts: Sequence[str]) -> float:
    hours, minutes, seconds, fraction = parts
    return 3600 * int(hours) + 60 * int(minutes) + int(seconds) + float(f"0.{fraction}")
