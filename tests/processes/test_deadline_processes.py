"""How soon trouble with a real worker is noticed, what is said of it, and what it costs the server."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np

from paramserver.wire.v1 import paramserver_pb2 as pb
from processes.cluster import Cluster, Control, until
from processes.raw_worker import RawWorker
from processes.test_training_processes import data, job

#: Steps of 25 ms, which run beside the event loop; a process for which there is a file computes for ever.
STEADY = """
import os, time
from paramserver.worker.tasks.linear import LinearRegression

class Steady(LinearRegression):
    def loss_and_grad(self, params, batch):
        time.sleep(0.025)
        while os.path.exists(f"hang-{os.getpid()}"):
            time.sleep(0.01)
        return super().loss_and_grad(params, batch)
"""

#: θ of a million float32, and a gradient that does not depend on it.
WIDE = """
import numpy as np

class Wide:
    def init(self, rng, batch):
        return {"a": np.zeros(1_000_000, np.float32)}

    def loss_and_grad(self, params, batch):
        return 1.0, {"a": np.ones(1_000_000, np.float32)}
"""

#: How late a busy machine may be.
SLACK_S = 1.0


def steady(cluster: Cluster, **changes: Any) -> dict[str, Any]:
    data(cluster.folder)
    (cluster.folder / "steady.py").write_text(STEADY, encoding="utf-8")
    return job(**{"task__use": "steady.py:Steady", "server__lease_s": 60.0, "train__steps": 10**6, **changes})


def holders(status: pb.StatusReply) -> set[str]:
    return {shard.worker for shard in status.shards}


def seconds_until(control: Control, who: set[str]) -> float:
    began = time.monotonic()
    control.when(lambda status: holders(status) == who)
    return time.monotonic() - began


def test_a_local_worker_that_is_killed_is_noticed_within_a_second(cluster: Cluster) -> None:
    control = cluster.server()
    victim, _ = cluster.workers(control, "w0", "w1")
    control.submit(steady(cluster))
    control.when(lambda status: status.version > 3 and holders(status) == {"w0", "w1"})
    victim.kill()
    assert seconds_until(control, {"w1"}) < 1.0
    victim.wait()
    status = control.status()
    (left,) = status.left
    assert (left.name, left.state) == ("w0", "left")
    assert left.pushes > 0


def test_a_frozen_worker_is_noticed_after_three_heartbeats_that_fit_its_steps(cluster: Cluster) -> None:
    control = cluster.server()
    frozen, _ = cluster.workers(control, "w0", "w1")
    control.submit(steady(cluster))
    # The pace is measured every second and told with the next work; a lease would last a minute.
    control.when(lambda status: status.seconds > 2.5)
    os.kill(frozen.pid, signal.SIGSTOP)
    status = control.when(lambda status: any(w.then == "its lease ends if it stays silent" for w in status.waiting_for))
    (wait,) = {w.worker: w for w in status.waiting_for}.values()
    assert wait.worker == "w0"
    assert 0.5 <= wait.heard_s <= 1.5
    assert wait.due_s <= 1.5 - wait.heard_s + 0.01
    assert f"{wait.then}, in {wait.due_s:.1f} s" in wait.reason
    assert seconds_until(control, {"w1"}) < 1.5 + SLACK_S
    assert {w.name: w.state for w in control.status().workers} == {"w0": "silent", "w1": "ready"}
    os.kill(frozen.pid, signal.SIGCONT)
    # Another worker had the shard, and may have been through with the step.
    control.when(lambda status: status.rejected["fenced"] + status.rejected["duplicate"] >= 1)
    assert seconds_until(control, {"w0", "w1"}) < 10
    # Honest workers in their ordinary course are never taken for silent.
    epochs = {s.epoch for s in control.status().shards}
    version = control.status().version
    control.when(lambda status: status.version > version + 40)
    assert {s.epoch for s in control.status().shards} == epochs


def test_a_worker_that_computes_for_ever_is_replaced_and_the_bits_stay(cluster: Cluster) -> None:
    tables = steady(cluster, server__stuck_s=0.5, train__steps=60)
    control = cluster.server()
    cluster.workers(control, "alone")
    control.train(tables | {"task": {"use": "linear_regression"}})
    expected = control.bits()
    control = cluster.server()
    stuck, _ = cluster.workers(control, "w0", "w1")
    control.submit(tables)
    control.when(lambda status: status.version > 5)
    hang = Path(cluster.folder / f"hang-{stuck.pid}")
    hang.touch()
    # A busy machine may see it only after the other worker has made all steps.
    control.when(
        lambda status: (
            {w.name: w.state for w in status.workers}["w0"] == "stuck"
            and (holders(status) == {"w1"} or status.state == "done")
        )
    )
    assert control.finish().state == "done"
    assert control.bits() == expected
    hang.unlink()
    until(lambda: {w.name: w.state for w in control.status().workers}["w0"], "w0 to speak")


def rss_mb(pid: int) -> float:
    fields = Path(f"/proc/{pid}/status").read_text().split("VmRSS:")[1].split()
    return int(fields[0]) / 1000


def test_workers_that_read_nothing_cost_the_server_no_memory_and_hold_nobody_up(cluster: Cluster) -> None:
    """One is stopped, one asks again and again and never reads; θ is 4 MB, over the stream."""
    data(cluster.folder)
    (cluster.folder / "wide.py").write_text(WIDE, encoding="utf-8")
    control = cluster.server()
    workers = [cluster.worker(control, name, "--transport", "stream") for name in ("w0", "w1")]
    control.joined("w0", "w1")
    control.submit(
        job(
            task__use="wide.py:Wide",
            train__mode="async",
            train__dtype="float32",
            train__steps=10**6,
            data__shards=3,
            server__lease_s=3.0,
        )
    )
    control.when(lambda status: status.version > 100)
    before = rss_mb(control.process.pid)
    os.kill(workers[0].pid, signal.SIGSTOP)
    deaf = RawWorker(control, "deaf")
    for _ in range(200):
        deaf.send(pull=pb.PullWork())
    control.when(lambda status: holders(status) == {"w1"})
    version = control.status().version
    peak = 0.0
    for more in range(20, 401, 20):
        control.when(lambda status, v=version + more: status.version > v)
        peak = max(peak, rss_mb(control.process.pid))
    assert "deaf" not in {w.name for w in control.status().workers}, "its stream was ended"
    # The answers that may wait for it, one for the stopped worker, and what a round needs.
    assert peak - before < 8 * 4.0 + 10, f"{before:.0f} MB before, {peak:.0f} MB then"
    deaf.close()
    os.kill(workers[0].pid, signal.SIGCONT)
    assert seconds_until(control, {"w0", "w1"}) < 10


def held_by(pid: int) -> tuple[int, int]:
    """Return how many descriptors a process has open and how many segments of shared memory it maps."""
    maps = Path(f"/proc/{pid}/maps").read_text(encoding="utf-8")
    return len(os.listdir(f"/proc/{pid}/fd")), maps.count("/memfd:paramserver")


def test_workers_that_share_memory_and_are_killed_leave_nothing(cluster: Cluster) -> None:
    """`make leaks` does the same with 200 kills."""
    data(cluster.folder)
    shm = set(os.listdir("/dev/shm"))
    control = cluster.server()
    cluster.workers(control, "stays")
    control.submit(job(train__steps=10**6))
    control.when(lambda status: status.version > 10)
    before = held_by(control.process.pid)
    assert before[1] > 0, "memory is shared at all"
    for number in range(4):
        worker = cluster.worker(control, f"w{number}")
        pushed = {f"w{number}": True, "stays": True}
        control.when(lambda status, p=pushed: {w.name: w.pushes > 0 for w in status.workers} == p)
        worker.kill()
        worker.wait()
        control.when(lambda status: holders(status) == {"stays"})
    version = control.status().version
    control.when(lambda status: status.version > version + 10)
    # The slots of the one that stays may have been mapped anew.
    until(lambda: held_by(control.process.pid) <= before, "the server to let go of what the dead had shared")
    left = set(os.listdir("/dev/shm")) - shm
    # Semaphores are those of tests that run beside this one.
    assert not [name for name in left if not name.startswith("sem.")]


def test_a_second_worker_of_the_same_name_is_refused_and_the_first_works_on(cluster: Cluster) -> None:
    control = cluster.server()
    (first,) = cluster.workers(control, "twin")
    control.submit(steady(cluster))
    control.when(lambda status: status.version > 3)
    epochs = {s.epoch for s in control.status().shards}
    status, said = cluster.run(
        "worker", "--server", control.address, "--name", "twin", "--base", str(cluster.folder), "--connect-timeout", "1"
    )
    assert status == 1
    assert f"worker name 'twin' is taken by process {first.pid}" in said
    assert "give every worker a name of its own" in said
    assert {s.epoch for s in control.status().shards} == epochs, "the first was not disturbed"
    # When the first is dead its name is free at once, also for a process that has been waiting for it.
    second = cluster.worker(control, "twin")
    until(lambda: "is taken" in cluster.logs().rsplit("worker.log", 1)[1], "the second to be refused")
    first.kill()
    first.wait()
    control.when(lambda status: {w.pid for w in status.workers} == {second.pid})


def test_shards_of_every_size_and_more_workers_than_shards_end_with_the_same_bits(cluster: Cluster) -> None:
    """13 rows in 5 shards of 3 or 2, batches of 2, one epoch and a half; from none to seven workers and back."""
    rng = np.random.default_rng(3)
    np.savez(cluster.folder / "data.npz", x=rng.standard_normal((13, 2)), y=rng.standard_normal(13))
    (cluster.folder / "steady.py").write_text(STEADY, encoding="utf-8")
    tables = job(data__shards=5, data__batch_size=2, train__epochs=20.5)
    del tables["train"]["steps"]
    control = cluster.server()
    cluster.workers(control, "alone")
    control.train(tables)
    expected, steps = control.bits(), control.status().total_steps
    control = cluster.server()
    tables["task"]["use"] = "steady.py:Steady"
    control.submit(tables)
    status = control.status()
    assert (status.state, list(status.workers)) == ("survey", [])
    assert "waits for a worker to join; the job fails if none does, in 36" in status.waiting_for[0].reason
    workers = cluster.workers(control, *(f"w{n}" for n in range(7)))
    control.when(lambda status: status.version >= 3)
    for worker in workers:
        worker.terminate()
    for worker in workers:
        assert worker.wait(10) == 0
    status = control.status()
    assert (status.state, holders(status)) == ("train", {""})
    cluster.workers(control, "last")
    last = control.finish()
    assert (last.state, last.version, steps) == ("done", steps, 41)
    assert control.bits() == expected
