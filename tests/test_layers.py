"""The import direction of the design, room by room and file by file; importing has no effect."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from bare_imports import BARE

SOURCE = Path(__file__).parent.parent / "src" / "lessen"

# From the ground up: a room imports rooms before it, never one after it. Rooms of one line import none of each other.
ORDER = [
    # the ground
    "errors", "files", "log", "version", "environment", "costs", "usercode", "registry",
    # what is held, what is read, what is trained
    "metrics", "stored", "data", "architectures", "train",
    # contracts
    "capabilities", "task", "method",
    # machinery, named after the thing made smaller
    ("tokens", "decoding", "checkpoints", "selection", "retrieval", "codecs", "folding", "series", "sparsity", "pruning"),
    # what is compressed, and how
    "tasks", "artifact", "judges", "methods", "recipe",
    # what comes out, and what it cost
    "measure", "export", "importers", "frontier", "judging", "report", "study", "search", "advice", "testing", "trade",
    # doors
    "ranking", "__init__", "cli", "__main__",
]  # fmt: skip
RANK = {room: rank for rank, line in enumerate(ORDER) for room in ([line] if isinstance(line, str) else line)}
FILES = sorted(SOURCE.rglob("*.py"))


def name_of(path: Path) -> str:
    """`lessen.tokens.plans`; of a package its own name."""
    parts = path.relative_to(SOURCE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path): path for path in FILES}


def room_of(module: str) -> str:
    return module.split(".")[1] if "." in module else "__init__"


def imports_of(path: Path) -> Iterator[tuple[str, int]]:
    """Every module of ours that a file imports, inside functions too; `from room import file` is the file."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}:{node.lineno} is a relative import; write the whole name"
            base = node.module or ""
            names = [f"{base}.{a.name}" if f"{base}.{a.name}" in MODULES else base for a in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        for name in names:
            if name.split(".")[0] == "lessen":
                yield name, node.lineno


def test_every_room_has_its_place():
    rooms = {room_of(name_of(path)) for path in FILES if path.name != "__init__.py" or path.parent != SOURCE}
    rooms.discard("__init__")
    assert rooms <= set(RANK), f"{sorted(rooms - set(RANK))}: add to ORDER where a newcomer would look for it"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_imports_point_downwards(path):
    own = room_of(name_of(path))
    for module, line in imports_of(path):
        assert module in MODULES, f"{path.name}:{line} imports {module}, which does not exist"
        room = room_of(module)
        if room == own and module != "lessen":
            continue
        assert module != "lessen" and room in RANK, f"{path.name}:{line} imports {module}: import the file it needs"  # noqa: PT018
        assert RANK[room] < RANK[own], f"{path.name}:{line} imports {module}, which stands no lower than {own}"


def test_no_file_leads_back_to_itself():
    """Imports inside functions count as well: a circle that is deferred is still read as a circle."""
    imports = {name: {found for found, _ in imports_of(path) if found in MODULES} for name, path in MODULES.items()}
    done: set[str] = set()

    def walk(module: str, way: tuple[str, ...]) -> None:
        assert module not in way, " -> ".join((*way[way.index(module) :], module))
        if module not in done:
            for found in sorted(imports[module]):
                walk(found, (*way, module))
            done.add(module)

    for module in MODULES:
        walk(module, ())


def test_a_file_can_be_read_in_one_sitting():
    root = SOURCE.parent.parent
    paths = [
        path for folder in ("src", "tests", "benchmarks", "docs") for path in sorted((root / folder).rglob("*.py"))
    ]
    long = {str(path.relative_to(root)): count for path in paths if (count := len(path.read_text().splitlines())) > 400}
    assert not long, f"over 400 lines: {long}; a file has one job, so give the other job a file of its own"


def test_every_private_name_is_read_somewhere():
    text = "\n".join(path.read_text() for path in FILES)
    words = Counter(re.findall(r"\w+", text))
    kinds = (ast.FunctionDef, ast.ClassDef)
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            private = isinstance(node, kinds) and node.name.startswith("_") and not node.name.endswith("__")
            if private and not node.decorator_list:  # what is decorated is registered, as validators are
                assert words[node.name] > 1, f"{path.name}:{node.lineno} defines {node.name}, which nothing reads"


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


# Processor time, in shares of what torch took in the same process: a busy machine slows both alike.
PROBE = """
import sys, threading, time, socket
socket.socket.connect = None            # any use of the network would raise
start = time.process_time()
import torch
middle = time.process_time()
import lessen
for name in lessen.__all__:
    getattr(lessen, name)               # public names are imported on first use
share = (time.process_time() - middle) / (middle - start)
extras = {"transformers", "ray", "optuna", "onnx", "onnxruntime", "sklearn", "mlflow", "gguf", "zstandard",
          "constriction", "matplotlib", "polars", "llvmlite", "faiss"} & set(sys.modules)
print(share < 0.5, sorted(extras), threading.active_count(), torch.cuda.is_initialized())
"""


def test_importing_is_light_and_silent_and_every_module_imports_without_the_extras():
    done = subprocess.run([sys.executable, "-c", PROBE + BARE], capture_output=True, text=True)
    assert done.stdout.splitlines() == ["True [] 1 False", "all"], done.stderr[-500:]
    assert done.stderr == ""
