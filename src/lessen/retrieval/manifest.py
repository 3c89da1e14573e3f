"""The one small file that says what an index folder holds; whoever replaces it acknowledges what it names.

<index>/index.json               this record
<index>/shared-<n>.safetensors   what all rows share: codebooks, a turn
<index>/rows-<n>.safetensors     rows and their names; written once, never changed
<index>/probes-<n>.safetensors   some first vectors with their exact neighbours among all that was added
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lessen import files
from lessen.errors import ArtifactError
from lessen.retrieval.checks import Metric

NAME = "index.json"
LIMIT = 1 << 26


class Written(BaseModel):
    """A file of the folder, as it was when it was written."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    name: str = Field(pattern=r"^(shared|rows|probes)-\d{1,12}\.safetensors$")
    bytes: int = Field(ge=0)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class Rows(Written):
    """A file of rows, and which of them were removed since."""

    rows: int = Field(ge=1)
    removed: tuple[int, ...] = ()


class Manifest(BaseModel):
    """What an index folder is."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    format: Literal["lessen-index"] = "lessen-index"
    version: Literal[1] = 1
    metric: Metric
    form: str
    index: dict[str, Any]
    """Configuration of `staged-vectors` without rows."""
    encoder: dict[str, Any] | None = None
    """What made the vectors: `digest` and what a reader needs to make more; None for vectors of a file."""
    multi: dict[str, Any] | None = None
    """Of token sets: `encoding`, what makes one vector of a set, and `tokens`, how the tokens are held."""
    shared: Written
    probes: Written | None = None
    segments: tuple[Rows, ...] = ()
    next: int = Field(1, ge=1)
    """Number of the next file."""

    @property
    def live(self) -> int:
        """Rows that can be found."""
        return sum(one.rows - len(one.removed) for one in self.segments)

    @property
    def named(self) -> set[str]:
        """Names of all files that belong to the folder."""
        probes = set() if self.probes is None else {self.probes.name}
        return {NAME, self.shared.name, *probes, *(one.name for one in self.segments)}


def read(folder: Path) -> Manifest:
    """Return the record of a folder.

    Raises:
        ArtifactError: there is none, or it is torn or not one of ours.
    """
    path = folder / NAME
    if not path.is_file():
        raise ArtifactError(f"{folder} is no index: it has no {NAME}; make one with: lessen index build {folder} ...")
    raw = files.parse_json(files.read_checked(path, limit=LIMIT), str(path))
    said = raw.pop("digest", None) if isinstance(raw, dict) else None  # records of before have none
    if said is not None and said != files.digest(files.canonical(raw)):
        raise ArtifactError(f"{path} is damaged: it is not what was written; take it from a copy, or build again")
    try:
        made = Manifest.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the record"
        raise ArtifactError(f"{path} is not the record of an index: {where}: {first['msg'].lower()}") from error
    for one in made.segments:
        if one.removed and (max(one.removed) >= one.rows or min(one.removed) < 0 or len(one.removed) > one.rows):
            raise ArtifactError(f"{path}: {one.name} has {one.rows} rows, and others are said to be removed")
    return made


def write(folder: Path, manifest: Manifest) -> None:
    """Replace the record, with its own digest, in one step. Raises OutputError."""
    said = manifest.model_dump(mode="json")
    files.atomic_write(folder / NAME, files.dump_json({**said, "digest": files.digest(files.canonical(said))}))
