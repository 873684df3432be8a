"""Spreads the runs of an experiment over the cores of this machine."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from typing import TypeVar

from threadpoolctl import threadpool_limits

Case = TypeVar("Case")
Row = dict[str, str | int | float]


def run_all(trial: Callable[[Case], Iterable[Row]], cases: Iterable[Case], here: bool = False) -> list[Row]:
    """Return the rows of every case, in order, computed in as many processes as there are cores, or in this one."""
    waiting = list(cases)
    if here:
        return [row for case in waiting for row in trial(case)]
    rows: list[Row] = []
    with ProcessPoolExecutor(os.cpu_count(), initializer=_one_thread) as pool:
        for number, found in enumerate(pool.map(trial, waiting), start=1):
            rows += found
            if sys.stderr.isatty():
                end = "\n" if number == len(waiting) else "\r"
                print(f"{number}/{len(waiting)} runs", end=end, file=sys.stderr, flush=True)
    return rows


def _one_thread() -> None:
    threadpool_limits(limits=1)
