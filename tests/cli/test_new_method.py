"""What `lessen new-method` writes works as it is: in a checkout and in a package of one's own."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from lessen import cli
from lessen.cli.method_skeleton import write
from lessen.methods import families
from lessen.testing import check_method


def test_skeletons_pass_their_own_tests_and_the_checks(tmp_path, capsys):
    for name, family in (("my-table-rule", "embeddings"), ("my-rule", "weights"), ("my-data-rule", "data")):
        assert cli.execute(["new-method", name, "--family", family, "--in", str(tmp_path)]) == 0
    assert 'my-rule = "my_rule:MyRule"' in capsys.readouterr().out
    settings = str(Path(__file__).parents[2] / "pyproject.toml")
    for command in (
        ["pytest", "-q", "-p", "no:cacheprovider", "."],
        ["ruff", "check", "--config", settings, "--ignore", "I001,D103", "."],  # I001: siblings are not installed here
        ["ruff", "format", "--check", "--config", settings, "."],
    ):
        done = subprocess.run([sys.executable, "-m", *command], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-2000:]


def test_in_a_checkout_the_files_go_where_their_siblings_are(tmp_path, capsys):
    (tmp_path / "src" / "lessen" / "methods").mkdir(parents=True)
    assert cli.execute(["new-method", "my-rule", "--family", "tokens", "--in", str(tmp_path)]) == 0
    assert "entry" not in capsys.readouterr().out
    method = tmp_path / "src" / "lessen" / "methods" / "tokens" / "my_rule.py"
    test = tmp_path / "tests" / "methods" / "tokens" / "test_my_rule.py"
    assert 'family="tokens"' in method.read_text()
    assert "from lessen.methods.tokens.my_rule import MyRule" in test.read_text()
    before = method.read_bytes()
    assert cli.execute(["new-method", "my-rule", "--family", "tokens", "--in", str(tmp_path)]) == 2
    assert method.read_bytes() == before


@pytest.mark.parametrize("family", families())
def test_a_skeleton_of_every_family_passes_the_contract(family, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    made = write(f"skeleton-of-{family}", family, tmp_path)
    method = getattr(importlib.import_module(made.method.stem), f"SkeletonOf{family.capitalize()}")()
    assert "card_is_complete" in check_method(method)
