"""What `lessen new-method` writes works as it is: in a checkout and in a package of one's own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from lessen import cli


@pytest.mark.parametrize("family", ["embeddings", "weights"])
def test_the_skeleton_passes_its_own_test_and_the_checks(tmp_path, family, capsys):
    assert cli.execute(["new-method", "my-rule", "--family", family, "--in", str(tmp_path)]) == 0
    assert 'my-rule = "my_rule:MyRule"' in capsys.readouterr().out
    python = [sys.executable, "-m"]
    done = subprocess.run(
        [*python, "pytest", "-q", "-p", "no:cacheprovider", "test_my_rule.py"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-2000:]
    settings = Path(__file__).parent.parent / "pyproject.toml"
    for command in (["check"], ["format", "--check"]):
        checked = subprocess.run(
            [*python, "ruff", *command, "--config", str(settings), "my_rule.py", "test_my_rule.py"],
            cwd=tmp_path, capture_output=True, text=True,
        )  # fmt: skip
        assert checked.returncode == 0, checked.stdout


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
