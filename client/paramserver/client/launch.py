"""A server and workers as processes of this machine, which end with whoever started them."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from paramserver.client import leash
from paramserver.client.connection.client import Client
from paramserver.wire.errors import JobFailed, RequestError

#: A server has been started and answers well within this time, or something is wrong.
START_S = 30.0
#: After SIGTERM, what has not ended by then is killed.
GRACE_S = 5.0
#: Pause between two looks at something that takes a moment.
_LOOK_S = 0.01
#: Lines of a log that an error message quotes.
_TAIL_LINES = 15

#: Kernels of one BLAS on two cores must not fight over them, and their sums must not depend on the core count.
_ONE_THREAD = dict.fromkeys(
    ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS", "VECLIB_MAXIMUM_THREADS"), "1"
)


def check_workers(workers: int) -> None:
    """Refuse a number of worker processes that makes no sense.

    Raises:
        RequestError: below 1.
    """
    if workers < 1:
        raise RequestError(f"workers is {workers}, allowed are 1 and more")


class LocalProcess:
    """A Python module running as a process of its own, its output in `LOGS/NAME.log`.

    It has its own session, so that Ctrl-C in the terminal reaches the parent only, and dies with the parent.
    """

    def __init__(self, name: str, logs: Path, module: str, *arguments: str) -> None:
        self.name = name
        self._log = logs / f"{name}.log"
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, str(leash.__file__), str(os.getpid()), module, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, **_ONE_THREAD, "PYTHONUNBUFFERED": "1"},
                start_new_session=True,
            )

    @property
    def alive(self) -> bool:
        """Whether the process runs."""
        return self.process.poll() is None

    def epitaph(self) -> str:
        """Say how the process ended, and its last words."""
        code = self.process.returncode
        how = f"was killed by signal {-code}" if code < 0 else f"ended with exit status {code}"
        tail = self._log.read_text(encoding="utf-8", errors="replace").splitlines()[-_TAIL_LINES:]
        return "\n".join([f"{self.name} {how}; the end of {self._log}:", *(f"  {line}" for line in tail)])


class LocalCluster:
    """One server and some workers; a context manager that starts them and leaves none behind.

    Args:
        workers: how many worker processes, 1 or more.
        logs: an existing directory for one log file per process.
        base: where relative paths of jobs start for the workers.

    Raises:
        JobFailed: on entry, if the server does not start; the message holds the end of its log.
    """

    def __init__(self, workers: int, logs: Path, base: Path) -> None:
        self._count, self._logs, self._base = workers, logs, base
        self._server: LocalProcess | None = None
        self._workers: list[LocalProcess] = []
        #: Where the server listens; set on entry.
        self.address = ""

    def __enter__(self) -> Self:
        try:
            self._server, self.address = self._start_server()
            for number in range(self._count):
                name = f"worker-{number}"
                arguments = ("--server", self.address, "--name", name, "--base", str(self._base))
                self._workers.append(LocalProcess(name, self._logs, "paramserver.worker", *arguments))
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def wait_for_workers(self, client: Client) -> None:
        """Return once every worker has joined the server, so that a job starts with all of them.

        Raises:
            JobFailed: if the server or all workers die, or the workers take too long.
        """
        deadline = time.monotonic() + START_S
        while len(client.status().workers) < len(self._workers):
            self.check()
            if time.monotonic() > deadline:
                raise JobFailed(f"the workers have not joined within {START_S:g} s; see {self._logs}")
            time.sleep(_LOOK_S)

    def check(self) -> None:
        """Raise if the run can no longer go on: one worker is enough for that, but it takes the server.

        Raises:
            JobFailed: if the server has died, or every worker has.
        """
        if self._server is not None and not self._server.alive:
            raise JobFailed(self._server.epitaph())
        if self._workers and not any(worker.alive for worker in self._workers):
            raise JobFailed("\n".join(worker.epitaph() for worker in self._workers))

    def stop(self) -> None:
        """End the workers, then the server: politely first, by force when that takes too long or is interrupted."""
        servers = [self._server] if self._server is not None else []
        try:
            for group in (self._workers, servers):
                for member in group:
                    member.process.terminate()
                deadline = time.monotonic() + GRACE_S
                for member in group:
                    try:
                        member.process.wait(max(0.0, deadline - time.monotonic()))
                    except subprocess.TimeoutExpired:
                        member.process.kill()
        finally:
            members = (*self._workers, *servers)
            for member in members:
                member.process.kill()
            for member in members:
                member.process.wait()

    def _start_server(self) -> tuple[LocalProcess, str]:
        file = self._logs / "server.address"
        file.unlink(missing_ok=True)
        arguments = ("--listen", "127.0.0.1:0", "--address-file", str(file))
        server = self._server = LocalProcess("server", self._logs, "paramserver.server", *arguments)
        deadline = time.monotonic() + START_S
        while not file.exists():
            if time.monotonic() > deadline:
                raise JobFailed(f"the server has not started within {START_S:g} s; see {self._logs}")
            try:
                # Doubles as the pause between two looks, and ends at once if the server dies.
                server.process.wait(_LOOK_S)
            except subprocess.TimeoutExpired:
                continue
            raise JobFailed(server.epitaph())
        return server, file.read_text(encoding="utf-8").strip()
