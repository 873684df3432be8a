"""The processes themselves: exit statuses, messages, health check and reflection."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import time
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from paramserver.server.process import is_news
from paramserver.wire.v1 import paramserver_pb2 as pb
from paramserver.worker.__main__ import main
from paramserver.worker.trainer import Identity, Trainer
from processes.cluster import Cluster, Control


def test_health_check_and_reflection_answer(cluster: Cluster) -> None:
    control = cluster.server()
    health = health_pb2_grpc.HealthStub(control.channel)
    for service in ("", "paramserver.wire.v1.Training", "paramserver.wire.v1.Control"):
        reply = health.Check(health_pb2.HealthCheckRequest(service=service), timeout=10)
        assert reply.status == health_pb2.HealthCheckResponse.SERVING
    stub = reflection_pb2_grpc.ServerReflectionStub(control.channel)
    requests = [
        reflection_pb2.ServerReflectionRequest(list_services=""),
        reflection_pb2.ServerReflectionRequest(file_containing_symbol="paramserver.wire.v1.Training"),
    ]
    services, file = stub.ServerReflectionInfo(iter(requests), timeout=10)
    names = {service.name for service in services.list_services_response.service}
    assert {"paramserver.wire.v1.Training", "paramserver.wire.v1.Control", "grpc.health.v1.Health"} <= names
    assert pb.DESCRIPTOR.serialized_pb in file.file_descriptor_response.file_descriptor_proto


def test_a_peer_may_ping_as_often_as_it_likes(cluster: Cluster) -> None:
    """Workers ping every ten seconds, and may have nothing else to say or hear for hours."""
    ping, settings, goaway = 6, 4, 7
    host, port = cluster.server().address.rsplit(":", 1)
    with socket.create_connection((host, int(port)), timeout=10) as connection, connection.makefile("rb") as frames:
        connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(settings))
        answered = 0
        for number in range(10):
            connection.sendall(frame(ping, number.to_bytes(8, "big")))
            while answered <= number:
                head = frames.read(9)
                kind, payload = head[3], frames.read(int.from_bytes(head[:3], "big"))
                assert kind != goaway, payload
                answered += kind == ping and head[4] == 1 and payload == number.to_bytes(8, "big")


def frame(kind: int, payload: bytes = b"") -> bytes:
    """Return an HTTP/2 frame of the whole connection."""
    return len(payload).to_bytes(3, "big") + bytes([kind, 0]) + bytes(4) + payload


def test_a_port_in_use_ends_with_status_2_says_so_and_leaves_nothing(cluster: Cluster) -> None:
    control = cluster.server()
    state = cluster.folder / "not-begun"
    status, said = cluster.run("server", "--listen", control.address, "--state", str(state))
    assert status == 2
    assert not state.exists()
    assert f"error: cannot listen on {control.address}" in said
    assert "in use" in said


@pytest.mark.parametrize(
    ("address", "why"),
    [
        ("nonsense", "allowed are 'host:port' and 'unix:PATH'"),
        ("127.0.0.1:99999", "a port is a number from 0 to 65535"),
    ],
)
def test_an_address_that_is_none_ends_with_status_2(cluster: Cluster, address: str, why: str) -> None:
    status, said = cluster.run("server", "--listen", address)
    assert status == 2
    assert f"error: cannot listen on {address}: {why}" in said


def test_a_worker_without_a_server_ends_with_status_3_within_its_deadline(cluster: Cluster) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{nobody.getsockname()[1]}"
        started = time.monotonic()
        status, said = cluster.run("worker", "--server", address, "--connect-timeout", "0.5")
    assert status == 3
    assert f"error: no server answers at {address} for 0.5 s" in said
    assert time.monotonic() - started < 10


@pytest.mark.parametrize("shards", ["x", "-1", "pinned:", "1,,2"])
def test_a_wrong_shard_list_is_refused_with_what_is_allowed(shards: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main([f"--shards={shards}"])
    assert caught.value.code == 2
    assert f"'{shards}' is not auto, a list of shards such as 0,1, or pinned:3" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "accepts", "pinned"), [("auto", (), ()), ("0,2", (0, 2), ()), ("pinned:3,1", (3, 1), (3, 1))]
)
def test_a_shard_list_says_what_can_be_read_and_what_must_not_move(
    text: str, accepts: tuple[int, ...], pinned: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[Identity] = []

    async def note(_servers: Any, trainer: Trainer, _timeout: float) -> None:
        told.append(trainer._identity)

    monkeypatch.setattr("paramserver.worker.__main__.work_until_signalled", note)
    monkeypatch.setattr("paramserver.worker.__main__.keep_freed_memory", lambda: None)
    assert main(["--shards", text]) == 0
    assert [(identity.accepts, identity.pinned) for identity in told] == [(accepts, pinned)]


def test_that_a_stream_was_cancelled_is_no_news_and_all_else_that_grpc_logs_is(
    caplog: pytest.LogCaptureFixture,
) -> None:
    logger = logging.getLogger("grpc._cython.cygrpc.test")
    logger.addFilter(is_news)
    logger.error("a line")
    for error in (asyncio.CancelledError(), ValueError("a bug")):
        try:
            raise error
        except BaseException:
            logger.exception("not handled")
    assert [record.exc_info and record.exc_info[0] for record in caplog.records] == [None, ValueError]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_server_ends_on_a_signal_and_takes_its_address_file_along(cluster: Cluster, number: int) -> None:
    control = cluster.server()
    cluster.workers(control, "w0")
    control.process.send_signal(number)
    assert control.process.wait(10) == 0
    assert not list(cluster.folder.glob("address-*"))


def code_of(control: Control, call: str, request: object) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.RpcError) as caught:
        list(getattr(control.stub, call)(request, timeout=10))
    return caught.value.code(), caught.value.details()


def test_without_a_job_clients_are_told_so(cluster: Cluster) -> None:
    control = cluster.server()
    assert control.status().state == "idle"
    assert code_of(control, "Watch", pb.WatchRequest()) == (grpc.StatusCode.NOT_FOUND, "no job was submitted")
    assert code_of(control, "Pull", pb.PullRequest()) == (grpc.StatusCode.NOT_FOUND, "no job was submitted")
    assert code_of(control, "Stop", pb.StopRequest()) == (grpc.StatusCode.NOT_FOUND, "no job is running")
