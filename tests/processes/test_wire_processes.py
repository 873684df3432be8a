"""Codecs between real processes: bytes on the wire, what kills lose, and values beyond their range."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import numpy as np

from processes.cluster import Cluster

ROWS = 120


def job(folder: Path, wire: dict[str, Any], task: str = "softmax_regression", **train: Any) -> dict[str, Any]:
    rng = np.random.default_rng(3)
    x = rng.normal(size=(ROWS, 20))
    np.savez(folder / "data.npz", x=x, y=np.argmax(x[:, :4] + 0.1 * rng.normal(size=(ROWS, 4)), axis=1))
    return {
        "task": {"use": task},
        "data": {"source": "data.npz", "shards": 4, "batch_size": 10},
        "train": {"steps": 30, **train},
        "optimizer": {"learning_rate": 0.2},
        "wire": wire,
    }


def test_a_codec_halves_the_bytes_of_its_direction_and_changes_the_bits(cluster: Cluster) -> None:
    control = cluster.server()
    cluster.worker(control, "stream", "--transport", "stream")
    control.joined("stream")
    for wire in ({"push": "fp16"}, {"pull": "bf16"}):
        asked = job(cluster.folder, wire)
        last = control.train(asked)
        bits = control.bits()
        size = len(bits) // 4
        expected = {key: size * (2 if key in wire else 4) * 30 for key in ("push", "pull")}
        assert last.bytes_received == 4 * expected["push"]
        assert last.bytes_sent == expected["pull"]
    del asked["wire"]
    control.train(asked)
    assert control.bits() != bits


SLOW = """
import time
from paramserver.worker.tasks.linear import SoftmaxRegression

class Slow(SoftmaxRegression):
    def loss_and_grad(self, params, batch):
        time.sleep(0.003)
        return super().loss_and_grad(params, batch)
"""


def test_what_a_killed_worker_had_kept_back_does_not_show(cluster: Cluster) -> None:
    wire = {"push": "topk", "density": 0.05, "momentum": 0.9, "exact_every": 16}
    (cluster.folder / "slow.py").write_text(SLOW, encoding="utf-8")
    asked = job(cluster.folder, wire, "slow.py:Slow", steps=60)
    control = cluster.server()
    workers = {"shared": cluster.worker(control, "shared")}
    control.joined("shared")
    control.train(asked)
    bits = control.bits()
    workers["stream"] = cluster.worker(control, "stream", "--transport", "stream")
    control.joined("stream")
    control.submit(asked)
    # In the middle of a window, so that something is lost: then the job is taken back to the window's beginning.
    for version, victim in ((20, "shared"), (42, "stream")):
        reached = control.when(lambda status, version=version: status.version >= version and status.version % 16 < 12)
        workers[victim].send_signal(signal.SIGKILL)
        workers[victim].wait()
        workers[victim] = cluster.worker(control, f"{victim}-again")
        control.joined(f"{victim}-again")
        assert reached.state == "train"
    last = control.finish()
    assert (last.state, last.version) == ("done", 60)
    assert control.bits() == bits


def test_a_gradient_beyond_fp16_fails_the_job_and_says_where(cluster: Cluster) -> None:
    (cluster.folder / "large.py").write_text(
        "import numpy as np\n"
        "class Large:\n"
        "    def init(self, rng, batch):\n"
        "        return {'a': np.zeros(2, np.float32), 'w': np.zeros((3, 4), np.float32)}\n"
        "    def loss_and_grad(self, params, batch):\n"
        "        gradient = {name: np.ones_like(value) for name, value in params.items()}\n"
        "        gradient['w'][2, 1] = 7000\n"
        "        return 1.0, gradient\n",
        encoding="utf-8",
    )
    control = cluster.server()
    cluster.workers(control, "w")
    control.submit(job(cluster.folder, {"push": "fp16"}, "large.py:Large"))
    last = control.finish()
    assert last.state == "failed"
    assert "sum over the batch is 70000 at element 9 of 'w', beyond what wire.push = 'fp16' can hold" in last.reason


ONCE = """
from pathlib import Path
import numpy as np

class Once:
    def init(self, rng, batch):
        return {"w": np.zeros(1_200_000, np.float32)}

    def loss_and_grad(self, params, batch):
        gradient = np.ones_like(params["w"])
        try:
            Path(__file__).with_name("once").unlink()
        except FileNotFoundError:
            return 1.0, {"w": gradient}
        gradient[-7] = 1e6
        return 1.0, {"w": gradient}
"""


def test_half_a_push_that_goes_no_further_leaves_no_trace(cluster: Cluster) -> None:
    """What cannot be encoded is in the third chunk; the first ones are with the server already."""
    (cluster.folder / "once.py").write_text(ONCE, encoding="utf-8")
    (cluster.folder / "once").touch()
    control = cluster.server()
    for name in ("one", "other"):
        cluster.worker(control, name, "--transport", "stream")
    control.joined("one", "other")
    control.submit(job(cluster.folder, {"push": "fp16"}, "once.py:Once", steps=5))
    last = control.finish()
    assert (last.state, last.version) == ("done", 5)
    assert "1e+07 at element 1199993 of 'w', beyond what wire.push = 'fp16' can hold" in cluster.logs()
    assert np.unique(control.theta()["w"]).size == 1
    np.testing.assert_allclose(control.theta()["w"][0], -1.0, rtol=1e-5)


def test_parameters_beyond_fp16_fail_the_job_and_say_where(cluster: Cluster) -> None:
    (cluster.folder / "grow.py").write_text(
        "import numpy as np\n"
        "class Grow:\n"
        "    def init(self, rng, batch):\n"
        "        return {'w': np.full(5, 65000, np.float32)}\n"
        "    def loss_and_grad(self, params, batch):\n"
        "        return 1.0, {'w': np.array([0, 0, 0, -1000, 0], np.float32)}\n",
        encoding="utf-8",
    )
    control = cluster.server()
    for arguments in ((), ("--transport", "stream")):
        worker = cluster.worker(control, "w", *arguments)
        control.joined("w")
        control.submit(job(cluster.folder, {"pull": "fp16"}, "grow.py:Grow"))
        last = control.finish()
        assert last.state == "failed"
        assert "parameter 'w' is at element 3 beyond what wire.pull can hold" in last.reason
        worker.terminate()
        worker.wait()
