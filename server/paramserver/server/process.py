"""The server process: binds, serves, and ends cleanly on a signal."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
from collections.abc import Sequence
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1._async import HealthServicer
from grpc_reflection.v1alpha import reflection

from paramserver.server import control, partition, training
from paramserver.server.control import ControlService
from paramserver.server.coordinator import Coordinator
from paramserver.server.doorway import Doorway
from paramserver.server.following import Follower
from paramserver.server.partition import FollowerControl, PartitionService
from paramserver.server.place import ALONE, Place
from paramserver.server.shell import Shell
from paramserver.server.snapshots import StateDirectory
from paramserver.server.training import TrainingService
from paramserver.wire.errors import RequestError
from paramserver.wire.v1 import paramserver_pb2_grpc as rpc

log = logging.getLogger(__name__)

#: How long streams have to end after SIGTERM.
GRACE_S = 1.0

OPTIONS = (
    # Two servers must not share a port and take each other's workers.
    ("grpc.so_reuseport", 0),
    # A peer that vanished without a word (cable, power) is noticed by an unanswered ping.
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.http2.max_pings_without_data", 0),
    # Others ping as often, and may have nothing to hear for hours: they are idle, compute, or are told all by pipes.
    # gRPC would take the fourth ping without an answer of another kind for an attack and end the connection.
    ("grpc.http2.max_ping_strikes", 0),
    ("grpc.max_receive_message_length", 16 << 20),
)


def is_news(record: logging.LogRecord) -> bool:
    """Say whether what gRPC logs is worth a line: not that a server which stops cancels a stream that just began."""
    return record.exc_info is None or not isinstance(record.exc_info[1], asyncio.CancelledError)


async def serve(
    listen: str,
    address_file: Path | None = None,
    state: Path | None = None,
    place: Place = ALONE,
    peers: Sequence[str] = (),
    data_port: int = 0,
) -> None:
    """Serve at `listen` until SIGTERM or SIGINT; write the bound address to `address_file` once ready.

    With a `state` directory jobs are kept there, and the one found there goes on. Of several servers that share θ,
    `place` says which this one is, and to partition 0 `peers` where the others are. At `data_port` of the same host,
    any free one if it is 0, workers may connect for their messages; with a Unix socket they cannot.

    Raises:
        RequestError: if the address cannot be bound, or the state directory cannot be used.
    """
    logging.getLogger("grpc._cython.cygrpc").addFilter(is_news)
    server = grpc.aio.server(options=OPTIONS)
    # Before the state directory, which a server that cannot listen leaves as it is.
    port = _bind(server, listen)
    doorway = _open_doorway(listen, data_port)
    shell = make_shell(place, peers, None if state is None else StateDirectory(state))
    services = add_services(server, shell, doorway)
    health = HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(health, server)
    reflection.enable_server_reflection((*services, health_pb2.DESCRIPTOR.services_by_name["Health"].full_name), server)
    await server.start()
    for name in ("", *services):
        await health.set(name, health_pb2.HealthCheckResponse.SERVING)
    address = listen if listen.startswith("unix:") else f"{listen.rsplit(':', 1)[0]}:{port}"
    log.info("listening on %s", address)
    if address_file is not None:
        _write_atomically(address_file, address)
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    leading = asyncio.create_task(shell.lead()) if isinstance(shell, Coordinator) else None
    await _first(stopped, leading)
    log.info("stopping")
    await health.enter_graceful_shutdown()
    shell.end_streams()
    await server.stop(GRACE_S)
    if doorway is not None:
        doorway.close()
    await shell.close()
    if leading is not None:
        leading.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await leading
    # Calls that are over for gRPC may still be at their last words; who is cut short there fills the log with it.
    rest = asyncio.all_tasks() - {asyncio.current_task()}
    if rest:
        await asyncio.wait(rest, timeout=GRACE_S)
    if address_file is not None:
        with contextlib.suppress(FileNotFoundError):
            address_file.unlink()


def add_services(server: grpc.aio.Server, shell: Shell | Follower, doorway: Doorway | None = None) -> list[str]:
    """Have a gRPC server answer workers, clients and the coordinator from a shell; return the services' names."""
    server.add_generic_rpc_handlers((TrainingService(shell, doorway).handler(),))
    if not isinstance(shell, Follower):
        rpc.add_ControlServicer_to_server(ControlService(shell), server)  # type: ignore[no-untyped-call]
        return [training.SERVICE, control.SERVICE]
    rpc.add_ControlServicer_to_server(FollowerControl(shell), server)  # type: ignore[no-untyped-call]
    rpc.add_PartitionServicer_to_server(PartitionService(shell, doorway), server)  # type: ignore[no-untyped-call]
    return [training.SERVICE, control.SERVICE, partition.SERVICE]


def make_shell(place: Place, peers: Sequence[str], directory: StateDirectory | None) -> Shell | Follower:
    """Return what the services of a server share; `peers` are the other servers if it is to lead them."""
    if place.partition:
        return Follower(place, directory)
    return Coordinator(peers, directory) if peers else Shell(directory)


async def _first(stopped: asyncio.Event, leading: asyncio.Task[None] | None) -> None:
    """Wait for the signal to stop, or for the coordinator's work to fail, which it never should."""
    waiting = asyncio.create_task(stopped.wait())
    await asyncio.wait([waiting] if leading is None else [waiting, leading], return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()


def _bind(server: grpc.aio.Server, listen: str) -> int:
    """Have the server listen once it is started; return the port, which is 1 for a Unix socket."""
    host, _, port = listen.rpartition(":")
    if not host or listen == "unix:":
        raise RequestError(f"cannot listen on {listen}: allowed are 'host:port' and 'unix:PATH'")
    # gRPC would take a port modulo 65536, and then listen where nobody asked it to.
    if not listen.startswith("unix:") and not (port.isdecimal() and int(port) <= 65_535):
        raise RequestError(f"cannot listen on {listen}: a port is a number from 0 to 65535")
    try:
        return server.add_insecure_port(listen)
    except RuntimeError as error:
        raise RequestError(f"cannot listen on {listen}: the address is in use or not this machine's") from error


def _open_doorway(listen: str, port: int) -> Doorway | None:
    """Listen for workers' connections where gRPC listens; nobody depends on them unless a port was asked for."""
    if listen.startswith("unix:"):
        return None
    try:
        return Doorway.open(listen.rpartition(":")[0].removeprefix("[").removesuffix("]"), port)
    except RequestError as error:
        if port:
            raise
        log.warning("%s: messages go through gRPC alone", error)
        return None


def _write_atomically(path: Path, text: str) -> None:
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)
