"""The output directory of a study: what lies where, who may write there, and what is finished."""

from __future__ import annotations

import fcntl
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lessen import files
from lessen.errors import ArtifactError, ConfigError, OutputError
from lessen.frontier.evidence import fault_of
from lessen.frontier.records import outcome_path
from lessen.frontier.seal import is_changed, sealed
from lessen.measure.record import Quality
from lessen.metrics.storage import write_outcomes
from lessen.recipe import Recipe
from lessen.study.schema import current, slug

LOCK = ".lessen-lock"
STUDY, MEASUREMENTS = "study.yaml", "measurements.jsonl"


@dataclass(frozen=True)
class StudyFolder:
    """Paths and files of one study. Only names made by `slug` reach the disk."""

    root: Path

    # -- places ----------------------------------------------------------------------------------------------------
    def reference(self, seed: int) -> Path:
        """Return the artifact of the uncompressed model of a seed."""
        return self.root / "reference" / str(seed)

    def artifact(self, recipe: str, seed: int) -> Path:
        """Return the artifact of a compact model."""
        return self.root / "artifacts" / f"{slug(recipe)}-{seed}"

    def run_file(self, recipe: str, seed: int) -> Path:
        """Return the finished measurement of a (recipe, seed)."""
        return self.root / "runs" / f"{slug(recipe)}-{seed}.json"

    def compressed_file(self, recipe: str, seed: int) -> Path:
        """Return what is known of a (recipe, seed) that is compressed and judged but not yet timed."""
        return self.root / "compressed" / f"{slug(recipe)}-{seed}.json"

    def trace_file(self, recipe: str, seed: int) -> Path:
        """Return where the full trace of an unexpected failure is kept."""
        return self.root / "errors" / f"{slug(recipe)}-{seed}.txt"

    # -- reading and writing -----------------------------------------------------------------------------------------
    def write_json(self, path: Path, value: Any) -> None:
        """Write one JSON file, all or nothing."""
        files.atomic_write(path, files.dump_json(value))

    def write_beside(self, name: str, value: Mapping[str, Any]) -> None:
        """Write a file that stands beside the measurements, with a digest of itself."""
        self.write_json(self.root / name, sealed(value))

    def write_notes(self, notes: Sequence[str]) -> None:
        """Write remarks, and the digest of the settings that were measured, by which later edits of these are seen."""
        said = files.digest(files.read_checked(self.root / STUDY))
        self.write_beside("notes.json", {"notes": list(notes), "study": said})

    def holds_beside(self, name: str) -> bool:
        """Return whether such a file is there and is what was written; what is damaged is made again."""
        path = self.root / name
        try:
            value = files.parse_json(files.read_checked(path), str(path))
        except ArtifactError:
            return False
        return not (isinstance(value, dict) and is_changed(value))

    def write_outcomes(self, recipe: str, seed: int, quality: Quality, judge: str = "") -> None:
        """Keep what happened on each test unit. Raises TaskError if the units are not those of other models."""
        write_outcomes(outcome_path(self.root, recipe, seed, judge), quality.outcomes, quality.jackknife)

    def keep_trace(self, recipe: str, seed: int, text: str) -> None:
        """Keep the trace of an unexpected failure; a disk that cannot take it does not hide the failure itself."""
        with suppress(OutputError):
            files.atomic_write(self.trace_file(recipe, seed), text)

    def finished(self, recipe: str, recipe_hash: str, seed: int) -> dict[str, Any] | None:
        """Return the record of a (recipe, seed) that needs no more work; failed ones are tried again."""
        record = read_json(self.run_file(recipe, seed))
        if record is None or record.get("recipe_hash") != recipe_hash or record.get("status") != "ok":
            return None
        return None if fault_of(record, self.root) else record

    def compile(self, runs: Sequence[tuple[str, int]]) -> list[dict[str, Any]]:
        """Write `measurements.jsonl` from the finished runs, in the given order, and return the records."""
        found = [read_json(self.run_file(recipe, seed)) for recipe, seed in runs]
        records = [record for record in found if record is not None]
        text = "".join(json.dumps(record, allow_nan=False) + "\n" for record in records)
        path = self.root / MEASUREMENTS
        if not path.is_file() or path.read_text() != text:
            files.atomic_write(path, text)
        return records

    def discard(self, path: Path) -> None:
        """Remove a half-finished artifact that an earlier, killed run left."""
        with files.writing(path):
            if path.exists():
                shutil.rmtree(path)

    # -- opening -----------------------------------------------------------------------------------------------------
    @contextmanager
    def opened(self, resolved: Mapping[str, Any], *, resume: bool) -> Iterator[None]:
        """Hold the directory for this study: check what it holds, lock it, clear what killed runs left.

        Raises:
            OutputError: it cannot be written, holds something else, a different study, or this study without
                `resume`; or another run is working in it.
        """
        with files.writing(self.root):
            self.root.mkdir(parents=True, exist_ok=True)
        with self._locked() as new:
            try:
                self._check(resolved, resume)
            except OutputError:
                if new:
                    (self.root / LOCK).unlink(missing_ok=True)
                raise
            for folder in (self.root, *(path for path in self.root.iterdir() if path.is_dir())):
                files.remove_stale(folder)
            files.atomic_write(self.root / STUDY, files.dump_yaml(dict(resolved)))
            yield

    @contextmanager
    def _locked(self) -> Iterator[bool]:
        """Hold the lock file; yields whether it was made now."""
        with files.writing(self.root):
            new = not (self.root / LOCK).exists()
            handle = (self.root / LOCK).open("a+")
        with handle:  # the kernel releases the lock with the process, however it ends
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise OutputError(
                    f"another lessen run is working in {self.root}; wait for it or choose another --out"
                ) from error
            yield new

    def _check(self, resolved: Mapping[str, Any], resume: bool) -> None:
        present = {path.name for path in self.root.iterdir()} - {LOCK}
        present = {name for name in present if not name.startswith(files.TEMPORARY)}
        if not present:
            return
        if STUDY not in present:
            raise OutputError(f"{self.root} holds other files and no study; choose another --out")
        old = self._stored_study()
        reason = difference(old, resolved)
        if reason:
            raise OutputError(f"{self.root} holds a different study ({reason}); choose another --out or remove it")
        if not resume:
            done = len(list((self.root / "runs").glob("*.json")))
            total = len(resolved["recipes"]) * len(resolved["seeds"])
            raise OutputError(
                f"{self.root} already holds this study ({done} of {total} runs finished); "
                "add --resume to continue it or choose another --out"
            )

    def _stored_study(self) -> Mapping[str, Any]:
        path = self.root / STUDY
        try:
            value = files.parse_yaml(files.read_text(path, "study"), str(path))
        except ConfigError as error:
            raise OutputError(f"{error}; choose another --out or remove {self.root}") from error
        if not isinstance(value, Mapping):
            raise OutputError(f"{path} is no study; choose another --out or remove {self.root}")
        return value


