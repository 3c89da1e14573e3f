"""`--version` before any verb, and completion for the user's shell."""

from __future__ import annotations

import lessen
from lessen import cli


def test_version_by_option_and_by_verb(capsys):
    assert cli.execute(["--version"]) == cli.execute(["version"]) == 0
    assert capsys.readouterr().out == f"lessen {lessen.__version__}\n" * 2


def test_completion_is_offered(capsys):
    assert cli.execute(["--help"]) == 0
    assert "--install-completion" in capsys.readouterr().out
    assert cli.execute([]) in (0, 2)
    assert "demo" in capsys.readouterr().out
