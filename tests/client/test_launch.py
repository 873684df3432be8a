"""Real processes that must not outlive those who started them."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from paramserver.client import Client, Job, JobFailed, RequestError
from paramserver.client.launch import LocalCluster, check_counts

#: Would train for hours.
LONG = """
task.use = "linear_regression"
data.source = "builtin:linear"
train.steps = 100_000_000
"""


def pids_of(folder: Path) -> dict[str, list[int]]:
    """Return the servers and workers that were started with paths in `folder`."""
    found: dict[str, list[int]] = {"paramserver.server": [], "paramserver.worker": []}
    for entry in Path("/proc").iterdir():
        try:
            command = (entry / "cmdline").read_bytes().decode().split("\0") if entry.name.isdigit() else []
        except OSError:
            continue
        for module, pids in found.items():
            if module in command and any(part.startswith(str(folder)) for part in command):
                pids.append(int(entry.name))
    return found


def wait_until_gone(pids: list[int], timeout_s: float = 10.0) -> None:
    for pid in pids:
        try:
            descriptor = os.pidfd_open(pid)
        except ProcessLookupError:
            continue
        try:
            assert select.select([descriptor], [], [], timeout_s)[0], f"process {pid} is still there"
        finally:
            os.close(descriptor)


def start_training(folder: Path) -> tuple[subprocess.Popen[str], list[int]]:
    """Start `paramserver train` as a shell would, and return once it trains with a server and two workers."""
    (folder / "job.toml").write_text(LONG)
    command = [sys.executable, "-m", "paramserver.client.cli", "train", "job.toml", "--run", str(folder / "run")]
    parent = subprocess.Popen(command, cwd=folder, stderr=subprocess.PIPE, text=True, env=environment())
    assert parent.stderr is not None
    seen = []
    for line in parent.stderr:
        seen.append(line)
        if line.startswith("train"):
            break
    found = pids_of(folder)
    assert {module: len(pids) for module, pids in found.items()} == {
        "paramserver.server": 1,
        "paramserver.worker": 2,
    }, "".join(seen)
    return parent, [pid for pids in found.values() for pid in pids]


def train_with(folder: Path, workers: int, act: Callable[[], None]) -> None:
    """Run processes of this one's own, and act at every update once they train."""
    (folder / "job.toml").write_text(LONG)
    with LocalCluster(workers, folder, folder, restarts=0) as cluster, Client(cluster.address) as client:
        client.submit(Job.from_toml(folder / "job.toml"))
        for update in client.watch(cluster.check):
            if update.points:
                act()


def environment() -> dict[str, str]:
    """Let processes import what this one imports, installed or not."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", environment()["PYTHONPATH"])


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)])
def test_however_training_is_ended_no_process_is_left(tmp_path: Path, number: int, status: int) -> None:
    parent, children = start_training(tmp_path)
    parent.send_signal(number)
    _, errors = parent.communicate(timeout=20)
    assert parent.returncode == status
    assert "Traceback" not in errors
    if number == signal.SIGKILL:
        wait_until_gone(children)
    assert not any(pids_of(tmp_path).values())
    if number == signal.SIGINT:
        assert json.loads((tmp_path / "run" / "result.json").read_text())["status"] == "interrupted"


def test_children_do_not_hear_the_terminals_interrupt(tmp_path: Path) -> None:
    sessions: dict[int, int] = {}

    def note_and_stop() -> None:
        sessions.update((pid, os.getsid(pid)) for pids in pids_of(tmp_path).values() for pid in pids)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        train_with(tmp_path, 1, note_and_stop)
    assert len(sessions) == 2
    assert list(sessions) == list(sessions.values())


def test_an_exception_inside_leaves_no_process_not_even_a_stopped_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("paramserver.client.launch.GRACE_S", 0.2)

    def freeze_one_and_fail() -> None:
        os.kill(pids_of(tmp_path)["paramserver.worker"][0], signal.SIGSTOP)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        train_with(tmp_path, 2, freeze_one_and_fail)
    assert not any(pids_of(tmp_path).values())


@pytest.mark.parametrize(
    ("module", "message"),
    [
        ("paramserver.server", "server was killed by signal 9"),
        ("paramserver.worker", r"worker-0 was killed by signal 9"),
    ],
)
def test_a_run_without_its_server_or_without_any_worker_fails_with_the_log(
    tmp_path: Path, module: str, message: str
) -> None:

    def kill() -> None:
        for pid in pids_of(tmp_path)[module]:
            os.kill(pid, signal.SIGKILL)

    with pytest.raises(JobFailed, match=message) as caught:
        train_with(tmp_path, 2, kill)
    assert "INFO" in str(caught.value)


def test_a_server_that_does_not_start_fails_with_its_last_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("PYTHONNOUSERSITE", "1")
    (tmp_path / "sitecustomize.py").write_text("import sys; sys.exit('no fun today')")
    with pytest.raises(JobFailed, match=r"(?s)server ended with exit status 1.*no fun today"):
        LocalCluster(1, tmp_path, tmp_path).__enter__()


@pytest.mark.parametrize("workers", [0, -1])
def test_no_workers_are_a_wrong_request(workers: int) -> None:
    with pytest.raises(RequestError, match=f"workers is {workers}"):
        check_counts(workers)
