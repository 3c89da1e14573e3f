"""What a figure depends on besides the code: versions, processor, threads, memory."""

from __future__ import annotations

import os
import platform
import sys
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

PACKAGES = ("lessen", "torch", "numpy", "safetensors", "polars", "pydantic", "scikit-learn")


@lru_cache(maxsize=1)
def _static() -> dict[str, Any]:
    return {
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory_bytes": _memory_bytes(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "packages": {name: found for name in PACKAGES if (found := package_version(name))},
    }


def environment(threads: int | None = None) -> dict[str, Any]:
    """Return versions and machine as JSON values; no host name, user name or path."""
    return {**_static(), "threads": threads or torch.get_num_threads(), "byteorder": sys.byteorder}


def package_version(name: str) -> str | None:
    """Return the installed version of a distribution, or None."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or "unknown"


def _memory_bytes() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        return None
