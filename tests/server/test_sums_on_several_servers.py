"""What depends on whole gradients, tensors or contributions: the bits of one server, over grid cuts and tiny parts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from paramserver.wire.job import Job
from paramserver.wire.layout import Array
from paramserver.worker.learner import Learner
from paramserver.worker.trainer import Gradient
from server.inprocess import at_once
from server.severalservers import train


class Wide:
    """A made-up loss over tensors that are cut between servers, and within one."""

    def init(self, rng: np.random.Generator, batch: Any) -> dict[str, Array]:  # noqa: ARG002
        return {"a": rng.normal(size=90_000).astype(np.float32), "b": rng.normal(size=(200, 700)).astype(np.float32)}

    def loss_and_grad(self, params: dict[str, Array], batch: Any) -> tuple[float, dict[str, Array]]:
        shift = np.float32(batch.x.mean())
        grad = {name: value * np.float32(0.1) + shift for name, value in params.items()}
        return float(sum(np.square(g[:9]).sum() for g in grad.values())), grad


FEATURES: list[dict[str, Any]] = [
    {"optimizer": {"name": "lars", "trust_coefficient": 0.1, "clip_norm": 20.0}},
    {"optimizer": {"name": "lamb", "weight_decay": 0.01}},
    {"train": {"aggregate": "krum", "byzantine": 1}},
    {"train": {"aggregate": "multi_krum", "clip_contribution": 20.0}, "stop": {"tolerance": 1e-9}},
    {"train": {"refuse_norm": 1e4, "clip_contribution": 25.0}},
]


def make_job(task: str, feature: dict[str, Any]) -> Job:
    sections = {
        "task": {"use": task, "options": {"hidden": [3]} if task == "mlp" else {}},
        "data": {"source": "conformance.models:points", "shards": 5, "batch_size": 8},
        "server": {"snapshot_every_s": 0.01},
    }
    base = {"steps": 4 if task != "mlp" else 8}
    return Job.from_dict(sections | feature | {"train": base | feature.get("train", {})})


@pytest.mark.parametrize("feature", FEATURES, ids=lambda f: str(next(iter(next(iter(f.values())).values()))))
def test_the_bits_are_those_of_one_server(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, feature: dict[str, Any]
) -> None:
    wide = make_job("server.test_sums_on_several_servers:Wide", feature)
    one = train(monkeypatch, wide, 1)
    assert train(monkeypatch, wide, 2) == one
    assert train(monkeypatch, wide, 3, shares=True) == one
    # A small θ is cut anywhere, and one of the servers is killed.
    small = make_job("mlp", feature)
    deeds = {3: lambda servers: servers.kill(1), 5: lambda servers: servers.kill_worker("a")}
    assert train(monkeypatch, small, 3, tmp_path, deeds) == train(monkeypatch, small, 1)


@pytest.mark.parametrize("count", [1, 3])
def test_what_is_too_long_as_a_whole_is_refused_and_changes_nothing(
    monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    """One worker sends contributions that are much too long."""

    async def hostile(
        learner: Learner, theta: dict[str, Array], shard: int, step: int, out: dict[str, Array]
    ) -> Gradient:
        right = await at_once(learner, theta, shard, step, out)
        return Gradient(right.loss, {name: 40 * g for name, g in right.arrays.items()}, right.samples, right.is_scaled)

    job = make_job("mlp", {"train": {"refuse_norm": 4.0}})
    expected = train(monkeypatch, job, 1)
    counted: list[dict[str, int]] = []

    def look(servers: Any) -> None:
        counted.append(dict(servers.coordinator.run.engine.rejected()))

    found = train(monkeypatch, job, count, deeds={8: look}, computes={"bad": hostile, "good": at_once})
    assert found == expected
    # So often it may; then its shards go to the other.
    assert counted[0]["norm"] == job.server.max_bad_pushes
