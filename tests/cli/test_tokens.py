"""`lessen tokens show` draws without needing the data set (source: lessen/cli/tokens.py)."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from lessen.cli.tokens import app, read_picture
from lessen.errors import ConfigError, DataError

RUN = CliRunner()


@pytest.fixture
def picture(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "cat.png")
    return tmp_path / "cat.png"


def test_a_reduction_is_drawn(picture):
    done = RUN.invoke(app, ["show", str(picture), "--step", "tome:r=8", "--json"])
    assert done.exit_code == 0, done.output
    result = json.loads(done.stdout)
    assert result["tokens_after_block"] == [57, 49, 41, 33, 25, 17]
    with Image.open(result["picture"]) as sheet:
        assert sheet.width == 7 * (8 * 24 + 6) + 6
    text = RUN.invoke(app, ["show", str(picture), "--out", str(picture.with_name("other.png"))])
    assert "tokens after each block" in text.stdout
    assert picture.with_name("other.png").exists()


def test_bad_pictures_and_steps(picture, tmp_path):
    (tmp_path / "torn.png").write_bytes(b"\x89PNG torn")
    with pytest.raises(DataError, match="not a picture"):
        read_picture(tmp_path / "torn.png")
    with pytest.raises(DataError, match="does not exist"):
        read_picture(tmp_path / "absent.png")
    failed = RUN.invoke(app, ["show", str(picture), "--step", "tome:q=8"])
    assert isinstance(failed.exception, ConfigError)
    assert "has no key 'q'" in str(failed.exception)
