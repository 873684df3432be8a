"""The history of losses, which can go back in time."""

from __future__ import annotations

from paramserver.server.events import Progress
from paramserver.server.history import History


def history(*steps: int) -> History:
    found = History()
    for step in steps:
        found.record(Progress(step, step, 1 / step, 10 * step, 0.1 * step))
    return found


def test_columns_end_where_they_are_asked_to() -> None:
    found = history(1, 2, 3, 5)
    assert found.columns(until=4)["step"].tolist() == [1, 2, 3]
    assert History.of(found.columns()).after(2) == found.after(2)


def test_what_was_after_a_step_can_be_forgotten_and_recorded_again() -> None:
    found = history(1, 2, 3, 4)
    found.forget_after(2)
    assert [point.step for point in found.after(0)] == [1, 2]
    found.record(Progress(3, 3, 0.25, 30, 0.3))
    assert [(point.step, point.loss) for point in found.after(1)] == [(2, 0.5), (3, 0.25)]
