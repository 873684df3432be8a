"""What a round costs at least: the same bytes over bare sockets, or through memory, with numpy's sums and no server.

The floor is no parameter server: nothing is named, checked, retried or told apart, and a process that dies hangs it.
"""

from __future__ import annotations

import multiprocessing
import os
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from paramserver.wire.connection import send_unpaced

Array = NDArray[Any]

#: Below this many elements threads cost more than they save.
SMALL = 100_000


class Floor(NamedTuple):
    """Seconds of every round, and CPU seconds of all processes together."""

    rounds_s: list[float]
    cpu_s: float


def over_sockets(size: int, workers: int, rounds: int, unpaced: bool = False) -> Floor:
    """Time rounds of float32 vectors over TCP loopback: workers send, numpy adds and applies, workers get θ.

    Sockets are as the system makes them, or `unpaced` as those of the server, see `send_unpaced`.
    """
    context = multiprocessing.get_context("spawn")
    with socket.create_server(("127.0.0.1", 0)) as listener, ThreadPoolExecutor(workers) as pool:
        port = listener.getsockname()[1]
        processes = [
            context.Process(target=_send_and_receive, args=(port, size, rounds, unpaced)) for _ in range(workers)
        ]
        for process in processes:
            process.start()
        streams = [_at_once(listener.accept()[0], unpaced) for _ in processes]
        before = time.process_time()
        gradients = [np.full(size, 0, np.float32) for _ in streams]
        theta, total = np.full(size, 0, np.float32), np.full(size, 0, np.float32)
        run = pool.map if size >= SMALL else map
        rounds_s = []
        for _ in range(rounds):
            started = time.perf_counter()
            list(run(_receive, streams, gradients))
            np.copyto(total, gradients[0])
            for gradient in gradients[1:]:
                np.add(total, gradient, out=total)
            np.multiply(total, 0.01 / workers, out=total)
            np.subtract(theta, total, out=theta)
            list(run(lambda stream: stream.sendall(theta.data), streams))
            rounds_s.append(time.perf_counter() - started)
        cpu_s = time.process_time() - before
        used = np.empty(1)
        for stream in streams:
            _receive(stream, used)
            cpu_s += float(used[0])
            stream.close()
        for process in processes:
            process.join()
    return Floor(rounds_s, cpu_s)


def through_memory(size: int, workers: int, rounds: int) -> Floor:
    """Time the copying of as many bytes as a round in shared memory touches: every gradient, θ read and written."""
    source, target = np.full(size, 1, np.float32), np.full(size, 0, np.float32)
    before, rounds_s = time.process_time(), []
    for _ in range(rounds):
        started = time.perf_counter()
        # One copy reads and writes a vector.
        for _ in range(workers // 2 + 1):
            np.copyto(target, source)
        rounds_s.append(time.perf_counter() - started)
    return Floor(rounds_s, time.process_time() - before)


def pulls_over_sockets(size: int, rounds: int) -> Floor:
    """Time a byte to another process over TCP loopback, and a float32 vector back."""
    context = multiprocessing.get_context("spawn")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        process = context.Process(target=_send_when_asked, args=(listener.getsockname()[1], size, rounds))
        process.start()
        with _at_once(listener.accept()[0]) as stream:
            theta, used, rounds_s = np.full(size, 0, np.float32), np.empty(1), []
            before = time.process_time()
            for _ in range(rounds):
                started = time.perf_counter()
                stream.sendall(b"?")
                _receive(stream, theta)
                rounds_s.append(time.perf_counter() - started)
            cpu_s = time.process_time() - before
            _receive(stream, used)
        process.join()
    return Floor(rounds_s, cpu_s + float(used[0]))


def pulls_through_memory(size: int, rounds: int) -> Floor:
    """Time the copying of a float32 vector."""
    source, target = np.full(size, 1, np.float32), np.full(size, 0, np.float32)
    before, rounds_s = time.process_time(), []
    for _ in range(rounds):
        started = time.perf_counter()
        np.copyto(target, source)
        rounds_s.append(time.perf_counter() - started)
    return Floor(rounds_s, time.process_time() - before)


def _send_when_asked(port: int, size: int, rounds: int) -> None:
    theta = np.full(size, 1, np.float32)
    with _at_once(socket.create_connection(("127.0.0.1", port))) as stream:
        before = time.process_time()
        for _ in range(rounds):
            stream.recv(1)
            stream.sendall(theta.data)
        stream.sendall(np.array([time.process_time() - before]).data)


def _send_and_receive(port: int, size: int, rounds: int, unpaced: bool) -> None:
    gradient, theta = np.full(size, 1e-3, np.float32), np.full(size, 0, np.float32)
    with _at_once(socket.create_connection(("127.0.0.1", port)), unpaced) as stream:
        # Starting Python is no part of a round.
        before = time.process_time()
        for _ in range(rounds):
            stream.sendall(gradient.data)
            _receive(stream, theta)
        stream.sendall(np.array([time.process_time() - before]).data)


def _receive(stream: socket.socket, into: Array) -> None:
    view, done = into.data.cast("B"), 0
    while done < len(view):
        count = stream.recv_into(view[done:])
        if not count:
            raise ConnectionError(f"process {os.getpid()}: the other side is gone")
        done += count


def _at_once(stream: socket.socket, unpaced: bool = False) -> socket.socket:
    """Have a socket send what it has."""
    stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if unpaced:
        send_unpaced(stream)
    return stream
