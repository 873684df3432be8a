"""Which batches a worker makes before they are asked for, and when it asks whether the work is there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from paramserver.wire.job import Job
from paramserver.worker.learner import Learner
from paramserver.worker.trainer import INLINE_S, WAY_BYTES
from worker.script import Script, followed, work

Place = tuple[int, int]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[Place], bool]]:
    """What a learner is to make ahead, and whether only until the next work is there."""
    asked: list[tuple[list[Place], bool]] = []
    original = Learner.look_ahead

    def look_ahead(self: Learner, coming: Sequence[Place], *is_over: Callable[[], bool]) -> None:
        asked.append(([*coming], [each.__func__ for each in is_over] == [Script.has_arrived]))  # type: ignore[attr-defined]
        original(self, coming)

    monkeypatch.setattr(Learner, "look_ahead", look_ahead)
    return asked


def job(folder: Path, features: int, batch_size: int = 4, **train: object) -> Job:
    # Compressed it cannot be mapped.
    np.savez_compressed(folder / "data.npz", x=np.ones((40, features)), y=np.ones(40))
    return Job.from_dict(
        {
            "task": {"use": "linear_regression"},
            "data": {"source": str(folder / "data.npz"), "shards": 2, "batch_size": batch_size},
            "train": {"dtype": "float64", **train},
        }
    )


LARGE = WAY_BYTES // (4 * 8) + 1


def test_while_others_are_waited_for_large_batches_of_two_steps_are_made_until_the_work_is_there(tmp_path, asked):
    followed(job(tmp_path, LARGE), work((0, 1, 5)), work((0, 1, 6)), step_s=0.001)
    # How large they are is known from the first one on.
    assert asked == [([(0, 6)], False), ([(0, 7), (0, 8)], True)]


def test_small_batches_are_made_at_once(tmp_path, asked):
    followed(job(tmp_path, LARGE - 1), work((0, 1, 5)), work((0, 1, 6)), step_s=0.001)
    assert asked == [([(0, 6)], False), ([(0, 7)], False)]


def test_what_need_not_be_made_is_no_large_batch(tmp_path, asked):
    followed(job(tmp_path, LARGE, batch_size=0), work((0, 1, 5)), work((0, 1, 6)), step_s=0.001)
    assert asked == [([(0, 6)], False), ([(0, 7)], False)]


def test_who_has_all_shards_makes_the_next_batch_of_each_at_once(tmp_path, asked):
    followed(job(tmp_path, LARGE), work((0, 1, 5), (1, 2, 5)), work((0, 1, 6), (1, 2, 6)), step_s=0.001)
    assert asked == [([(0, 6), (1, 6)], False), ([(0, 7), (1, 7)], False)]


def test_behind_a_long_step_nothing_is_made_ahead(tmp_path, asked):
    followed(job(tmp_path, LARGE), work((0, 1, 5)), step_s=INLINE_S)
    assert asked == [([], False)]


def test_local_steps_are_not_foreseen(tmp_path, asked):
    followed(job(tmp_path, LARGE, local_steps=2), work((0, 1, 5)), step_s=0.001)
    assert asked == [([], False)]
