"""The import direction of the design: a file imports only its own layer or a lower one; importing has no effect."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from bare_imports import BARE

SOURCE = Path(__file__).parent.parent / "src" / "lessen"

LAYERS = [
    {"errors", "log", "version", "environment"},
    {"files"},
    {"costs"},
    {"metrics"},
    {"stored"},
    {"data"},
    {"architectures"},
    {"train"},
    {"capabilities", "task"},
    {"method"},
    {"tokens", "decoding", "checkpoints", "selection", "series"},
    {"tasks"},
    {"methods"},
    {"recipe"},
    {"artifact"},
    {"measure"},
    {"importers"},
    {"export"},
    {"frontier"},
    {"report"},
    {"study"},
    {"testing"},
    {"trade"},
    {"cli", "__init__", "__main__"},
]
RANK = {room: rank for rank, rooms in enumerate(LAYERS) for room in rooms}


def room_of(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def imports_of(path: Path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names = [node.module] if node.module != "lessen" else [f"lessen.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        for name in names:
            if name.startswith("lessen."):
                yield name.split(".")[1], node.lineno


@pytest.mark.parametrize("path", sorted(SOURCE.rglob("*.py")), ids=lambda path: str(path.relative_to(SOURCE)))
def test_imports_point_downwards(path):
    own = room_of(path)
    assert own in RANK, f"{own} has no layer yet: add it to LAYERS where a newcomer would look for it"
    for room, line in imports_of(path):
        assert RANK[room] <= RANK[own], f"{path.name}:{line} imports lessen.{room}, a layer above its own"


def test_stored_modules_depend_on_nothing_but_torch():
    allowed = {"torch", "lessen", "__future__", *sys.stdlib_module_names}
    for path in (SOURCE / "stored").rglob("*.py"):
        own = {"llvmlite"} if path.name == "machine.py" else set()  # inside functions, and only where it is installed
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module:
                roots = {node.module.split(".")[0]}
            elif isinstance(node, ast.Import):
                roots = {alias.name.split(".")[0] for alias in node.names}
            else:
                continue
            assert roots <= allowed | own, f"{path.name}: {roots - allowed}"


PROBE = """
import sys, threading, time, socket
socket.socket.connect = None            # any use of the network would raise
import torch
start = time.perf_counter()
import lessen
seconds = time.perf_counter() - start
extras = {"transformers", "ray", "optuna", "onnx", "onnxruntime", "sklearn", "mlflow", "gguf", "zstandard",
          "constriction", "matplotlib", "polars", "llvmlite"} & set(sys.modules)
print(seconds < 1.0, sorted(extras), threading.active_count(), torch.cuda.is_initialized())
"""


def test_importing_is_light_and_silent_and_every_module_imports_without_the_extras():
    done = subprocess.run([sys.executable, "-c", PROBE + BARE], capture_output=True, text=True)
    assert done.stdout.splitlines() == ["True [] 1 False", "all"], done.stderr[-500:]
    assert done.stderr == ""
