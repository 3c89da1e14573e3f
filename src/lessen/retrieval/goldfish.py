"""Questions about videos of any length: clips are described once, and each question sees the k clips nearest to it.

add   video -> clips of 80 s -> describe(frames) -> texts or vectors of each clip -> an index beside them
ask   question -> vector -> nearest documents -> k distinct clips in the order of time -> what an answer is given from

<folder>/goldfish.json        length of clips, frames of each, who describes them
<folder>/vectors/             an index folder (`lessen.retrieval.folder`), one row a document
<folder>/clips/<name>/*.json  one record a clip, written before its vectors: a killed run goes on where it stopped
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from lessen import files
from lessen.data.video import Video
from lessen.errors import ArtifactError, ConfigError, DataError
from lessen.log import SILENT, Log
from lessen.retrieval.folder import IndexFolder
from lessen.retrieval.goldfish_clips import MARK, Clip, context, cut, read_clip

RECORD, VECTORS, CLIPS = "goldfish.json", "vectors", "clips"
TOGETHER = 32
"""Clips whose vectors are written at once."""
LONGEST = 200
"""Characters of a video's name."""
Describe = Callable[[Tensor, float, float], Mapping[str, str | Tensor]]
"""Frames [n, 3, H, W], seconds where the clip starts and ends, to documents by kind: a text, or a vector [dim]."""


class Encoder(Protocol):
    """What turns texts into vectors, such as `lessen.tasks.retrieval.readers.TextReader`."""

    identity: dict[str, Any]
    """JSON values with a `digest`."""

    def vectors(self, texts: Sequence[str], names: Sequence[str]) -> Tensor:
        """Return float32 [n, dim]."""


