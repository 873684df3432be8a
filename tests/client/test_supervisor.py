"""Local processes that die are started again, within bounds and never silently."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import pytest

from paramserver.client.localprocess import LocalProcess
from paramserver.client.supervisor import Supervisor

DEADLINE_S = 30.0


@pytest.fixture
def sleeper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LocalProcess:
    """A process that says hello and waits to be killed."""
    (tmp_path / "sleeper.py").write_text("import time\nprint('hello', flush=True)\ntime.sleep(1000)\n")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), *(path for path in sys.path if path)]))
    return LocalProcess("sleeper", tmp_path, "sleeper")


def kill(member: LocalProcess) -> None:
    member.process.kill()
    member.process.wait(DEADLINE_S)


def revived(supervisor: Supervisor, member: LocalProcess) -> bool:
    """Ask until the process runs again; False if it is given up."""
    end = time.monotonic() + DEADLINE_S
    while supervisor.revive(member):
        if member.alive:
            return True
        assert time.monotonic() < end
    return False


def test_what_dies_is_started_again_a_bounded_number_of_times(
    tmp_path: Path, sleeper: LocalProcess, capsys: pytest.CaptureFixture[str]
) -> None:
    supervisor = Supervisor(tmp_path / "supervisor.log", restarts=2)
    pids = {sleeper.process.pid}
    for number in (1, 2):
        kill(sleeper)
        assert revived(supervisor, sleeper)
        pids.add(sleeper.process.pid)
        assert f"sleeper was killed by signal {signal.SIGKILL:d}; it is started again ({number} of 2)" in (
            capsys.readouterr().err
        )
    assert len(pids) == 3
    kill(sleeper)
    assert not revived(supervisor, sleeper)
    assert not sleeper.alive
    log = (tmp_path / "supervisor.log").read_text()
    assert log.count("it is started again") == 2


def test_what_lives_is_left_alone(tmp_path: Path, sleeper: LocalProcess) -> None:
    supervisor = Supervisor(tmp_path / "supervisor.log")
    pid = sleeper.process.pid
    assert supervisor.revive(sleeper)
    assert sleeper.process.pid == pid
    assert not (tmp_path / "supervisor.log").exists()
    kill(sleeper)