def read_json(path: Path) -> dict[str, Any] | None:
    """Return a JSON object, or None where the file is absent or damaged (it is then made again)."""
    if not path.is_file():
        return None
    try:
        value = files.parse_json(files.read_checked(path), str(path))
    except ArtifactError:
        return None
    return value if isinstance(value, dict) else None


def difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """Return why results of `old` may not stand beside those of `new`, or an empty string.

    Margin and budget may change, and recipes and seeds may be added: what was measured stays true.
    """
    old = {**old, "measure": current(old.get("measure"))}
    for key in ("study", "task", "threads", "measure", "judges", "device"):
        if old.get(key) != new.get(key):
            return f"{key} was {old.get(key)!r}, is {new.get(key)!r}"
    before = {item.get("name"): item for item in old.get("recipes") or ()}
    after = {item["name"]: item for item in new["recipes"]}
    for name, item in before.items():
        if name not in after:
            return f"it has the recipe {name!r}, which is gone"
        if not _same_recipe(item, after[name]):
            return f"the recipe {name!r} changed"
    gone = sorted(set(old.get("seeds") or ()) - set(new["seeds"]))
    return f"it has the seed {gone[0]}, which is gone" if gone else ""


def _same_recipe(old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    """Tell whether two descriptions mean one recipe, whichever version of lessen wrote the first."""
    if old == new:
        return True
    try:
        return Recipe.parse(dict(old)).describe() == new
    except ConfigError:
        return False