class Settings(BaseModel):
    """How the clips of a folder are made."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    format: Literal["lessen-goldfish"] = "lessen-goldfish"
    version: Literal[1] = 1
    describer: str = Field(min_length=1)
    """Name and version of what describes clips: two describers do not mix in one folder."""
    clip: float = Field(80.0, gt=0)
    """Seconds of a clip."""
    overlap: float = Field(0.0, ge=0)
    frames: int = Field(45, ge=1)
    """Frames of a clip that are looked at, at most."""
    form: str = "flat"
    """Of the vectors, see `lessen.retrieval.forms`."""


class Goldfish:
    """Videos in a folder, and the clips that answer a question.

    Goldfish, ECCV 2024 (arXiv 2407.12679), with any describer and any encoder. Differences: the best documents are
    read on until k *distinct* clips are found (the paper takes k documents, which may be fewer clips), clips come in
    the order of time, text is not stripped, clips may overlap, a document may be a vector without text, such as a
    picture encoder's of the frames, and records are JSON that digests tie to the video: a video that was changed is
    described again. What no description says cannot be found; order and counts over a whole film need another tool.
    """

    def __init__(self, path: Path, settings: Settings, encoder: Encoder) -> None:
        self.path, self.settings, self.encoder = path, settings, encoder
        self._index: IndexFolder | None = None
        if (path / VECTORS).exists():
            self._index = IndexFolder.open(path / VECTORS)
            self._index.check_encoder(encoder.identity, "the question")

    @classmethod
    def create(cls, path: Path, settings: Settings, encoder: Encoder) -> Goldfish:
        """Make a folder without videos. Raises OutputError: something is there; ConfigError: clips overlap whole."""
        cut(settings.clip, settings.clip, settings.overlap)
        with files.atomic_folder(path) as made:
            (made / CLIPS).mkdir()
            files.atomic_write(made / RECORD, files.dump_json(settings.model_dump()))
        return cls(path, settings, encoder)

    @classmethod
    def open(cls, path: Path, encoder: Encoder, expected: Settings | None = None) -> Goldfish:
        """Open a folder.

        Args:
            expected: what the caller would add clips with; None: only questions are asked.

        Raises:
            ArtifactError: no such folder, or one that was damaged. ConfigError: other settings, another encoder.
        """
        record = path / RECORD
        if not record.is_file():
            raise ArtifactError(f"{path} holds no described videos: it has no {RECORD}")
        try:
            settings = Settings.model_validate(files.parse_json(files.read_checked(record), str(record)))
        except ValidationError as error:
            raise ArtifactError(f"{record} is not the record of described videos") from error
        if expected is not None and expected != settings:
            had, wanted = settings.model_dump(), expected.model_dump()
            name = next(one for one in had if had[one] != wanted[one])
            raise ConfigError(
                f"{path} was made with {name} = {had[name]!r}, not {wanted[name]!r}: its clips do not mix with others; "
                "use the same, or another folder"
            )
        return cls(path, settings, encoder)

    # -- describing -------------------------------------------------------------------------------------------------
    def add(self, name: str, video: Video, describe: Describe, log: Log = SILENT) -> int:
        """Describe the clips of a video that are not there yet; return how many were described now.

        A video that is there under this name and looks different is taken out and described again.

        Raises:
            DataError: the name cannot serve, the video cannot be decoded, or a clip is given no document or another
            width. OutputError: the disk is full, or another process writes to the folder.
        """
        if not name or len(name) > LONGEST or MARK in name:
            raise DataError(f"the name {name!r} cannot serve: give 1 to {LONGEST} characters without {MARK}")
        source, stretches = video.digest, cut(video.seconds, self.settings.clip, self.settings.overlap)
        known = {clip.number: clip for clip in self._clips(name)}
        if any(clip.source != source for clip in known.values()):
            log.note(f"{name} was changed since it was described; describing it again")
            self.remove(name)
            known = {}
        made, waiting = 0, self._incomplete(list(known.values()))
        vectors: dict[str, Tensor] = {}
        for number, (start, end) in enumerate(stretches):
            if number in known and not (known[number].seen and known[number] in waiting):
                continue
            clip, own = self._described(name, number, video, source, start, end, describe)
            files.atomic_write(self._place(name, number), files.dump_json(clip.model_dump()))
            vectors |= own
            waiting = [*(one for one in waiting if one.number != number), clip]
            made += 1
            log.progress("clips", number + 1, len(stretches))
            if len(waiting) >= TOGETHER:
                self._store(waiting, vectors)
                waiting, vectors = [], {}
        self._store(waiting, vectors)
        return made

    def remove(self, name: str) -> None:
        """Take a video out. Raises DataError: it is not there; OutputError: the folder cannot be written."""
        clips = list(self._clips(name))
        if not clips:
            raise DataError(f"no video {name!r} in {self.path}")
        if self._index is not None:
            documents = [document for clip in clips for document in clip.documents]
            there = [one for one, held in zip(documents, self._index.has(documents), strict=True) if held]
            if there:
                self._index.remove(there)
        with files.writing(self._place(name, 0).parent):
            for clip in clips:
                self._place(name, clip.number).unlink(missing_ok=True)
            self._place(name, 0).parent.rmdir()

    def _described(
        self, name: str, number: int, video: Video, source: str, start: float, end: float, describe: Describe
    ) -> tuple[Clip, dict[str, Tensor]]:
        told = describe(video.read(start, end, self.settings.frames), start, end)
        bad = next((kind for kind in told if not kind or MARK in kind), None)
        if bad is not None:
            raise DataError(f"a document of kind {bad!r} cannot be named; give a word without {MARK}")
        texts = {kind: one for kind, one in told.items() if isinstance(one, str) and one.strip()}
        seen = {kind: one for kind, one in told.items() if isinstance(one, Tensor)}
        if not texts and not seen:
            raise DataError(f"the clip of {name} at {start:g} s was given no text and no vector; describe each clip")
        clip = Clip(video=name, number=number, start=start, end=end, source=source, texts=texts, seen=tuple(seen))
        return clip, {f"{clip.name}{MARK}{kind}": vector for kind, vector in seen.items()}

    def _store(self, clips: Sequence[Clip], seen: Mapping[str, Tensor]) -> None:
        """Write the vectors of clips whose records are on the disk."""
        texts = {f"{clip.name}{MARK}{kind}": text for clip in clips for kind, text in clip.texts.items()}
        if self._index is not None:
            held = dict(zip(texts, self._index.has(list(texts)), strict=True))
            texts = {name: text for name, text in texts.items() if not held[name]}
        names = [*texts, *seen]
        if not names:
            return
        parts = [self.encoder.vectors(list(texts.values()), list(texts))] if texts else []
        try:
            vectors = torch.cat([*parts, *(one.float().reshape(1, -1) for one in seen.values())])
        except RuntimeError as error:
            raise DataError(
                f"vectors of {clips[0].video} are of several widths; texts and frames share one index only where one "
                "encoder made both"
            ) from error
        if self._index is None:
            self._index = IndexFolder.create(
                self.path / VECTORS, self.settings.form, vectors, encoder=self.encoder.identity
            )
        self._index.add(names, vectors, self.encoder.identity, there="skip")

    # -- asking -----------------------------------------------------------------------------------------------------
    def __len__(self) -> int:
        """Documents that can be found."""
        return 0 if self._index is None else len(self._index)

    def find(self, question: str | Tensor, k: int = 3, video: str | None = None) -> list[Clip]:
        """Return the k distinct clips nearest to a question, in the order of video and time.

        Args:
            question: a text, or its vector [dim] of the index's own encoder.
            k: clips; -1, or more than there are: all of them.
            video: only of this one.

        Raises:
            ConfigError: k is 0 or below -1. DataError: nothing was described yet, or not this video.
        """
        if k == 0 or k < -1:
            raise ConfigError(f"k = {k} clips; give at least 1, or -1 for all")
        if self._index is None or not len(self._index):
            raise DataError(f"{self.path} holds no described clip yet; add a video first")
        if video is not None and not self._place(video, 0).parent.is_dir():
            raise DataError(f"no video {video!r} in {self.path}")
        asked = self.encoder.vectors([question], ["question"]) if isinstance(question, str) else question[None].float()
        total = len(self._index)
        wanted = total if k == -1 else min(total, 2 * k)  # two documents a clip: mostly enough at once
        while True:
            ordered = list(dict.fromkeys(one.rpartition(MARK)[0] for one in self._index.search(asked, wanted)[0].ids))
            chosen = [one for one in ordered if video is None or one.rpartition(MARK)[0] == video]
            if wanted == total or 0 < k <= len(chosen):
                break
            wanted = min(total, 2 * wanted)
        chosen = chosen if k == -1 else chosen[:k]
        if not chosen:
            raise DataError(f"no clip of {video!r} in {self.path} has vectors; add the video again, it goes on")
        return [self._read(name) for name in sorted(chosen)]

    def ask(
        self,
        question: str,
        answer: Callable[[str, str], str],
        k: int = 3,
        video: str | None = None,
        words: int = 10_000,
    ) -> str:
        """Return `answer(context, question)`, see `find`; the context holds at most `words` words."""
        return answer(context(self.find(question, k, video), words), question)

    # -- files ------------------------------------------------------------------------------------------------------
    def _place(self, name: str, number: int) -> Path:
        folder = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:32]
        return self.path / CLIPS / folder / f"{number:06d}.json"

    def _clips(self, name: str) -> Iterator[Clip]:
        for path in sorted(self._place(name, 0).parent.glob("*.json")):
            yield read_clip(path)

    def _read(self, name: str) -> Clip:
        video, _, number = name.rpartition(MARK)
        return read_clip(self._place(video, int(number)))

    def _incomplete(self, clips: list[Clip]) -> list[Clip]:
        """Return the clips that have a document without a vector: a run was killed between both."""
        if self._index is None:
            return clips
        names = [document for clip in clips for document in clip.documents]
        held = dict(zip(names, self._index.has(names), strict=True))
        return [clip for clip in clips if not all(held[document] for document in clip.documents)]
