"""The client against a real gRPC server with scripted answers."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import grpc
import numpy as np
import pytest

from paramserver.client import Busy, Client, Job, JobFailed, NotReady, RequestError, Unreachable
from paramserver.wire.errors import ProtocolError
from paramserver.wire.layout import Layout
from paramserver.wire.v1 import paramserver_pb2 as pb

#: The scripted service of conftest.py and its address.
Control = tuple[Any, str]


def fails(code: grpc.StatusCode, details: str) -> Any:
    def answer(_request: Any, context: grpc.ServicerContext) -> Any:
        context.abort(code, details)

    return answer


def reply(state: str, *steps: int, job_id: str = "j1") -> pb.WatchReply:
    return pb.WatchReply(
        status=pb.StatusReply(job_id=job_id, state=state, clock=[max(steps, default=0)]),
        points=[pb.Point(step=step, loss=1 / step) for step in steps],
    )


def chunks(flat: np.ndarray, layout: Layout, size: int) -> Iterator[pb.PullReply]:
    for start in range(0, flat.size, size):
        yield pb.PullReply(
            layout=pb.Layout(tensors=layout.to_proto()) if start == 0 else None,
            dtype=layout.dtype.name,
            version=5,
            offset=start,
            payload=flat[start : start + size].tobytes(),
        )


def test_a_submission_is_repeated_under_the_same_id(control: Control, job: Job) -> None:
    service, address = control
    service.script["Submit"] = [
        fails(grpc.StatusCode.UNAVAILABLE, "restarting"),
        lambda request, _: pb.SubmitReply(job_id=request.job_id),
    ]
    with Client(address) as client:
        job_id = client.submit(job)
    assert [request.job_id for request in service.requests] == [job_id, job_id]
    assert Job.from_json(service.requests[0].job_json) == job


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (grpc.StatusCode.INVALID_ARGUMENT, RequestError),
        (grpc.StatusCode.ALREADY_EXISTS, Busy),
        (grpc.StatusCode.NOT_FOUND, NotReady),
    ],
)
def test_an_answer_that_is_an_error_is_not_repeated(
    control: Control, job: Job, code: grpc.StatusCode, kind: type[Exception]
) -> None:
    service, address = control
    service.script["Submit"] = [fails(code, "says the server")]
    with Client(address) as client, pytest.raises(kind, match="says the server"):
        client.submit(job)
    assert len(service.requests) == 1


def test_a_server_that_is_not_there_is_unreachable_within_the_deadline() -> None:
    start = time.monotonic()
    with Client("127.0.0.1:1", timeout_s=0.3) as client, pytest.raises(Unreachable, match=r"127\.0\.0\.1:1"):
        client.status()
    assert 0.25 < time.monotonic() - start < 2


def test_a_unix_socket_that_is_not_there_is_unreachable_too(tmp_path: Any) -> None:
    with Client(f"unix:{tmp_path}/x", timeout_s=0.2) as client, pytest.raises(Unreachable):
        client.status()


def test_a_server_that_hears_and_says_nothing_is_unreachable(control: Control) -> None:
    service, address = control

    def hang(_request: Any, _context: grpc.ServicerContext) -> Iterator[pb.WatchReply]:
        service.over.wait()
        yield from ()

    service.script.update(Watch=[hang], Pull=[hang], Status=[lambda *_: service.over.wait()])
    with Client(address, timeout_s=0.3) as client:
        with pytest.raises(Unreachable, match=r"within 0\.3 s"):
            list(client.watch())
        with pytest.raises(Unreachable, match=r"within 0\.3 s"):
            client.pull()
        with pytest.raises(Unreachable, match=r"within 0\.3 s"):
            client.status()


def test_a_watch_outlasts_broken_streams_and_gives_each_point_once(control: Control) -> None:
    service, address = control

    def broken(_request: Any, context: grpc.ServicerContext) -> Iterator[pb.WatchReply]:
        yield reply("train", 1, 2)
        yield reply("train", 3)
        context.abort(grpc.StatusCode.UNAVAILABLE, "killed")

    def silent(_request: Any, _context: grpc.ServicerContext) -> Iterator[pb.WatchReply]:
        yield reply("train", 4)
        service.over.wait()

    def ends(_request: Any, _context: grpc.ServicerContext) -> Iterator[pb.WatchReply]:
        # A server may repeat itself, and bring the rest of a long history after the end.
        yield reply("train", 4, 5)
        yield reply("done", 6)
        yield reply("done", 7, 8)

    service.script["Watch"] = [broken, silent, ends]
    checks: list[int] = []
    with Client(address, timeout_s=1.0) as client:
        updates = list(client.watch(check=lambda: checks.append(1)))
    assert [point.step for update in updates for point in update.points] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert [request.after_step for request in service.requests] == [0, 3, 4]
    assert updates[-1].status.state == "done"
    assert len(checks) == 6  # after each of four updates of the running job, and at each of two breaks


def test_a_server_that_has_the_job_may_be_away_for_longer_than_one_that_never_answered(control: Control) -> None:
    service, address = control

    def broken(_request: Any, context: grpc.ServicerContext) -> Iterator[pb.WatchReply]:
        yield reply("train", 1)
        context.abort(grpc.StatusCode.UNAVAILABLE, "killed")

    gone = fails(grpc.StatusCode.UNAVAILABLE, "starting")
    # With pauses of 0.025 s and more, doubled each time, so many attempts take longer than the 0.3 s of the client.
    service.script["Watch"] = [broken, *[gone] * 6, lambda *_: iter([reply("done", 2)])]
    with Client(address, timeout_s=0.3) as client:
        updates = list(client.watch(absent_s=60.0))
    assert updates[-1].status.state == "done"
    assert len(service.requests) == 8


def test_a_watch_ends_when_the_check_says_so(control: Control) -> None:
    service, address = control
    service.script["Watch"] = [fails(grpc.StatusCode.UNAVAILABLE, "gone")]

    def check() -> None:
        raise JobFailed("server was killed by signal 9")

    with Client(address) as client, pytest.raises(JobFailed, match="signal 9"):
        list(client.watch(check))


@pytest.mark.parametrize(
    "afterwards", [fails(grpc.StatusCode.NOT_FOUND, "no job"), lambda *_: iter([reply("train", 1, job_id="j2")])]
)
def test_a_server_that_comes_back_without_the_job_has_failed_it(control: Control, afterwards: Any) -> None:
    service, address = control

    def broken(_request: Any, context: grpc.ServicerContext) -> Iterator[pb.WatchReply]:
        yield reply("train", 1)
        context.abort(grpc.StatusCode.UNAVAILABLE, "killed")

    service.script["Watch"] = [broken, afterwards]
    with Client(address) as client, pytest.raises(JobFailed, match="came back without job j1"):
        list(client.watch())


def test_a_watch_without_a_job_is_not_ready(control: Control) -> None:
    service, address = control
    service.script["Watch"] = [fails(grpc.StatusCode.NOT_FOUND, "no job was submitted")]
    with Client(address) as client, pytest.raises(NotReady, match="no job was submitted"):
        list(client.watch())


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_parameters_larger_than_any_message_limit_come_whole(control: Control, dtype: str) -> None:
    service, address = control
    layout = Layout([("w", (1500, 1000)), ("b", ()), ("none", (0, 3))], dtype)
    flat = np.random.default_rng(0).standard_normal(layout.size).astype(dtype)

    def breaks(_request: Any, context: grpc.ServicerContext) -> Iterator[pb.PullReply]:
        yield next(chunks(flat, layout, 250_000))
        context.abort(grpc.StatusCode.UNAVAILABLE, "killed in mid-stream")

    service.script["Pull"] = [breaks, lambda *_: chunks(flat, layout, 250_000)]
    with Client(address) as client:
        theta, version = client.pull()
    assert version == 5
    assert {name: values.shape for name, values in theta.items()} == {"w": (1500, 1000), "b": (), "none": (0, 3)}
    assert all(values.dtype == dtype for values in theta.values())
    np.testing.assert_array_equal(theta["w"].ravel(), flat[:1_500_000])
    assert theta["b"] == flat[-1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda replies: replies[:-1], "end after 8 of 10 values"),
        (lambda replies: replies[::2], "starts at 8, expected 4"),
        (lambda replies: [*replies, replies[-1]], "starts at 8, expected 10"),
        (lambda replies: [pb.PullReply(dtype="object", layout=replies[0].layout)], "dtype 'object'"),
        (lambda _: [], "end after 0 of unknown"),
    ],
)
def test_parameters_that_are_not_whole_are_refused(control: Control, change: Any, message: str) -> None:
    service, address = control
    layout = Layout([("w", (10,))], "float64")
    service.script["Pull"] = [lambda *_: iter(change(list(chunks(np.arange(10.0), layout, 4))))]
    with Client(address) as client, pytest.raises(ProtocolError, match=message):
        client.pull()


def test_stop_gives_its_reason_and_returns_the_version(control: Control) -> None:
    service, address = control
    service.script["Stop"] = [lambda *_: pb.StopReply(version=12)]
    with Client(address) as client:
        assert client.stop("enough") == 12
    assert service.requests[0].reason == "enough"


def test_evaluating_standardises_the_test_data_like_the_training_data(control: Control) -> None:
    service, address = control
    job = Job.from_dict(
        {
            "task": {"use": "linear_regression"},
            "data": {"source": "builtin:linear", "test": "builtin:linear", "standardize": True},
            "train": {"dtype": "float64"},
        }
    )
    mean, variance, rows = 0.25, 4.0, 1000
    service.script["Status"] = [
        lambda *_: pb.StatusReply(
            job_id="j1",
            job_json=job.to_json(),
            census=pb.Census(rows=rows, features=1),
            moments=np.array([mean, variance * rows]).tobytes(),
        )
    ]
    layout = Layout([("w", (1,)), ("b", (1,))], "float64")
    service.script["Pull"] = [lambda *_: chunks(np.array([3.0, 0.5]), layout, 2)]
    with Client(address) as client:
        metrics = client.evaluate()

    random = np.random.RandomState(20)
    x = random.uniform(size=1000)
    y = 2 * x + 1 + 0.1 * random.standard_normal(1000)
    expected = np.sqrt(np.mean((3.0 * (x - mean) / 2.0 + 0.5 - y) ** 2))
    assert metrics["test_rmse"] == pytest.approx(expected, rel=1e-12)
    assert all(name.startswith("test_") for name in metrics)


def test_evaluating_a_job_without_test_data_is_refused(control: Control, status: pb.StatusReply) -> None:
    service, address = control
    service.script["Status"] = [lambda *_: status]
    with Client(address) as client, pytest.raises(RequestError, match=r"data\.test"):
        client.evaluate()
