"""The genomes that a search has tried, by the hash of their recipe: <out>/genomes.json."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from lessen import files
from lessen.errors import ConfigError, LessenError
from lessen.search.space import Genome, Space

GENOMES = "genomes.json"


def write(folder: Path, genomes: Mapping[str, Genome]) -> None:
    """Keep what was tried. Raises OutputError."""
    files.atomic_write(folder / GENOMES, files.dump_json({key: list(value) for key, value in genomes.items()}))


def read(folder: Path, space: Space) -> dict[str, Genome]:
    """Return what an earlier run of this search has tried; nothing where there was none.

    Raises:
        ConfigError: a damaged file, or a genome that is none of the space.
    """
    path = folder / GENOMES
    if not path.exists():
        return {}
    try:
        value = files.parse_json(files.read_checked(path), str(path))
        found = {str(key): tuple(int(pick) for pick in picks) for key, picks in value.items()}
        for genome in found.values():
            if len(genome) != len(space.widths) or not all(
                0 <= pick < width for pick, width in zip(genome, space.widths, strict=True)
            ):
                raise ValueError(f"{list(genome)[:20]} is no genome of this space")
    except (LessenError, ValueError, AttributeError, TypeError, OverflowError) as error:
        raise ConfigError(f"{path} is damaged ({error}); remove the folder and search again") from error
    return found
