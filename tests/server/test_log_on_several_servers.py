"""Logs of several servers: all go back to the newest version that each can reach, and never below what was safe."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from paramserver.server.coordinator import newest_common
from paramserver.server.events import Apply, Contribution
from paramserver.server.log import Log
from paramserver.server.logformat import Record, SegmentName, encode, frames, opening, read_record, safe_note
from paramserver.server.replay import reach, records
from paramserver.server.run import Run
from paramserver.server.snapshot import Snapshot
from paramserver.server.snapshots import StateDirectory
from paramserver.server.store import Store
from paramserver.wire.errors import StateError
from paramserver.wire.layout import Layout
from server.test_log import job, opened
from server.test_snapshots import JOB, snapshot


@pytest.mark.parametrize(
    ("reaches", "version"),
    [
        # Snapshots alone.
        ([[(7, 7), (4, 4)], [(7, 7), (4, 4)]], 7),
        ([[(7, 7), (4, 4)], [(4, 4)]], 4),
        ([[(7, 7)], [(4, 4)]], None),
        # Logs that end at different versions.
        ([[(4, 9)], [(4, 7)], [(4, 8)]], 7),
        # Each from a snapshot of its own.
        ([[(6, 9)], [(4, 7)]], 7),
        # One has a snapshot that is later than what another has at all, and goes back to the one before.
        ([[(8, 9), (4, 9)], [(4, 6)]], 6),
        # The log does not lead to the newer snapshot.
        ([[(8, 9), (4, 5)], [(4, 7)]], 5),
        ([[(8, 9)], [(4, 7)]], None),
        ([[(4, 4)], []], None),
    ],
)
def test_all_go_back_to_the_newest_version_that_each_can_reach(
    reaches: list[list[tuple[int, int]]], version: int | None
) -> None:
    assert newest_common(reaches) == version


def record(version: int, answers: tuple[tuple[float, ...], ...] = ()) -> Record:
    values = memoryview(np.array([version], np.float32).tobytes())
    return Record(version, version, 0.5, Contribution("w", 0, 1, version - 1, version - 1, 1, 1.0), [values], answers)


def segment(folder: Path, serial: int, base: int, last: int, safe: int) -> tuple[SegmentName, Path]:
    """Write a segment with the contributions behind `base` up to `last`, which says that up to `safe` all is safe."""
    name = SegmentName(serial, "0123abcd", base, bytes([serial] * 8))
    pieces = [*opening(name, job().train, base)]
    for version in range(base + 1, last + 1):
        pieces += encode(name.mark, record(version), base)
    file = folder / str(name)
    file.write_bytes(b"".join([*pieces, safe_note(name.mark, safe)]))
    return name, file


def versions(found: Any) -> list[int]:
    return [record.version for record, _ in found]


def test_what_others_do_not_have_is_void_once_all_have_gone_back(tmp_path: Path) -> None:
    first = segment(tmp_path, 1, base=0, last=9, safe=9)
    assert versions(records(0, [first])) == list(range(1, 10))
    assert versions(records(0, [first], until=6)) == list(range(1, 7))
    # Others had version 6 only, so that the next segment goes on from there.
    second = segment(tmp_path, 2, base=6, last=8, safe=7)
    found = list(records(0, [first, second]))
    assert versions(found) == list(range(1, 9))
    # A second time, and the first two of the segment before are void too.
    third = segment(tmp_path, 3, base=6, last=6, safe=6)
    assert versions(records(0, [first, second, third])) == list(range(1, 7))


def test_what_was_safe_here_and_is_missing_is_an_error(tmp_path: Path) -> None:
    name, file = segment(tmp_path, 1, base=0, last=5, safe=7)
    with pytest.raises(StateError, match=r"up to version 7 of θ were acknowledged.*only up to version 5"):
        list(records(0, [(name, file)]))


def test_behind_rounds_an_older_snapshot_leads_nowhere_and_need_not(tmp_path: Path) -> None:
    before, after = segment(tmp_path, 1, base=0, last=3, safe=3), segment(tmp_path, 2, base=8, last=9, safe=9)
    assert reach(8, [before, after]) == 9
    assert reach(0, [before, after], is_newest=False) == 3
    with pytest.raises(StateError, match="acknowledged"):
        reach(0, [before, after])


def test_sums_over_all_servers_are_part_of_a_record() -> None:
    answers = ((0.1, 1e-300), (3.0,))
    (frame,) = frames(b"".join(encode(b"8 bytes.", record(1, answers), 0)), b"8 bytes.")
    assert read_record(frame).answers == [list(answer) for answer in answers]
    (frame,) = frames(b"".join(encode(b"8 bytes.", record(1), 0)), b"8 bytes.")
    assert read_record(frame).answers == ()


def test_an_update_is_replayed_with_the_sums_of_the_time() -> None:
    clipped = job(optimizer__name="sgd", optimizer__clip_norm=1.0, train__dtype="float64")
    whole = Layout([("w", (4,))], "float64")
    part, gradient = whole.cut(2)[0], np.array([3.0, 4.0])
    contribution = Contribution("w", 0, 1, 0, 0, 1, 1.0)

    def store() -> Store:
        made = Store(clipped, part, [np.zeros(2)], 8)
        made.incoming.hold(0, [gradient.copy()])
        return made

    # The other server's part of the gradient has the square 144: the norm is 13.
    before = store()
    before.ask(1, 1, [contribution])
    assert before.contribution(0)[0].tolist() == [3.0, 4.0]
    assert before.answers((169.0,)) == [(169.0,)]
    before.apply(1, 1, [contribution], (169.0,))
    again = Store(clipped, part, [np.zeros(2)], 8)
    again.replay(0, gradient, [[169.0]])
    again.apply(1, 1, [contribution])
    assert again.theta.tobytes() == before.theta.tobytes()
    np.testing.assert_allclose(before.theta, -0.1 * gradient / 13.0)
    alone = store()
    alone.apply(1, 1, [contribution])
    assert alone.theta.tobytes() != before.theta.tobytes()


def test_a_version_is_safe_when_it_is_on_all_disks(tmp_path: Path) -> None:
    async def scenario() -> None:
        directory = StateDirectory(tmp_path / "state")
        run = Run("job", job(), {}, lambda: 0.0, 0)
        run.engine.phase = "train"
        log = Log(run, directory, others=2)
        wanted: list[bool] = []
        log.snapshot_wanted = lambda: wanted.append(True)
        await log.written()
        store = Store(run.job, Layout([("w", (1,))], "float32"), [np.zeros(1, np.float32)], 8)
        for version in (1, 2):
            store.incoming.hold(0, [np.ones(1, np.float32)])
            log.append(Apply(version, version, (record(version).contribution,)), 0.0, store)
        await log.written()
        assert log.safe == 0
        log.reported(1, 2, "")
        assert log.safe == 0
        log.reported(2, 1, "")
        assert log.safe == 1
        waiting = asyncio.ensure_future(log.caught_up())
        await asyncio.sleep(0)
        assert not waiting.done()
        log.reported(2, 2, "")
        await waiting
        assert not wanted
        # One that cannot write holds up all.
        log.reported(1, 2, "the log cannot be written: full")
        assert wanted
        log.append(Apply(3, 3, (record(3).contribution,)), 0.0, store)
        with pytest.raises(StateError, match="version 3 of θ is not safe: the log cannot be written: full"):
            await log.caught_up()
        await log.close()
        directory.close()

    asyncio.run(scenario())


def kept(directory: StateDirectory) -> list[int]:
    return [found.version for found in directory.whole()]


def test_the_snapshot_that_leads_to_the_common_version_is_kept(tmp_path: Path) -> None:
    directory = StateDirectory(tmp_path / "state")
    for version in (4, 6):
        directory.save(snapshot(version))
    # All went back to version 9, by their logs.
    directory.save(snapshot(12), common=9)
    assert kept(directory) == [12, 6]
    directory.save(snapshot(15), common=12)
    assert kept(directory) == [15, 12]
    directory.close()


def test_snapshots_that_not_all_have_are_forgotten(tmp_path: Path) -> None:
    directory = StateDirectory(tmp_path / "state")
    for version in (4, 6):
        directory.save(snapshot(version))
    directory.go_on_from(Snapshot("j", JOB), 5)
    assert kept(directory) == [4]
    directory.go_on_from(Snapshot("j", JOB), None)
    assert kept(directory) == []
    directory.close()
    with opened(tmp_path / "state") as again:
        newest = again.take_newest()
        assert newest is not None
        assert newest.engine is None
