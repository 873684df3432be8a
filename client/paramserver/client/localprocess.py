"""A Python module as a process of this machine, which cannot outlive its parent."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from paramserver.client import leash

#: Lines of a log that an error message quotes.
_TAIL_LINES = 15

#: Kernels of one BLAS on two cores must not fight over them, and their sums must not depend on the core count.
_ONE_THREAD = dict.fromkeys(
    ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS", "VECLIB_MAXIMUM_THREADS"), "1"
)

#: Fewer hand-overs between gRPC's threads: a tenth off a round of small messages, see docs/performance.md. A gRPC that
#: no longer knows these switches says so in the log and goes on.
_GRPC = {"GRPC_EXPERIMENTS": "-event_engine_client,-event_engine_listener"}


class LocalProcess:
    """A Python module running as a process of its own, its output in `LOGS/NAME.log`.

    It has its own session, so that Ctrl-C in the terminal reaches the parent only, and dies with the thread of the
    parent that started it.
    """

    def __init__(self, name: str, logs: Path, module: str, *arguments: str) -> None:
        self.name = name
        self._module = module
        #: Those of the next start.
        self.arguments = arguments
        self._log = logs / f"{name}.log"
        self.process = self._start()

    @property
    def alive(self) -> bool:
        """Whether the process runs."""
        return self.process.poll() is None

    def start_again(self) -> None:
        """Start the process once more, after it has died; its log goes on."""
        self.process = self._start()

    def how_it_ended(self) -> str:
        """Say in one line how the process ended."""
        code = self.process.returncode
        return f"{self.name} " + (f"was killed by signal {-code}" if code < 0 else f"ended with exit status {code}")

    def epitaph(self) -> str:
        """Say how the process ended, and its last words."""
        tail = self._log.read_text(encoding="utf-8", errors="replace").splitlines()[-_TAIL_LINES:]
        return "\n".join([f"{self.how_it_ended()}; the end of {self._log}:", *(f"  {line}" for line in tail)])

    def _start(self) -> subprocess.Popen[bytes]:
        with self._log.open("ab") as log:
            return subprocess.Popen(
                [sys.executable, str(leash.__file__), str(os.getpid()), self._module, *self.arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**_GRPC, **os.environ, **_ONE_THREAD, "PYTHONUNBUFFERED": "1"},
                start_new_session=True,
            )
