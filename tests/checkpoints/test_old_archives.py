"""Archives of earlier releases: `archives/` was written before anything wrote format 2, and must stay readable."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from lessen import files
from lessen.checkpoints import Archive

HERE = Path(__file__).parent / "archives"
EXPECTED = json.loads((HERE / "expected.json").read_text())


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_every_file_comes_back_as_the_release_that_packed_it_gave_it(name, tmp_path):
    archive = Archive(shutil.copytree(HERE / name, tmp_path / "a"))
    assert archive.verify() == []
    archive.unpack_all(tmp_path / "o")
    found = {
        path.relative_to(tmp_path / "o").as_posix(): files.sha256(path)
        for path in (tmp_path / "o").rglob("*")
        if path.is_file()
    }
    assert found == EXPECTED[name]
