"""A worker that waits for the coordinator notices that another server has ended its stream."""

from __future__ import annotations

import asyncio

import pytest

from server.inprocess import at_once
from server.severalservers import DEADLINE_S, Servers


def test_it_begins_anew_with_all_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    async def run() -> None:
        async with asyncio.timeout(DEADLINE_S):
            servers = Servers(3)
            monkeypatch.setattr("paramserver.server.coordinator.Link", servers.link)
            try:
                while not servers.coordinator._is_open:
                    await asyncio.sleep(0.001)
                worker = asyncio.create_task(servers.work("w", at_once))
                servers.workers = {"w": worker}
                while "w" not in servers.coordinator.sessions:
                    await asyncio.sleep(0.001)
                before = [shell.sessions["w"] for shell in servers._shells]
                before[2].close()
                while any(shell.sessions.get("w") in (None, *before) for shell in servers._shells):
                    assert not worker.done()
                    await asyncio.sleep(0.001)
            finally:
                await servers.close()

    asyncio.run(run())
