"""Who waits awake sleeps when nothing comes, when others want the core, and for a while if it is mostly in vain."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from paramserver.wire import awake
from paramserver.wire.awake import AWAKE_S, FIRST_LUCK, GAIN, MOST_LUCK, NEXT_LUCK, OTHERS_S, PAUSE_S, SHARED, Awake

TURN_S = OTHERS_S / 4


class Machine:
    """A core on which a turn for others takes as long as they want; stands in for `time` and `os`."""

    def __init__(self) -> None:
        self.now = 100.0
        self.turns: Iterator[float] = iter(())
        self.looks = 0

    def monotonic(self) -> float:
        return self.now

    def sched_yield(self) -> None:
        self.now += next(self.turns, TURN_S)

    def finds(self, one: Awake, at_look: int) -> bool:
        """Let somebody wait for what is there at his n-th look, counted from 1."""
        self.looks = 0

        def look() -> bool:
            self.looks += 1
            assert self.looks < 1000, "nobody stays awake for so long"
            return self.looks == at_look

        return one.finds(look)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    machine = Machine()
    monkeypatch.setattr(awake, "time", machine)
    monkeypatch.setattr(awake, "os", machine)
    return machine


NEVER = -1


def test_what_comes_soon_is_found_whenever_it_comes(machine: Machine) -> None:
    one = Awake()
    assert machine.finds(one, at_look=1)
    assert machine.finds(one, at_look=100)
    assert machine.looks == 100


def test_after_a_while_one_sleeps(machine: Machine) -> None:
    before = machine.now
    assert not machine.finds(Awake(), at_look=NEVER)
    assert AWAKE_S < machine.now - before <= AWAKE_S + 2 * TURN_S


def test_who_held_others_up_sleeps_at_once(machine: Machine) -> None:
    machine.turns = iter([TURN_S, 2 * OTHERS_S])
    assert not machine.finds(Awake(), at_look=NEVER)
    assert machine.looks == 2


def test_how_long_one_stays_awake_and_lets_others_run_can_be_said(machine: Machine) -> None:
    before, awake_s = machine.now, AWAKE_S / 10
    assert not machine.finds(Awake(awake_s, awake_s), at_look=NEVER)
    assert awake_s < machine.now - before <= awake_s + 2 * TURN_S
    machine.turns = iter([TURN_S, 2 * OTHERS_S])
    assert machine.finds(Awake(awake_s, awake_s), at_look=3)


def test_without_luck_one_sleeps_for_a_while_and_has_little_then(machine: Machine) -> None:
    one = Awake()
    for expected in (FIRST_LUCK, NEXT_LUCK, NEXT_LUCK):
        for _ in range(expected):
            assert not machine.finds(one, at_look=NEVER)
            assert machine.looks
        assert not machine.finds(one, at_look=1)
        assert machine.looks == 0
        machine.now += 0.99 * PAUSE_S
        assert not machine.finds(one, at_look=1)
        machine.now += 0.02 * PAUSE_S


def test_whoever_shares_the_core_is_out_of_luck_sooner(machine: Machine) -> None:
    one = Awake()
    for _ in range(-(-FIRST_LUCK // SHARED)):
        machine.turns = iter([2 * OTHERS_S])
        assert not machine.finds(one, at_look=NEVER)
        assert machine.looks == 1
    assert not machine.finds(one, at_look=1)
    assert machine.looks == 0


def test_the_last_luck_may_be_less_than_what_it_costs(machine: Machine) -> None:
    one = Awake()
    for _ in range(FIRST_LUCK - 1):
        assert not machine.finds(one, at_look=NEVER)
    machine.turns = iter([2 * OTHERS_S])
    assert not machine.finds(one, at_look=NEVER)
    assert machine.looks == 1
    assert not machine.finds(one, at_look=1)
    assert machine.looks == 0


def test_one_in_four_is_luck_enough_and_one_in_five_is_not(machine: Machine) -> None:
    def lasts(times: int) -> int:
        one, count = Awake(), 0
        for round_ in range(1000):
            machine.finds(one, at_look=1 if round_ % times == 0 else NEVER)
            count += machine.looks > 0
        return count

    assert lasts(1 + GAIN) == 1000
    assert lasts(2 + GAIN) < 1000


def test_luck_of_long_ago_does_not_last(machine: Machine) -> None:
    one = Awake()
    for _ in range(1000):
        assert machine.finds(one, at_look=1)
    for _ in range(MOST_LUCK):
        assert not machine.finds(one, at_look=NEVER)
    assert not machine.finds(one, at_look=1)
