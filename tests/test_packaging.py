"""The wheel alone, without extras, holds everything it needs; the Makefile works from a folder with spaces."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from bare_imports import BARE

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "a folder with spaces"
    source.mkdir()
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if tracked.returncode:
        pytest.skip("not a git checkout: the list of files to package is unknown")
    for name in filter(None, tracked.stdout.split("\0")):
        if name.startswith("src/") or name in ("pyproject.toml", "README.md", "LICENSE"):
            target = source / name
            target.parent.mkdir(parents=True, exist_ok=True)
            if (ROOT / name).exists():
                target.write_bytes((ROOT / name).read_bytes())
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(folder), "."]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-1000:]
    return next(folder.glob("*.whl"))


def test_the_wheel_is_small_and_whole(wheel):
    assert wheel.stat().st_size < 12_000_000
    names = set(zipfile.ZipFile(wheel).namelist())
    for needed in ("lessen/py.typed", "lessen/study/demo.yaml", "lessen/report/page.html.jinja"):
        assert needed in names
    assert {name.split("/")[0] for name in names} == {
        "lessen",
        next(n for n in names if ".dist-info" in n).split("/")[0],
    }


def test_the_bare_wheel_imports_every_module_and_runs(wheel, tmp_path):
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(tmp_path / "site"), str(wheel)],
        check=True,
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    where = "import lessen\nprint(lessen.__file__)\n"
    done = subprocess.run(
        [sys.executable, "-c", where + BARE], capture_output=True, text=True, env=environment, cwd=tmp_path
    )
    first, _, last = done.stdout.strip().partition("\n")
    assert first.startswith(str(tmp_path)), done.stderr[-500:]
    assert last == "all", done.stderr[-500:]
    command = [sys.executable, "-m", "lessen", "methods", "--json"]
    listed = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert "emb-rowwise-quant" in listed.stdout, listed.stderr[-500:]


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
@pytest.mark.parametrize("target", ["demo", "test", "check", "docs"])
def test_make_works_from_a_folder_with_a_space(target, tmp_path):
    folder = tmp_path / "two words"
    folder.mkdir()
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copyfile(ROOT / name, folder / name)
    own = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    done = subprocess.run(["make", "-n", target], cwd=folder, capture_output=True, text=True, env=own)
    assert done.returncode == 0, done.stderr
    assert str(folder) not in done.stdout
    assert ".venv/bin/pip" not in done.stdout  # a script's shebang breaks when the folder's name holds a space


def test_an_extra_exists_only_where_code_uses_it():
    tomllib = pytest.importorskip("tomllib", reason="the standard library reads TOML from Python 3.11 on")
    text = "\n".join(path.read_text() for path in (ROOT / "src").rglob("*.py"))
    imported = set(re.findall(r"^\s*(?:import|from) (\w+)", text, re.MULTILINE))
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    names = {
        "scikit_learn": "sklearn",
        "faiss_cpu": "faiss",
        "mlflow_skinny": "mlflow",
    }  # what is imported under another name than it is installed by
    for extra in set(extras) - {"dev", "test", "docs"}:
        packages = [re.split(r"[<>=]", need)[0].replace("-", "_") for need in extras[extra]]
        assert any(names.get(package, package) in imported for package in packages), f"no line imports [{extra}]"
