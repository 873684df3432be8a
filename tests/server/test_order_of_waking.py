"""Workers that would take the core from the server are the last to be told."""

from __future__ import annotations

from contextvars import ContextVar
from typing import Any

import pytest

from paramserver.server import run
from paramserver.server.session import Session
from paramserver.wire.framing import decode_server_message, whole
from paramserver.worker import trainer
from paramserver.worker.trainer import Compute
from server.inprocess import Training, at_once
from server.severalservers import train

JOB: dict[str, Any] = {
    "task": {"use": "linear_regression"},
    "data": {"source": "builtin:linear", "shards": 4, "batch_size": 8},
    "train": {"steps": 6},
}
#: Where the workers run; one does not say.
CORES = {"w0": 1, "w1": 2, "w2": 0, "w3": 1}

_core: ContextVar[int] = ContextVar("core", default=0)


def on(core: int) -> Compute:
    """Compute what the task says, on this core."""

    async def compute(*arguments: Any) -> Any:
        _core.set(core)
        return await at_once(*arguments)

    return compute


@pytest.fixture
def rounds(monkeypatch: pytest.MonkeyPatch) -> dict[int, str]:
    """The workers that were told of each version, in this order; it fills up later."""
    found: dict[int, str] = {}
    deliver = Session.deliver

    def note(session: Session, messages: Any) -> None:
        work = decode_server_message(whole(messages[-1]))[0].work
        if work.version:
            found[work.version] = f"{found.get(work.version, '')} {session.name}".strip()
        deliver(session, messages)

    monkeypatch.setattr(Session, "deliver", note)
    monkeypatch.setattr(trainer, "own_core", _core.get)
    return found


@pytest.mark.parametrize(
    ("core", "order"),
    [(0, "w0 w1 w2 w3"), (1, "w1 w2 w0 w3"), (2, "w0 w2 w3 w1"), (3, "w0 w1 w2 w3")],
)
def test_who_runs_on_the_servers_core_is_told_last(
    monkeypatch: pytest.MonkeyPatch, rounds: dict[int, str], core: int, order: str
) -> None:
    monkeypatch.setattr(run, "own_core", lambda: core)
    Training(JOB).finish(*map(on, CORES.values()))
    assert rounds == dict.fromkeys(range(1, 6), order)


def test_so_it_is_where_there_are_other_servers(monkeypatch: pytest.MonkeyPatch, rounds: dict[int, str]) -> None:
    monkeypatch.setattr(run, "own_core", lambda: 1)
    train(monkeypatch, JOB, 2, computes={name: on(core) for name, core in CORES.items()}, shares=True)
    assert len(rounds) == 5
    for order in rounds.values():
        assert {*order.split()[:2]} == {"w1", "w2"}


def test_a_worker_says_where_it_runs() -> None:
    assert trainer.own_core() > 0
