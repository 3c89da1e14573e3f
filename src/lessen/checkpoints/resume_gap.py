"""Proof of resume: train on from the archive and from the original, and put the gap beside the noise of the seed."""

from __future__ import annotations

import statistics
import tempfile
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lessen import files
from lessen.checkpoints.archive import Archive
from lessen.errors import ConfigError, DataError, LessenError
from lessen.log import SILENT, Log

Train = Callable[[Path, int, int], Mapping[str, Any]]
"""`train(checkpoint, steps, seed)` resumes from a checkpoint file or folder with the data order of `seed`, takes
`steps` steps and returns {"losses": [one per step], "final": a validation loss}; without "final", the mean of the
last quarter of the losses is used."""


@dataclass(frozen=True)
class Proof:
    """How a resume from the archive compares with a resume from the original."""

    step: int
    steps: int
    seeds: int
    gap: float
    """Final loss from the archive minus final loss from the original, mean over seeds (same data order in a pair)."""
    gaps: tuple[float, ...]
    noise: float
    """Mean absolute difference between the final losses of two seeds, both from the original."""
    bump: float
    """Mean over the first ten steps of loss from the archive minus loss from the original, mean over seeds."""
    bump_noise: float
    """Mean absolute difference of the same mean between two seeds."""
    original_final: float

    @property
    def inside(self) -> bool:
        """Whether the gap is no larger than what a change of seed does."""
        return abs(self.gap) <= self.noise

    def as_json(self) -> dict[str, Any]:
        """Return the proof as JSON values."""
        return {**asdict(self), "inside_noise": self.inside}

    def __str__(self) -> str:
        verdict = "inside" if self.inside else "OUTSIDE"
        return (
            f"step {self.step}, {self.steps} steps on, {self.seeds} seeds: loss gap {self.gap:+.5f}, noise between two "
            f"seeds {self.noise:.5f}: {verdict}; first ten steps {self.bump:+.5f} (noise {self.bump_noise:.5f})"
        )


def prove(
    archive: Archive,
    step: int,
    train: Train,
    *,
    original: Path | None = None,
    steps: int = 40,
    seeds: int = 3,
    log: Log = SILENT,
) -> Proof:
    """Resume `steps` steps from `step` of the archive and from the original, with each of `seeds` data orders.

    Args:
        original: the checkpoint that was packed, if it is no longer where it was.

    Raises:
        DataError: the original is gone or is not what was packed.
        ConfigError: fewer than two seeds, fewer than one step, or `train` raises something or returns no losses.
        ArtifactError: no such step, or damage.
    """
    if seeds < 2 or steps < 1:
        raise ConfigError(f"a proof needs at least 2 seeds and 1 step, got {seeds} and {steps}")
    source = _original(archive, step, original)
    with tempfile.TemporaryDirectory(prefix="lessen-prove-") as scratch:
        rebuilt = archive.unpack(step, Path(scratch) / "step", log)
        resumed = rebuilt if source.is_dir() else rebuilt / source.name
        if not resumed.exists():  # the original was renamed since it was packed
            resumed = next(path for path in rebuilt.iterdir() if path.is_file())
        from_original, from_archive = [], []
        for seed in range(seeds):
            from_original.append(_Continuation(_continued(train, source, steps, seed)))
            from_archive.append(_Continuation(_continued(train, resumed, steps, seed)))
            log.progress("continuing from archive and original", seed + 1, seeds)
    gaps = [a.final - b.final for a, b in zip(from_archive, from_original, strict=True)]
    bumps = [a.start - b.start for a, b in zip(from_archive, from_original, strict=True)]
    return Proof(
        step,
        steps,
        seeds,
        statistics.fmean(gaps),
        tuple(gaps),
        _noise([run.final for run in from_original]),
        statistics.fmean(bumps),
        _noise([run.start for run in from_original]),
        statistics.fmean(run.final for run in from_original),
    )


def _continued(train: Train, checkpoint: Path, steps: int, seed: int) -> Mapping[str, Any]:
    """Call the user's function. Raises ConfigError naming what it raised and where, for it is theirs to mend."""
    try:
        return train(checkpoint, steps, seed)
    except LessenError:
        raise
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        raise ConfigError(
            f"the training function raised {type(error).__name__}: {error} (line {place.lineno} of {place.filename}) "
            f"when it was given {checkpoint}"
        ) from error


class _Continuation:
    """What one resumed run returned: its final loss, and the mean loss of its first ten steps."""

    def __init__(self, returned: Any) -> None:
        losses = returned.get("losses") if isinstance(returned, Mapping) else None
        if not isinstance(losses, Sequence) or not losses:
            raise ConfigError('the training function must return {"losses": [one per step], "final": validation loss}')
        try:
            values = [float(value) for value in losses]
        except (TypeError, ValueError) as error:
            raise ConfigError(f"the training function returned losses that are no numbers: {error}") from error
        last = values[-max(1, len(values) // 4) :]
        self.final = float(returned.get("final", statistics.fmean(last)))
        self.start = statistics.fmean(values[:10])


def _noise(values: Sequence[float]) -> float:
    pairs = [abs(a - b) for i, a in enumerate(values) for b in values[i + 1 :]]
    return statistics.fmean(pairs)


def _original(archive: Archive, step: int, given: Path | None) -> Path:
    entry = archive.index.entries[archive.index.find(step)]
    source = given if given is not None else Path(entry.source)
    if not source.exists():
        raise DataError(f"the original of step {step} is no longer at {source}; name a copy of it with --original")
    with archive.chain(step) as chain:
        maps, expected = chain.layouts[-1].maps, chain.frames[-1].footer["sha256"]
    paths = [source] if source.is_file() else [source / mapped.path for mapped in maps]
    found = [files.sha256(path) if path.is_file() else "" for path in paths]
    if found != list(expected):
        raise DataError(f"{source} is not the checkpoint that was packed as step {step}: its SHA-256 differs")
    return source
