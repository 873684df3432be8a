"""A worker that lies, against a real server: refused before θ changes, and the honest ones get the right bits."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import numpy as np
import pytest

from paramserver.wire.v1 import paramserver_pb2 as pb
from processes.cluster import Array, Cluster, Control, until
from processes.raw_worker import RawWorker

SIZE = 4
THETA = {"w": np.arange(3.0), "b": np.array([5.0])}


def job(**train: Any) -> dict[str, Any]:
    return {
        "task": {"use": "somebody:Elses"},
        "data": {"source": "nowhere", "shards": 2},
        "train": {"steps": 3, "dtype": "float64", "reduce": "sum"} | train,
        "optimizer": {"learning_rate": 0.5},
        "server": {"lease_s": 30.0},
    }


@pytest.fixture(scope="module")
def survivor(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Control]:
    """The one server that all of this happens to."""
    cluster = Cluster(tmp_path_factory.mktemp("hostile"))
    control = cluster.server()
    yield control
    assert control.process.poll() is None
    cluster.end()


@pytest.fixture
def control(survivor: Control) -> Iterator[Control]:
    """The server between two tests: nobody joined, no job running."""
    yield survivor
    if survivor.running():
        survivor.stub.Stop(pb.StopRequest(), timeout=10)


def gone(control: Control) -> None:
    until(lambda: not control.status().workers, "the workers to be gone")


@pytest.fixture
def join(control: Control) -> Iterator[Callable[[str], RawWorker]]:
    """Connect workers, and disconnect them at the end."""
    workers: list[RawWorker] = []

    def connect(name: str) -> RawWorker:
        workers.append(RawWorker(control, name))
        return workers[-1]

    yield connect
    for worker in workers:
        worker.close()
    gone(control)


def start(control: Control, join: Callable[[str], RawWorker], **train: Any) -> tuple[RawWorker, pb.Work]:
    """Submit a job and bring it to its first round, by one worker that holds both shards."""
    worker = join("raw")
    control.submit(job(**train))
    worker.expect("job")
    work, theta = worker.begin(2, THETA)
    assert np.frombuffer(theta).tolist() == [0, 1, 2, 5]
    assert [(a.shard, a.step) for a in work.assignments] == [(0, 0), (1, 0)] or train.get("mode") == "async"
    return worker, work


def gradient(shard: int, step: int, size: int = SIZE) -> Array:
    return np.linspace(0.1, 1.7, size) * (shard + 1) / (step + 3)


def honest(worker: RawWorker, control: Control, work: pb.Work, expect: Array) -> None:
    """Finish the job from the first round on and compare θ with what the rounds must have made of it."""
    while True:
        for which, a in enumerate(work.assignments):
            worker.push(work, which, gradient(a.shard, a.step, expect.size), pull=which == len(work.assignments) - 1)
        if work.assignments[0].step == 2:
            break
        work, _ = worker.work()
    assert worker.until("ended").ended.status == "done"
    for step in range(3):
        total = gradient(0, step, expect.size) + gradient(1, step, expect.size)
        expect = expect - 0.5 * total
    assert control.bits() == expect.tobytes()


def flat(theta: dict[str, Array]) -> Array:
    return np.concatenate([value.ravel() for value in theta.values()])


def test_a_worker_written_from_the_proto_alone_trains(control: Control, join: Callable[[str], RawWorker]) -> None:
    worker, work = start(control, join)
    honest(worker, control, work, flat(THETA))


#: Under what a lie is counted, if not as malformed.
COUNTED_AS = {
    "nan": "not_finite",
    "inf": "not_finite",
    "no samples": "numbers",
    "too many samples": "numbers",
    "loss nan": "numbers",
    "version of the future": "numbers",
    "shard that does not exist": "unknown_shard",
}

LIES: dict[str, tuple[dict[str, Any], Array, list[str]]] = {
    "nan": ({}, np.array([1.0, 2.0, 3.0, math.nan]), ["tensor 'b' holds nan at element 0"]),
    "inf": ({}, np.array([1.0, -math.inf, 3.0, 4.0]), ["tensor 'w' holds -inf at element 1"]),
    "too short": ({}, np.ones(SIZE - 1), ["3 values", "4 values at offset 0 are expected"]),
    "too long": ({}, np.ones(SIZE + 1), ["5 values", "leaves the vector of 4 values"]),
    "no whole values": ({}, np.ones(9, np.float32)[:7], ["28 bytes", "float64"]),
    "empty": ({}, np.ones(0), ["0 bytes"]),
    "offset beyond": ({"offset": 4}, np.ones(SIZE), ["offset 4"]),
    "offset huge": ({"offset": 2**64 - 1}, np.ones(SIZE), ["offset 18446744073709551615"]),
    "offset in the middle": ({"offset": 2}, np.ones(2), ["offset 2"]),
    "no samples": ({"samples": 0}, np.ones(SIZE), ["samples = 0"]),
    "too many samples": ({"samples": 2**64 - 1}, np.ones(SIZE), ["samples = 18446744073709551615"]),
    "loss nan": ({"loss": math.nan}, np.ones(SIZE), ["loss = nan"]),
    "version of the future": ({"version": 7}, np.ones(SIZE), ["version 7", "version 0"]),
    "shard that does not exist": ({"shard": 2}, np.ones(SIZE), ["shard 2 does not exist", "the job has 2"]),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_lie_is_refused_by_name_and_leaves_no_trace(
    control: Control, join: Callable[[str], RawWorker], lie: str
) -> None:
    change, values, said = LIES[lie]
    worker, work = start(control, join)
    before = control.bits()
    a = work.assignments[0]
    push = {"shard": a.shard, "epoch": a.epoch, "step": a.step, "version": work.version, "samples": 1, "loss": 0.5}
    worker.send(values.tobytes(), push=pb.Push(**(push | change)))
    refusal = worker.expect("refusal").refusal
    assert refusal.code == pb.Refusal.INVALID
    assert refusal.shard == change.get("shard", 0)
    for part in said:
        assert part in refusal.reason
    if "shard" not in change and not {"samples", "loss", "version"} & set(change):
        assert "worker raw, shard 0, step 0" in refusal.reason
    assert control.bits() == before
    status = control.status()
    counted = {COUNTED_AS.get(lie, "malformed"): 1}
    assert (list(status.clock), status.rejected, status.workers[0].reasons) == ([0, 0], counted, counted)
    worker.pull(held=0)
    work, _ = worker.work()
    honest(worker, control, work, flat(THETA))


def test_contributions_beyond_the_norm_bound_are_refused_and_in_the_end_their_worker(
    control: Control, join: Callable[[str], RawWorker]
) -> None:
    """The bound is on the mean over 10 examples: sums of norm 20 are within it, and of norm 20.1 are not."""
    giant = join("giant")
    control.submit(job(refuse_norm=2.0) | {"server": {"max_bad_pushes": 2, "lease_s": 30.0}})
    giant.expect("job")
    work, _ = giant.begin(2, THETA)
    worker = join("raw")
    before = control.bits()
    for number in (1, 2):
        giant.push(work, 0, np.full(SIZE, 10.05))
        refusal = giant.expect("refusal").refusal
        assert refusal.code == pb.Refusal.INVALID
        assert "the mean gradient has norm 2.01, refuse_norm is 2" in refusal.reason
        assert control.status().rejected == {"norm": number}
        if number == 1:
            giant.pull(held=0)
            work, _ = giant.work()
    assert control.bits() == before
    states = {w.name: w.state for w in control.status().workers}
    assert states["giant"].startswith("failed: 2 bad pushes, the last: push of worker giant, shard 1, step 0: the mean")
    giant.close()
    until(lambda: control.status().left, "the giant to be gone")
    (left,) = control.status().left
    assert (left.name, left.reasons) == ("giant", {"norm": 2})
    worker.expect("job")
    worker.pull()
    work, _ = worker.work()
    worker.push(work, 0, np.full(SIZE, 10.0), pull=False)
    assert control.status().rejected == {"norm": 2}


def test_contributions_in_one_message_count_one_by_one(control: Control, join: Callable[[str], RawWorker]) -> None:
    worker, work = start(control, join)
    worker.push_together(work, [gradient(0, 0), np.full(SIZE, math.nan)])
    refusal = worker.expect("refusal").refusal
    assert (refusal.code, refusal.shard) == (pb.Refusal.INVALID, work.assignments[1].shard)
    assert control.status().clock == [1, 0]
    work, _ = worker.work()
    worker.push_together(work, [gradient(1, 0)])
    for step in (1, 2):
        work, _ = worker.work()
        worker.push_together(work, [gradient(0, step), gradient(1, step)])
    assert worker.until("ended").ended.status == "done"
    expect = flat(THETA)
    for step in range(3):
        expect = expect - 0.5 * (gradient(0, step) + gradient(1, step))
    assert control.bits() == expect.tobytes()


def test_contributions_of_unequal_length_in_one_message_end_the_stream(
    control: Control, join: Callable[[str], RawWorker]
) -> None:
    worker, work = start(control, join)
    worker.push_together(work, [gradient(0, 0), np.ones(SIZE, np.uint8)[:3]])
    code, details = worker.status_code()
    assert code is grpc.StatusCode.FAILED_PRECONDITION
    assert "bytes for 2 contributions" in details


def test_two_contributions_of_one_shard_in_one_message_end_the_stream(
    control: Control, join: Callable[[str], RawWorker]
) -> None:
    worker, work = start(control, join)
    work.assignments[1].CopyFrom(work.assignments[0])
    worker.push_together(work, [gradient(0, 0), gradient(0, 0)])
    code, details = worker.status_code()
    assert code is grpc.StatusCode.FAILED_PRECONDITION
    assert "two contributions of one shard" in details
    assert list(control.status().clock) == [0, 0]


def test_a_push_for_a_step_twice_is_applied_once_and_answered_the_same(
    control: Control, join: Callable[[str], RawWorker]
) -> None:
    worker, work = start(control, join)
    worker.push(work, 0, gradient(0, 0))
    answers = []
    for _ in range(2):
        worker.push(work, 0, gradient(0, 0) * 100)
        answers.append(worker.expect("refusal").refusal)
    assert answers[0] == answers[1]
    assert answers[0].code == pb.Refusal.DUPLICATE
    worker.push(work, 1, gradient(1, 0), pull=True)
    work, _ = worker.work()
    for step in (1, 2):
        for which in (0, 1):
            worker.push(work, which, gradient(which, step), pull=which == 1)
        if step == 1:
            work, _ = worker.work()
    assert worker.until("ended").ended.status == "done"
    expect = flat(THETA)
    for step in range(3):
        expect = expect - 0.5 * (gradient(0, step) + gradient(1, step))
    assert control.bits() == expect.tobytes()


def test_a_push_ahead_of_the_barrier_is_refused(control: Control, join: Callable[[str], RawWorker]) -> None:
    worker, work = start(control, join)
    worker.push(work, 0, gradient(0, 0))
    worker.push(work, 0, gradient(0, 1), step=1)
    refusal = worker.expect("refusal").refusal
    assert (refusal.code, refusal.step) == (pb.Refusal.INVALID, 1)
    assert list(control.status().clock) == [1, 0]


def test_a_worker_whose_shard_was_taken_over_is_fenced(control: Control, join: Callable[[str], RawWorker]) -> None:
    zombie, old = start(control, join)
    # The same name on a new stream: everything of the old stream is void, and the old stream ends.
    heir = join("raw")
    assert zombie.status_code()[0] is grpc.StatusCode.UNAVAILABLE
    heir.expect("job")
    heir.pull()
    work, _ = heir.work()
    assert {a.epoch for a in work.assignments}.isdisjoint({a.epoch for a in old.assignments})
    heir.push(old, 0, gradient(0, 0) * 100)
    refusal = heir.expect("refusal").refusal
    assert refusal.code == pb.Refusal.FENCED
    assert f"epoch {work.assignments[0].epoch} belongs to raw" in refusal.reason
    honest(heir, control, work, flat(THETA))


def test_half_a_push_of_a_worker_that_died_does_not_count(control: Control, join: Callable[[str], RawWorker]) -> None:
    """θ of three chunks; in async mode nothing of a broken push may be left over."""
    size = 600_000
    worker = join("raw")
    control.submit(job(mode="async", steps=1) | {"data": {"source": "nowhere", "shards": 1}})
    worker.expect("job")
    work, _ = worker.begin(1, {"w": np.ones(size)})
    a = work.assignments[0]
    push = pb.Push(shard=0, epoch=a.epoch, step=0, version=0, samples=1, loss=0.5)
    worker.send(np.full(worker.chunk_bytes // 8, 9.0).tobytes(), push=push)
    until(lambda: control.status().bytes_received >= worker.chunk_bytes, "the first chunk to arrive")
    worker.close()
    gone(control)
    heir = join("heir")
    heir.expect("job")
    heir.pull()
    work, _ = heir.work()
    heir.push(work, 0, gradient(0, 0, size), pull=True)
    assert heir.until("ended").ended.status == "done"
    assert control.bits() == (np.ones(size) - 0.5 * gradient(0, 0, size)).tobytes()


@pytest.mark.parametrize("mode", ["sync", "async"])
@pytest.mark.parametrize("lie", ["nan in the last chunk", "last chunk too short", "offset skipped"])
def test_chunks_before_a_lie_are_taken_back(
    control: Control, join: Callable[[str], RawWorker], lie: str, mode: str
) -> None:
    size = 600_000
    worker = join("raw")
    control.submit(job(mode=mode, steps=1))
    worker.expect("job")
    work, _ = worker.begin(2, {"w": np.ones(size)})
    a = work.assignments[0]
    count = worker.chunk_bytes // 8
    push = {"shard": a.shard, "epoch": a.epoch, "step": 0, "version": 0, "samples": 1, "loss": 0.5}
    garbage = np.full(size, 1e6)
    worker.send(garbage[:count].tobytes(), push=pb.Push(**push))
    worker.send(garbage[:count].tobytes(), push=pb.Push(offset=count, **push))
    last = garbage[2 * count :].copy()
    last[-1] = math.nan if "nan" in lie else 0.0
    offset = 2 * count + (1 if lie == "offset skipped" else 0)
    worker.send(last[: -1 if lie != "nan in the last chunk" else None].tobytes(), push=pb.Push(offset=offset, **push))
    assert worker.expect("refusal").refusal.code == pb.Refusal.INVALID
    worker.pull(held=0)
    done = 0
    while done < 2:
        work, _ = worker.work()
        for which, a in enumerate(work.assignments):
            done += 1
            worker.push(work, which, gradient(a.shard, 0, size), pull=which == len(work.assignments) - 1)
    assert worker.until("ended").ended.status == "done"
    a, b = gradient(0, 0, size), gradient(1, 0, size)
    expect = np.ones(size) - 0.5 * (a + b) if mode == "sync" else np.ones(size) - 0.5 * a - 0.5 * b
    assert control.bits() == expect.tobytes()


def test_chunks_that_come_twice_count_once(control: Control, join: Callable[[str], RawWorker]) -> None:
    size = 600_000
    worker = join("raw")
    control.submit(job(steps=2) | {"data": {"source": "nowhere", "shards": 1}})
    worker.expect("job")
    work, _ = worker.begin(1, {"w": np.ones(size)})
    expect, count = np.ones(size), worker.chunk_bytes // 8
    for step in (0, 1):
        values = gradient(0, step, size)
        for start_ in (0, 0, count, count, 2 * count, 2 * count):
            fields = {"shard": 0, "epoch": work.assignments[0].epoch, "step": step, "version": step, "samples": 1}
            worker.send(values[start_ : start_ + count].tobytes(), push=pb.Push(offset=start_, loss=0.5, **fields))
        if step == 0:
            refusal = worker.expect("refusal").refusal
            assert (refusal.code, refusal.step) == (pb.Refusal.DUPLICATE, 0)
            worker.pull()
            work, _ = worker.work()
        expect = expect - 0.5 * values
    assert worker.until("ended").ended.status == "done"
    assert control.status().rejected == {"duplicate": 1}
    assert control.bits() == expect.tobytes()


def test_the_numbers_of_a_push_are_those_of_its_first_chunk(control: Control, join: Callable[[str], RawWorker]) -> None:
    size = 600_000
    worker = join("raw")
    control.submit(job(steps=1, reduce="mean") | {"data": {"source": "nowhere", "shards": 1}})
    worker.expect("job")
    work, _ = worker.begin(1, {"w": np.ones(size)})
    a = work.assignments[0]
    count = worker.chunk_bytes // 8
    values = gradient(0, 0, size)
    for start_, samples in ((0, 10), (count, 3), (2 * count, 1)):
        fields = {"shard": 0, "epoch": a.epoch, "step": 0, "version": 0, "loss": 0.5, "samples": samples}
        worker.send(values[start_ : start_ + count].tobytes(), push=pb.Push(offset=start_, **fields))
    assert worker.until("ended").ended.status == "done"
    np.testing.assert_allclose(control.theta()["w"], np.ones(size) - 0.5 * values / 10, rtol=1e-14)


def first_message(control: Control, message: bytes) -> tuple[grpc.StatusCode, str]:
    worker = RawWorker(control, "", pb.Join())
    worker.send_bytes(message)
    found = worker.status_code()
    worker.close()
    return found


@pytest.mark.parametrize(
    ("message", "said"),
    [
        (pb.WorkerMessage(pull=pb.PullWork()), "the first message must be join, not pull"),
        (pb.WorkerMessage(), "the first message must be join, not empty"),
        (pb.WorkerMessage(join=pb.Join(protocol=9, worker="x")), "protocol 9, this server speaks 1"),
        (pb.WorkerMessage(join=pb.Join(protocol=1)), "1 to 256 characters, this one 0"),
        (pb.WorkerMessage(join=pb.Join(protocol=1, worker="x" * 257)), "this one 257"),
        (b"\xff\xff\xff\xff", "is not a WorkerMessage"),
        (b"\x0a\xff\x01", "is not a WorkerMessage"),
    ],
)
def test_a_wrong_first_message_ends_the_stream_with_the_reason(
    control: Control, message: pb.WorkerMessage | bytes, said: str
) -> None:
    data = message if isinstance(message, bytes) else message.SerializeToString()
    code, details = first_message(control, data)
    assert code is grpc.StatusCode.FAILED_PRECONDITION
    assert said in details
    assert not control.status().workers


@pytest.mark.parametrize("data", [b"", b"\x0a\x02\x08\x01", b"\x7a\xff\xff\xff\xff\xff\x7f", b"\x13\x14\xff" * 9])
def test_garbage_in_mid_job_ends_only_its_own_stream(
    control: Control, join: Callable[[str], RawWorker], data: bytes
) -> None:
    honest_worker, work = start(control, join)
    liar = join("liar")
    liar.expect("job")
    liar.send_bytes(data)
    code, details = liar.status_code()
    assert code is grpc.StatusCode.FAILED_PRECONDITION, details
    honest(honest_worker, control, work, flat(THETA))


def test_a_survey_that_was_not_asked_for_changes_nothing(control: Control, join: Callable[[str], RawWorker]) -> None:
    worker, liar = join("honest"), join("liar")
    control.submit(job())
    liar.expect("job")
    worker.expect("job")
    worker.pull()
    work, _ = worker.work()
    (a,) = work.assignments
    # The liar says how the other's shard looks, and how one looks that does not exist.
    for shard in (a.shard, 77):
        liar.send(survey=pb.Survey(shard=shard, epoch=a.epoch, rows=7, features=1))
        assert liar.expect("refusal").refusal.shard == shard
    worker.send(survey=pb.Survey(shard=a.shard, epoch=a.epoch, rows=10, features=3, classes=2))
    until(lambda: control.status().shards[a.shard].rows == 10, "the survey")
    liar.send(survey=pb.Survey(shard=a.shard, epoch=a.epoch, rows=7, features=1))
    assert liar.expect("refusal").refusal.code == pb.Refusal.FENCED
    liar.pull()
    work, _ = liar.work()
    (b,) = work.assignments
    liar.send(survey=pb.Survey(shard=b.shard, epoch=b.epoch, rows=10, features=3, classes=2))
    census = until(lambda: control.status().state == "initialise" and control.status().census, "the census")
    assert (census.rows, census.features, census.classes) == (20, 3, 2)


def test_surveys_that_add_up_to_more_than_a_number_holds_do_not_hang_the_job(
    control: Control, join: Callable[[str], RawWorker]
) -> None:
    worker = join("raw")
    control.submit(job())
    worker.expect("job")
    worker.pull()
    work, _ = worker.work()
    for a in work.assignments:
        worker.send(survey=pb.Survey(shard=a.shard, epoch=a.epoch, rows=2**64 - 1, features=3))
    refusal = worker.expect("refusal").refusal
    assert refusal.code == pb.Refusal.INVALID
    assert str(2**64 - 1) in refusal.reason
    assert control.status().state == "survey"


LYING_LAYOUTS: dict[str, tuple[list[pb.Tensor], int, str]] = {
    "no tensors": ([], 1, "no elements"),
    "twice": ([pb.Tensor(name="w", shape=[1])] * 2, 2, "'w' is declared twice"),
    "no name": ([pb.Tensor(shape=[1])], 1, "0 characters"),
    "nine dimensions": ([pb.Tensor(name="w", shape=[1] * 9)], 1, "up to 8 dimensions"),
    "larger than any memory": ([pb.Tensor(name="w", shape=[2**63, 2**63])], 1, "1099511627776"),
    "a shape that numpy cannot make": (
        [pb.Tensor(name="w", shape=[1]), pb.Tensor(name="v", shape=[2**63, 0])],
        1,
        "'v' has shape (9223372036854775808, 0)",
    ),
    "fewer elements than bytes": ([pb.Tensor(name="w", shape=[1])], 2, "2 values at offset 0 leaves"),
    "not finite": ([pb.Tensor(name="w", shape=[1])], -1, "'w' holds nan"),
}


@pytest.mark.parametrize("lie", LYING_LAYOUTS)
def test_initial_parameters_that_lie_fail_the_worker_with_the_reason(
    control: Control, join: Callable[[str], RawWorker], lie: str
) -> None:
    tensors, count, said = LYING_LAYOUTS[lie]
    worker = join("raw")
    control.submit(job())
    worker.expect("job")
    worker.pull()
    work, _ = worker.work()
    for a in work.assignments:
        worker.send(survey=pb.Survey(shard=a.shard, epoch=a.epoch, rows=10, features=3))
    worker.pull()
    work, _ = worker.work()
    values = np.ones(count) if count > 0 else np.full(-count, math.nan)
    initial = pb.Initial(shard=0, epoch=work.assignments[0].epoch, tensors=tensors)
    worker.send(values.tobytes(), initial=initial)
    ended = worker.until("ended").ended
    assert ended.status == "failed"
    assert "worker raw" in ended.reason
    assert said in ended.reason
    # The server goes on.
    control.submit(job())
    worker.expect("job")
    work, _ = worker.begin(2, THETA)
    honest(worker, control, work, flat(THETA))


def test_what_a_worker_still_sends_for_the_job_before_is_not_taken_for_the_next(
    control: Control, join: Callable[[str], RawWorker]
) -> None:
    worker, old = start(control, join)
    control.stub.Stop(pb.StopRequest(), timeout=10)
    control.submit(job(seed=1))
    # The worker was computing, and has not heard of any of this.
    worker.push(old, 0, gradient(0, 0))
    worker.push(old, 1, gradient(1, 0), pull=True)
    # All of it is passed over, the pull too: nothing counts until a pull names the new job.
    kinds = [worker.receive().WhichOneof("kind") for _ in range(2)]
    assert kinds == ["ended", "job"]
    worker.pull()
    work, _ = worker.work()
    assert [a.kind for a in work.assignments] == [pb.Assignment.SURVEY] * 2
    # One pull, one answer: a second would have everything computed twice from here on.
    for a in work.assignments:
        worker.send(survey=pb.Survey(shard=a.shard, epoch=a.epoch, rows=10, features=3))
    worker.pull()
    work, _ = worker.work()
    assert [a.kind for a in work.assignments] == [pb.Assignment.INITIAL]


def test_silence_is_noticed_again_after_everybody_was_silent(
    control: Control, join: Callable[[str], RawWorker]
) -> None:
    """As when the server itself, or the whole machine, stood still for longer than a lease."""
    join("a")
    worker = join("b")
    control.submit(job() | {"server": {"lease_s": 0.2}})
    for _ in range(2):
        until(lambda: {w.state for w in control.status().workers} == {"silent"}, "silence")
        worker.send(heartbeat=pb.Heartbeat())
        status = until(
            lambda: (s := control.status()) and {w.state for w in s.workers} != {"silent"} and s, "b to wake"
        )
        assert {s.worker for s in status.shards} == {"b"}


def rejected(control: Control, text: str) -> str:
    with pytest.raises(grpc.RpcError) as caught:
        control.stub.Submit(pb.SubmitRequest(job_id="x", job_json=text), timeout=10)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT, caught.value
    assert not control.running()
    return str(caught.value.details())


def test_a_wrong_job_is_refused_at_submission_and_nothing_is_started(control: Control) -> None:
    tables = job()
    assert "'float16'" in rejected(control, json.dumps(tables | {"train": {"dtype": "float16"}}))
    assert "did you mean 'shards'?" in rejected(control, json.dumps(tables | {"data": {"source": "a", "shard": 1}}))
    assert "not valid JSON" in rejected(control, "{")
    assert "not valid JSON" in rejected(control, "[" * 100_000)
    assert "not valid JSON" in rejected(control, '{"data": ' + "1" * 5_000 + "}")
    assert "'train.steps'" in rejected(control, json.dumps(tables | {"train": {"steps": 2**70}}))
    assert "'train.epochs'" in rejected(control, json.dumps(tables | {"train": {"epochs": 1e300}}))
    surrogate = json.dumps(tables | {"task": {"use": "a", "options": {"name": "\ud800"}}})
    assert "task.options" in rejected(control, surrogate)


def test_a_second_job_is_refused_while_one_runs_and_the_same_one_is_not(
    control: Control, join: Callable[[str], RawWorker]
) -> None:
    join("raw")
    control.submit(job(), job_id="first")
    control.submit(job(), job_id="first")
    with pytest.raises(grpc.RpcError) as caught:
        control.submit(job(), job_id="second")
    assert caught.value.code() is grpc.StatusCode.ALREADY_EXISTS
    assert "first" in caught.value.details()
    with pytest.raises(grpc.RpcError) as caught:
        control.theta()
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
