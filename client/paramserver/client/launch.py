"""Servers and workers as processes of this machine, which end with whoever started them."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from paramserver.client.connection.client import Client
from paramserver.client.localprocess import LocalProcess
from paramserver.client.supervisor import MAX_RESTARTS, Supervisor
from paramserver.wire.errors import JobFailed, RequestError, nearest
from paramserver.worker.trainer import TRANSPORTS

#: A server has been started and answers well within this time, or something is wrong.
START_S = 30.0
#: After SIGTERM, what has not ended by then is killed.
GRACE_S = 5.0
#: Workers that take turns in transport.
MIXED = "mixed"

#: Pause between two looks at something that takes a moment.
_LOOK_S = 0.01


def check_transport(transport: str) -> None:
    """Refuse a transport that is none.

    Raises:
        RequestError: if it is not one of `TRANSPORTS`, and not `mixed` either.
    """
    if transport not in (*TRANSPORTS, MIXED):
        raise RequestError(
            f"transport is {transport!r}, allowed are {', '.join(TRANSPORTS)}{nearest(transport, TRANSPORTS)}"
        )


def check_counts(workers: int, servers: int = 1) -> None:
    """Refuse numbers of processes that make no sense.

    Raises:
        RequestError: below 1.
    """
    for name, count in (("workers", workers), ("servers", servers)):
        if count < 1:
            raise RequestError(f"{name} is {count}, allowed are 1 and more")


class LocalCluster:
    """A server, or several that share θ, and some workers; a context manager that leaves none behind.

    Args:
        workers: how many worker processes, 1 or more.
        logs: an existing directory for one log file per process.
        base: where relative paths of jobs start for the workers.
        state: where the server keeps its job, or each of several in a folder of its own within; with it, a server that
            dies is started again and goes on.
        restarts: how often each process is started again.
        transport: how tensors travel, one of `TRANSPORTS`, or `mixed` for workers that take turns in auto and stream.
        proxy_seed: put a `paramserver.client.proxy` with this seed between the server, of several the coordinator, and
            every other worker; where it is, all messages go through gRPC.
        servers: how many server processes; the job's `server.partitions` must be the same.

    Raises:
        RequestError: if there is no such transport.
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
        servers: int = 1,
    ) -> None:
        check_transport(transport)
        self._transport = transport
        self._partitions = servers
        self._proxy_seed = proxy_seed
        self._proxy: LocalProcess | None = None
        self._count, self._logs, self._base, self._state = workers, logs, base, state
        self._supervisor = Supervisor(logs / "supervisor.log", restarts)
        #: By partition, as far as they were started; the last partition first.
        self._servers: list[LocalProcess] = []
        self._workers: list[LocalProcess] = []
        #: Where the server, or the coordinator of several, listens; set on entry.
        self.address = ""

    def __enter__(self) -> Self:
        try:
            addresses: list[str] = []
            # The coordinator comes last, since it has to know where the others are.
            for partition in reversed(range(self._partitions)):
                addresses.insert(0, self._start_server(partition, addresses))
            self.address = addresses[0]
            through_proxy = addresses
            if self._proxy_seed is not None:
                through_proxy = [self._start_proxy(self._proxy_seed), *addresses[1:]]
            for number in range(self._count):
                name = f"worker-{number}"
                # Of two workers over the same transport, one.
                is_proxied = number % 4 in (0, 3)
                arguments = (
                    "--server",
                    ",".join(through_proxy if is_proxied else addresses),
                    "--name",
                    name,
                    "--base",
                    str(self._base),
                    "--transport",
                    ("auto", "stream")[number % 2] if self._transport == MIXED else self._transport,
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
        for server in self._servers:
            # A server that kept nothing would come back without the job.
            if not server.alive and not (self._state and self._supervisor.revive(server)):
                raise JobFailed(server.epitaph())
        if self._proxy is not None and not self._proxy.alive:
            raise JobFailed(self._proxy.epitaph())
        going_on = [self._supervisor.revive(worker) for worker in self._workers]
        if self._workers and not any(going_on):
            raise JobFailed("\n".join(worker.epitaph() for worker in self._workers))

    def pids(self) -> dict[str, int]:
        """Return the process ids of those that run, by name: `server` (of several `server-0`, …), `worker-0`, …"""
        members = (*reversed(self._servers), *self._workers)
        return {member.name: member.process.pid for member in members if member.alive}

    @property
    def proxy_pid(self) -> int | None:
        """The process id of the proxy, if there is one."""
        return None if self._proxy is None else self._proxy.process.pid

    def stop(self) -> None:
        """End the workers, then the server: politely first, by force when that takes too long or is interrupted.

        Of several servers the coordinator comes first, since what it saves in the end needs the others.
        """
        coordinator = self._servers[self._partitions - 1 :]
        first = [*coordinator, *([] if self._proxy is None else [self._proxy])]
        others = self._servers[: self._partitions - 1]
        try:
            for group in (self._workers, first, others):
                for member in group:
                    member.process.terminate()
                deadline = time.monotonic() + GRACE_S
                for member in group:
                    try:
                        member.process.wait(max(0.0, deadline - time.monotonic()))
                    except subprocess.TimeoutExpired:
                        member.process.kill()
        finally:
            members = (*self._workers, *first, *others)
            for member in members:
                member.process.kill()
            for member in members:
                member.process.wait()

    def _start_server(self, partition: int, others: list[str]) -> str:
        """Start a server and return its address; `others` are those of the partitions behind it."""
        state, name = self._state, "server"
        place: tuple[str, ...] = ()
        if self._partitions > 1:
            name = f"server-{partition}"
            place = ("--partition", f"{partition}/{self._partitions}")
            if partition == 0:
                place += ("--peers", ",".join(others))
            state = None if state is None else state / name
        file = self._logs / f"{name}.address"
        file.unlink(missing_ok=True)
        keep = place if state is None else (*place, "--state", str(state))
        arguments = ("--listen", "127.0.0.1:0", "--address-file", str(file), *keep)
        server = LocalProcess(name, self._logs, "paramserver.server", *arguments)
        self._servers.append(server)
        address = _wait_for_address(server, file)
        # Started again, it must be where the workers look for it.
        server.arguments = ("--listen", address, *keep)
        return address

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
