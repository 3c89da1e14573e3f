"""A search file: a study's keys with `space` in the place of, or beside, `recipes`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from lessen import files
from lessen.errors import ConfigError
from lessen.log import SILENT, Log
from lessen.search.space import Space
from lessen.study import Study

KEY = "space"


def load(path: Path, log: Log = SILENT) -> tuple[Study, Space]:
    """Read a search file. Recipes in it are those that the search has to beat.

    The recipe that takes the first step of every slot is tried first where there are none.

    Raises:
        ConfigError: names file, key and what is allowed.
    """
    value = files.parse_yaml(files.read_text(path, "search"), str(path))
    if not isinstance(value, Mapping):
        raise ConfigError(f"{path}: expected a mapping with the keys study, task and {KEY}")
    if KEY not in value:
        raise ConfigError(
            f"{path}: a search needs the key `{KEY}`, a list of slots such as "
            "[none, {emb-rowwise-quant: {bits: {any: [8, 4]}}}]; `lessen run` runs a study without one"
        )
    space = Space.parse(value[KEY], f"{path}: {KEY}", own=True)
    rest = {key: item for key, item in value.items() if key != KEY}
    if not rest.get("recipes"):
        first = tuple(next((at for at, step in enumerate(slot.options) if step), 0) for slot in space.slots)
        rest["recipes"] = [space.recipe(first).describe()]
    return Study.parse(rest, str(path), log), space
