"""Runs on this machine that outlive the death of their processes, and of whoever started them."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from paramserver.client import Job, JobFailed, RequestError, Update, resume, train
from paramserver.client.chaos import Chaos, torment
from paramserver.client.launch import LocalCluster

SLOW = """
import time
from paramserver.worker.tasks.linear import LinearRegression

class Slow(LinearRegression):
    def loss_and_grad(self, params, batch):
        time.sleep(0.002)
        return super().loss_and_grad(params, batch)
"""

STEPS = 150


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path for path in sys.path if path))


@pytest.fixture
def job(tmp_path: Path) -> Job:
    (tmp_path / "slow.py").write_text(SLOW)
    return Job.from_dict(
        {
            "task": {"use": "slow.py:Slow"},
            "data": {"source": "builtin:linear", "batch_size": 8},
            "train": {"steps": STEPS},
            "server": {"snapshot_every_s": 0.05},
        }
    )


class Interrupted(Exception):
    """What ends the first attempt."""


def after(step: int, act: Callable[[], None]) -> Callable[[Update], None]:
    """Return a progress function that acts once, when the step is made."""
    acts = [act]

    def look(update: Update) -> None:
        if acts and update.points and update.points[-1].step >= step:
            acts.pop()()

    return look


def fail() -> None:
    raise Interrupted


def test_a_run_that_was_broken_off_goes_on_to_the_same_bits_and_the_whole_history(tmp_path: Path, job: Job) -> None:
    calm = train(job, 1, base=tmp_path, run=tmp_path / "calm")
    with pytest.raises(Interrupted):
        train(job, 2, base=tmp_path, run=tmp_path / "run", progress=after(40, fail))
    assert json.loads((tmp_path / "run" / "result.json").read_text())["status"] == "failed"
    steps: list[int] = []
    result = resume(tmp_path / "run", progress=lambda update: steps.extend(p.step for p in update.points))
    assert (result.status, result.steps) == ("done", STEPS)
    assert result.theta_sha256 == calm.theta_sha256
    assert [point.loss for point in result.history] == [point.loss for point in calm.history]
    lines = (tmp_path / "run" / "history.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == steps == list(range(1, STEPS + 1))
    # Finished, it gives its result once more.
    again = resume(tmp_path / "run", workers=1)
    assert again.theta_sha256 == calm.theta_sha256
    assert again.history == result.history


def test_a_server_that_dies_is_started_again_and_a_job_that_keeps_nothing_fails(tmp_path: Path, job: Job) -> None:
    clusters: list[LocalCluster] = []

    def kill_server() -> None:
        os.kill(clusters[-1].pids()["server"], signal.SIGKILL)

    result = train(
        job, 2, base=tmp_path, run=tmp_path / "run", progress=after(40, kill_server), started=clusters.append
    )
    assert (result.status, result.steps) == ("done", STEPS)
    assert (
        "server was killed by signal 9; it is started again"
        in (tmp_path / "run" / "logs" / "supervisor.log").read_text()
    )
    forgetful = job.model_copy(update={"server": job.server.model_copy(update={"durability": "none"})})
    with pytest.raises(JobFailed, match="server was killed by signal 9"):
        train(
            forgetful, 1, base=tmp_path, run=tmp_path / "no", progress=after(40, kill_server), started=clusters.append
        )


def test_chaos_passes_and_tells_what_it_did(tmp_path: Path, job: Job) -> None:
    told: list[str] = []
    # One worker, so that whatever happens to messages happens to its.
    verdict = torment(job, kills=4, seed=3, run=tmp_path / "run", base=tmp_path, workers=1, narrate=told.append)
    assert verdict.passed, verdict
    assert verdict.theta_sha256 == verdict.undisturbed_sha256 != ""
    assert sum(verdict.kills.values()) == 4
    assert sum("kill -9" in line for line in told) == 4
    assert verdict.freezes == sum("freeze" in line for line in told) > 0
    assert verdict.lost == sum("lose a push" in line for line in told)
    assert verdict.repeated == sum("twice" in line for line in told)
    assert verdict.lost + verdict.repeated > 0
    # What the proxy was asked for it did, but for what was still due when the job was done.
    did = (tmp_path / "run" / "disturbed" / "logs" / "proxy.log").read_text().splitlines()
    assert len([line for line in did if line.startswith(("lose", "repeat"))]) >= verdict.lost + verdict.repeated - 1


def test_the_seed_chooses_when_and_whom() -> None:
    def story(seed: int) -> list[str]:
        told: list[str] = []
        # No process has these ids, so nobody is harmed.
        pids = {"server": 2**22 + 1, "worker-0": 2**22 + 2, "worker-1": 2**22 + 3}
        chaos = Chaos(seed, 6, 100, told.append)
        for step in range(100):
            chaos.strike(step, pids)
        chaos.end()
        assert sum(chaos.kills.values()) == 6
        return told

    assert story(1) == story(1) != story(2)


def test_chaos_asks_for_a_job_that_can_survive(tmp_path: Path, job: Job) -> None:
    forgetful = job.model_copy(update={"server": job.server.model_copy(update={"durability": "none"})})
    with pytest.raises(RequestError, match="durability"):
        torment(forgetful, 1, 0, tmp_path / "run")
    with pytest.raises(RequestError, match="kills is 0"):
        torment(job, 0, 0, tmp_path / "run")


@pytest.mark.parametrize("missing", ["run", "job.json", "origin.json"])
def test_what_is_no_run_of_this_machine_cannot_go_on(tmp_path: Path, job: Job, missing: str) -> None:
    if missing != "run":
        (tmp_path / "run").mkdir()
    if missing == "origin.json":
        (tmp_path / "run" / "job.json").write_text(job.to_json())
    with pytest.raises(RequestError, match="holds no run of this machine"):
        resume(tmp_path / "run")
