"""Documentation runs: tutorials, README and guide code blocks, and every link between pages."""

from __future__ import annotations

import os
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from lessen import cli

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
TUTORIALS = sorted((ROOT / "docs" / "tutorials").glob("*.py"))
BLOCK = re.compile(r"^```(\w+)([^\n]*)\n(.*?)^```", re.MULTILINE | re.DOTALL)


@pytest.fixture(autouse=True)
def _a_user_each(monkeypatch):
    """Two pages may name a metric alike: nobody runs both in one process, which tests do."""
    from lessen.metrics import Metric

    monkeypatch.setattr(Metric, "_known", dict(Metric._known))


def blocks(page: Path, language: str):
    """Return the blocks of a page that run as they stand; one marked `no-run` in its info line is only shown."""
    return [code for name, info, code in BLOCK.findall(page.read_text()) if name == language and "no-run" not in info]


def pages_with(language: str, *slow: str):
    """Return the pages with such blocks; those of `slow` take over 20 seconds and run in continuous integration."""
    pages = [page for page in PAGES if blocks(page, language)]
    return [pytest.param(page, id=page.stem, marks=[pytest.mark.slow] * (page.stem in slow)) for page in pages]


def run(command: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, env=environment, timeout=400)


@pytest.mark.parametrize("script", TUTORIALS, ids=lambda path: path.stem)
def test_tutorials_run(script, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(script), run_name="__main__")
    assert capsys.readouterr().out.strip()


@pytest.mark.parametrize("page", pages_with("python", "README"))
def test_python_blocks_run_in_order(page, tmp_path, monkeypatch, capsys):
    """They run in this process, where torch is imported already, as tutorials and plain commands of ours do."""
    monkeypatch.chdir(tmp_path)
    exec(compile("\n".join(blocks(page, "python")), page, "exec"), {"__name__": "__main__"})
    printed = capsys.readouterr().out
    shown = re.search(r"<!-- example -->\n```text\n(.*?)```", page.read_text(), re.DOTALL)
    if shown:  # a real output: rows without time, rounding, or what kernels of one processor hold come out again
        found = {" ".join(row.split()) for row in printed.splitlines()}
        for row in shown[1].splitlines():
            if row.startswith(("stored", "parameters", "multiply", "auc:")):
                assert " ".join(row.split()) in found


@pytest.mark.parametrize("page", pages_with("bash", "clicks", "weights", "hosts", "scales"))
def test_shell_blocks_run(page, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for code in blocks(page, "bash"):
        if re.fullmatch(r"(lessen [\w .:=,/-]+\n)+", code):
            for command in code.splitlines():
                assert cli.execute(shlex.split(command)[1:]) == 0, f"{command}\n{capsys.readouterr().err}"
        else:
            done = run(["bash", "-euo", "pipefail", "-c", code], tmp_path)
            assert done.returncode == 0, f"{code}\n{done.stderr[-2000:]}"


def test_links_between_files_lead_somewhere():
    generated = {
        "methods.md",
        "errors.md",
        "api.md",
        *(f"tutorials/{path.stem.replace('_', '-')}.md" for path in TUTORIALS),
    }
    for page in PAGES:
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text()):
            resolved = (page.parent / target).resolve()
            known = str(resolved).removeprefix(f"{ROOT}/docs/") in generated
            assert resolved.exists() or known, f"{page.name} links to {target}"
            on_the_site = page.parent == ROOT / "docs"
            assert not (on_the_site and target.endswith(".py")), f"{page.name} links to {target}, which no site holds"


def test_the_demo_table_is_that_of_the_committed_run():
    done = run([sys.executable, "-m", "benchmarks.readme", "--check"], ROOT)
    assert done.returncode == 0, done.stdout


def test_the_studies_of_the_page_on_studies_are_valid_and_ones_own_runs(tmp_path, monkeypatch):
    from lessen.study.parts import load

    monkeypatch.chdir(tmp_path)
    page = ROOT / "docs" / "studies.md"
    code = next(text for name, _, text in BLOCK.findall(page.read_text()) if name == "python")
    (tmp_path / "mine.py").write_text(code)  # imported once, by the study: it registers a metric
    for number, text in enumerate(blocks(page, "yaml")):
        path = tmp_path / f"{number}.yaml"
        path.write_text(text)
        if "mine.py:" in text:
            path.write_text(text.replace("[0, 1, 2]", "[0]").replace("rows: 4000", "rows: 1200"))
            assert cli.execute(["run", path.name, "--out", "out", "--jobs", "1", "--only", "int4"]) == 0
            assert cli.execute(["verify", "out/artifacts/int4-0", "--task", "mine.py:Mine"]) == 0
        elif "ctr-movielens" not in text:  # whose data are not in every checkout
            load(path)
