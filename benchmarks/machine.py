"""Describes the machine that measures."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]

#: What a measurement depends on most, besides Python.
_PACKAGES = ("numpy", "grpcio", "protobuf", "numba")


def describe() -> dict[str, Any]:
    """Return what a reader must know of the machine, its state and the program measured."""
    return {
        "cores": os.cpu_count(),
        "processor": _entry("/proc/cpuinfo", "model name") or platform.machine(),
        "memory_gib": round(int((_entry("/proc/meminfo", "MemTotal") or "0 kB").split()[0]) / 2**20, 1),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "packages": {name: found for name in _PACKAGES if (found := _version(name))},
        "commit": _commit(),
        "started": time.strftime("%Y-%m-%d %H:%M", time.gmtime()) + " UTC",
        #: Processes that ran or waited for a core in the minute before, on average.
        "load": round(os.getloadavg()[0], 2),
    }


def _entry(file: str, name: str) -> str | None:
    found = re.search(rf"^{name}\s*: *(.*)$", Path(file).read_text(encoding="utf-8"), re.MULTILINE)
    return found[1] if found else None


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _commit() -> str:
    command = ["git", "describe", "--always", "--dirty"]
    try:
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
