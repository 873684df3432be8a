"""A server and workers as processes of this machine, which end with whoever started them."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from paramserver.client.connection.client import Client
from paramserver.client.localprocess import LocalProcess
from paramserver.client.supervisor import MAX_RESTARTS, Supervisor
from paramserver.wire.errors import JobFailed, RequestError

#: A server has been started and answers well within this time, or something is wrong.
START_S = 30.0
#: After SIGTERM, what has not ended by then is killed.
GRACE_S = 5.0
#: Pause between two looks at something that takes a moment.
_LOOK_S = 0.01


def check_workers(workers: int) -> None:
    """Refuse a number of worker processes that makes no sense.

    Raises:
        RequestError: below 1.
    """
    if workers < 1:
        raise RequestError(f"workers is {workers}, allowed are 1 and more")


class LocalCluster:
    """One server and some workers; a context manager that starts them and leaves none behind.

    Args:
        workers: how many worker processes, 1 or more.
        logs: an existing directory for one log file per process.
        base: where relative paths of jobs start for the workers.
        state: where the server keeps its job; with it, a server that dies is started again and goes on.
        restarts: how often each process is started again.
        transport: `auto`, `stream` to keep tensors out of shared memory, or `mixed` for workers that take turns.
        proxy_seed: put a `paramserver.client.proxy` with this seed between the workers and the server.

    Raises:
        JobFailed: on entry, if the server does not start; the message holds the end of its log.
    """

    def __init__(
        self,
        workers: int,
        logs: Path,
        base: Path,
        state: Path | None = None,
        restarts: int = MAX_RESTARTS,
        transport: str = "auto",
        proxy_seed: int | None = None,
    ) -> None:
        self._transport = transport
        self._proxy_seed = proxy_seed
        self._proxy: LocalProcess | None = None
        self._count, self._logs, self._base, self._state = workers, logs, base, state
        self._supervisor = Supervisor(logs / "supervisor.log", restarts)
        self._server: LocalProcess | None = None
        self._workers: list[LocalProcess] = []
        #: Where the server listens; set on entry.
        self.address = ""

    def __enter__(self) -> Self:
        try:
            self._server, self.address = self._start_server()
            address = self.address if self._proxy_seed is None else self._start_proxy(self._proxy_seed)
            for number in range(self._count):
                name = f"worker-{number}"
                arguments = (
                    "--server",
                    address,
                    "--name",
                    name,
                    "--base",
                    str(self._base),
                    "--transport",
                    ("auto", "stream")[number % 2] if self._transport == "mixed" else self._transport,
                )
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
        """Start again what has died; to be called often.

        Raises:
            JobFailed: if the run can no longer go on: the server, or every worker, has died for good.
        """
        server = self._server
        # A server that kept nothing would come back without the job.
        if server is not None and not server.alive and not (self._state and self._supervisor.revive(server)):
            raise JobFailed(server.epitaph())
        if self._proxy is not None and not self._proxy.alive:
            raise JobFailed(self._proxy.epitaph())
        going_on = [self._supervisor.revive(worker) for worker in self._workers]
        if self._workers and not any(going_on):
            raise JobFailed("\n".join(worker.epitaph() for worker in self._workers))

    def pids(self) -> dict[str, int]:
        """Return the process ids of those that run, by name: `server`, `worker-0`, …"""
        members = [self._server, *self._workers] if self._server is not None else self._workers
        return {member.name: member.process.pid for member in members if member.alive}

    @property
    def proxy_pid(self) -> int | None:
        """The process id of the proxy, if there is one."""
        return None if self._proxy is None else self._proxy.process.pid

    def stop(self) -> None:
        """End the workers, then the server: politely first, by force when that takes too long or is interrupted."""
        servers = [process for process in (self._proxy, self._server) if process is not None]
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
        keep = () if self._state is None else ("--state", str(self._state))
        arguments = ("--listen", "127.0.0.1:0", "--address-file", str(file), *keep)
        server = self._server = LocalProcess("server", self._logs, "paramserver.server", *arguments)
        address = _wait_for_address(server, file)
        # Started again, it must be where the workers look for it.
        server.arguments = ("--listen", address, *keep)
        return server, address

    def _start_proxy(self, seed: int) -> str:
        file = self._logs / "proxy.address"
        file.unlink(missing_ok=True)
        arguments = ("--server", self.address, "--seed", str(seed), "--address-file", str(file))
        self._proxy = LocalProcess("proxy", self._logs, "paramserver.client.proxy", *arguments)
        return _wait_for_address(self._proxy, file)


def _wait_for_address(process: LocalProcess, file: Path) -> str:
    """Return what a process writes to a file once it listens."""
    deadline = time.monotonic() + START_S
    while not file.exists():
        if time.monotonic() > deadline:
            raise JobFailed(f"{process.name} has not started within {START_S:g} s; see {file.parent}")
        try:
            # Doubles as the pause between two looks, and ends at once if the process dies.
            process.process.wait(_LOOK_S)
        except subprocess.TimeoutExpired:
            continue
        raise JobFailed(process.epitaph())
    return file.read_text(encoding="utf-8").strip()
