"""Files of a search's folder that were cut, replaced or edited: one line that names the file."""

from __future__ import annotations

import os

import pytest

from lessen.errors import ConfigError, InputError
from lessen.search import Space, genomes, heats
from lessen.search.heats import RACES

SPACE = Space.parse([["none", "linear-int8"], ["none", "emb-half"]])
BAD = ["", "{", "[]", "null", "[NaN]", "folder", "pipe"]


def spoil(path, how):
    path.unlink(missing_ok=True)
    if how == "folder":
        path.mkdir()
    elif how == "pipe":
        os.mkfifo(path)
    else:
        path.write_text(how)


@pytest.mark.parametrize(
    "how", [*BAD, '{"a": [0]}', '{"a": [0, 2]}', '{"a": [0, -1]}', '{"a": [0, 1e999]}', '{"a": 3}', '{"a": ["x", 0]}']
)
def test_genomes(tmp_path, how):
    genomes.write(tmp_path, {"a": (0, 1)})
    assert genomes.read(tmp_path, SPACE) == {"a": (0, 1)}
    spoil(tmp_path / genomes.GENOMES, how)
    with pytest.raises(ConfigError, match="genomes.json is damaged"):
        genomes.read(tmp_path, SPACE)


@pytest.mark.parametrize("how", [*BAD, '{"a": {"recipe": "r", "cost": 1e999, "loss": 0, "share": 1}}', '{"a": {}}'])
def test_races(tmp_path, how):
    out = {"a": heats.Out("r", 0.5, 0.1, 0.25)}
    heats.write(tmp_path, out)
    assert heats.read(tmp_path) == out
    spoil(tmp_path / RACES, how)
    with pytest.raises(InputError, match="races.json is damaged"):
        heats.read(tmp_path)
