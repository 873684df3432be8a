"""A proxy that loses and repeats messages changes nothing but the time that training takes."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from paramserver.client import Job, Update, train
from paramserver.client.launch import LocalCluster
from paramserver.client.proxy import LOSE, REPEAT, Faults, Lost
from paramserver.wire.framing import encode
from paramserver.wire.v1 import paramserver_pb2 as pb

HEARTBEAT = pb.WorkerMessage(heartbeat=pb.Heartbeat()).SerializeToString()
PUSH = pb.WorkerMessage(push=pb.Push(shard=1), payload=b"12345678").SerializeToString()
WORK = bytes(encode(pb.ServerMessage(work=pb.Work(version=3, last=True))))


def test_faults_hit_what_matters_once_each_and_the_seed_chooses_the_direction() -> None:
    def story(seed: int) -> list[str]:
        faults, told = Faults(seed), []
        for kind in (LOSE, REPEAT) * 4:
            faults.ask(kind)
        for _ in range(8):
            for direction, message in (("up", HEARTBEAT), ("up", PUSH), ("down", WORK)):
                try:
                    told.append(f"{direction} {faults.copies(direction, message)}")
                except Lost:
                    told.append(f"{direction} lost")
            assert told[-3] == "up 1", "a heartbeat is left alone"
        return told

    assert story(1) == story(1) != story(2)
    assert story(1).count("up lost") + story(1).count("down lost") == 4
    assert story(1).count("up 2") + story(1).count("down 2") == 4


#: θ of 2.4 MB is two chunks; steps are long enough for faults to hit many of them.
WIDE = """
import time
import numpy as np

class Wide:
    def init(self, rng, batch):
        return {"a": np.ones(600_000, np.float32)}

    def loss_and_grad(self, params, batch):
        time.sleep(0.002)
        return 1.0, {"a": params["a"] * np.float32(batch.y.mean())}
"""


def test_lost_and_repeated_messages_of_either_transport_leave_the_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path for path in sys.path if path))
    (tmp_path / "wide.py").write_text(WIDE)
    job = Job.from_dict(
        {
            "task": {"use": "wide.py:Wide"},
            "data": {"source": "builtin:linear", "batch_size": 8},
            "train": {"steps": 100},
        }
    )
    calm = train(job, 1, base=tmp_path, run=tmp_path / "calm")
    clusters: list[LocalCluster] = []
    asked: list[int] = []

    def disturb(update: Update) -> None:
        if update.points and clusters[0].proxy_pid is not None:
            kind = (LOSE, REPEAT, REPEAT)[len(asked) % 3]
            asked.append(kind)
            os.kill(clusters[0].proxy_pid, kind)

    found = train(
        job,
        2,
        base=tmp_path,
        run=tmp_path / "run",
        progress=disturb,
        started=clusters.append,
        transport="mixed",
        proxy_seed=4,
    )
    assert asked
    assert found.theta_sha256 == calm.theta_sha256
    logs = {path.name: path.read_text() for path in (tmp_path / "run" / "logs").glob("*.log")}
    assert "message" in logs["proxy.log"]
    assert not any("Traceback" in log for log in logs.values()), logs
    assert "failed" not in logs["server.log"]
