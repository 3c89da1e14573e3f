"""What this machine offers and what is missing: versions, threads, processor features, memory, disk and extras."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import shutil
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

MINIMUM_TORCH = (2, 10)
LOW_MEMORY = 2 << 30
LOW_DISK = 1 << 30
PACKAGES = ("torch", "numpy", "safetensors", "pydantic", "pyyaml", "polars", "typer", "rich", "matplotlib", "jinja2")
FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_int8", "asimd", "asimddp", "i8mm", "sve")
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "LESSEN_CACHE", "LESSEN_PROGRESS", "RAY_ADDRESS")


@dataclass(frozen=True)
class Finding:
    """One line of the examination."""

    topic: str
    item: str
    value: str
    status: Literal["ok", "note", "problem"] = "ok"
    advice: str = ""


def examine(folder: Path | None = None) -> list[Finding]:
    """Return the findings about this machine; `folder` is where studies will be written (default: here)."""
    place = folder if folder is not None else Path.cwd()
    return [*_versions(), *_torch(), *_processor(), *_memory(), *_disk(place), *_environment(), *_extras(), *_plugins()]


def healthy(findings: list[Finding]) -> bool:
    """Tell whether nothing stands in the way of running a study."""
    return all(finding.status != "problem" for finding in findings)


def as_records(findings: list[Finding]) -> list[dict[str, Any]]:
    """Return the findings as JSON values."""
    return [asdict(finding) for finding in findings]


def _version_of(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _versions() -> list[Finding]:
    from lessen.version import __version__

    found = [
        Finding("versions", "lessen", __version__),
        Finding("versions", "python", platform.python_version()),
        Finding("versions", "system", platform.platform()),
    ]
    for package in PACKAGES:
        version = _version_of(package)
        if version is None:
            advice = f"reinstall lessen: {sys.executable} -m pip install --force-reinstall lessen"
            found.append(Finding("versions", package, "missing", "problem", advice))
        else:
            found.append(Finding("versions", package, version))
    return found


def _torch() -> list[Finding]:
    try:
        import torch
    except (ImportError, OSError) as error:
        return [Finding("torch", "import", str(error), "problem", "install the CPU build named in constraints.txt")]
    numbers = tuple(int(part) for part in re.findall(r"\d+", str(torch.__version__))[:2])
    old = numbers < MINIMUM_TORCH
    advice = "update to torch 2.10 or later: older ones load checkpoints unsafely (CVE-2026-24747)" if old else ""
    cuda = torch.cuda.is_available()
    return [
        Finding("torch", "version", str(torch.__version__), "problem" if old else "ok", advice),
        Finding("torch", "vector instructions", torch.backends.cpu.get_cpu_capability()),
        Finding("torch", "threads", f"{torch.get_num_threads()} in one operator"),
        Finding("torch", "int8 engines", ", ".join(torch.backends.quantized.supported_engines)),
        Finding("torch", "GPU", torch.cuda.get_device_name(0) if cuda else "none"),
    ]


def available_cores() -> int:
    """Return the processor cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return max(1, len(os.sched_getaffinity(0)))
    return os.cpu_count() or 1


def _processor() -> list[Finding]:
    name, flags = platform.processor() or platform.machine(), set[str]()
    listing = Path("/proc/cpuinfo")
    if listing.exists():
        text = listing.read_text(errors="replace")
        model = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
        name = model.group(1).strip() if model else name
        line = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", text, re.MULTILINE)
        flags = set(line.group(1).split()) if line else flags
    present = [flag for flag in FLAGS if flag in flags]
    return [
        Finding("processor", "model", name),
        Finding("processor", "cores", f"{available_cores()} of {os.cpu_count()} usable"),
        Finding("processor", "features", ", ".join(present) or "unknown"),
    ]


def memory_bytes() -> tuple[int, int] | None:
    """Return (total, available) bytes of memory, the container's limit included; None where it is not known."""
    listing = Path("/proc/meminfo")
    if not listing.exists():
        return None
    amounts = {
        key: int(kib) * 1024 for key, kib in re.findall(r"^(\w+):\s+(\d+) kB", listing.read_text(), re.MULTILINE)
    }
    total, free = amounts["MemTotal"], amounts.get("MemAvailable", amounts["MemFree"])
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    if limit.exists() and used.exists() and (text := limit.read_text().strip()).isdigit():
        total = min(total, int(text))
        free = min(free, max(0, int(text) - int(used.read_text())))
    return total, free


def _memory() -> list[Finding]:
    amounts = memory_bytes()
    if amounts is None:
        return [Finding("memory", "available", "not known on this system", "note")]
    total, free = amounts
    low = free < LOW_MEMORY
    advice = "close other programs or use --jobs 1" if low else ""
    value = f"{gib(free)} of {gib(total)}"
    return [Finding("memory", "available", value, "note" if low else "ok", advice)]


def gib(count: int) -> str:
    """Return bytes in GiB with one decimal."""
    return f"{count / (1 << 30):.1f} GiB"


def _disk(place: Path) -> list[Finding]:
    existing = next((folder for folder in (place, *place.resolve().parents) if folder.is_dir()), Path("/"))
    free = shutil.disk_usage(existing).free
    low, writable = free < LOW_DISK, os.access(existing, os.W_OK)
    return [
        Finding("disk", "free", gib(free), "note" if low else "ok", "free some space" if low else ""),
        Finding(
            "disk",
            "writable",
            f"{existing}: {'yes' if writable else 'no'}",
            "ok" if writable else "note",
            "" if writable else "give --out a place you may write to",
        ),
    ]


def _environment() -> list[Finding]:
    return [Finding("environment", name, os.environ[name]) for name in THREAD_VARIABLES if name in os.environ]


def _extras() -> list[Finding]:
    found: list[Finding] = []
    for extra, packages in sorted(extra_packages().items()):
        missing = [package for package in packages if _version_of(package) is None]
        if missing:
            advice = f"pip install 'lessen[{extra}]'"
            found.append(Finding("extras", extra, f"missing: {', '.join(missing)}", "note", advice))
        else:
            found.append(Finding("extras", extra, "installed"))
    return found


def extra_packages() -> dict[str, list[str]]:
    """Return the packages of each extra of the installed distribution."""
    try:
        requirements = importlib.metadata.requires("lessen") or []
    except importlib.metadata.PackageNotFoundError:
        return {}
    extras: dict[str, list[str]] = {}
    for requirement in requirements:
        marker = re.search(r"extra\s*==\s*['\"]([\w-]+)['\"]", requirement)
        package = re.match(r"[A-Za-z0-9._-]+", requirement)
        if marker and package and package.group(0) != "lessen":
            extras.setdefault(marker.group(1), []).append(package.group(0))
    return extras


def _plugins() -> list[Finding]:
    """List third parties' methods and tasks without importing them."""
    return [
        Finding("plug-ins", point.name, point.value)
        for group in ("lessen.methods", "lessen.tasks")
        for point in importlib.metadata.entry_points(group=group)
    ]
