"""Runs a module as a process that cannot outlive its parent: `python leash.py PARENT_PID MODULE [ARGUMENT …]`.

This file is run by its path and imports nothing of the package: the process is to hold only what its module needs.
"""

from __future__ import annotations

import ctypes
import os
import runpy
import signal
import sys

#: From linux/prctl.h: the signal that the kernel sends when the parent is gone, however it went.
PR_SET_PDEATHSIG = 1


def main() -> None:
    """Tie this process to its parent, then become the module."""
    parent, module = int(sys.argv[1]), sys.argv[2]
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL) != 0:
        sys.exit(f"prctl: {os.strerror(ctypes.get_errno())}")
    # The parent may have died before the kernel was told, and then the signal would never come.
    if os.getppid() != parent:
        sys.exit("the parent is gone")
    sys.argv[:] = [module, *sys.argv[3:]]
    # As `python -m` does, and unlike running a file, which would put this folder's modules on the path.
    sys.path[0] = os.getcwd()
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
