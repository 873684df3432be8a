"""Checks on the options and labels that the built-in tasks take."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from paramserver.wire.errors import TaskError, nearest
from paramserver.worker.batches import Batch


def check_l2(l2: Any) -> None:
    """Refuse a penalty that is no number of 0 or more.

    Raises:
        TaskError: naming the value.
    """
    if isinstance(l2, bool) or not isinstance(l2, int | float) or not 0 <= l2 < float("inf"):
        raise TaskError(f"option 'l2' is {l2!r}; a finite number of 0 or more is expected")


def check_scale(scale: Any) -> None:
    """Refuse a bound of random numbers that is no number above 0.

    Raises:
        TaskError: naming the value.
    """
    if isinstance(scale, bool) or not isinstance(scale, int | float) or not 0 < scale < float("inf"):
        raise TaskError(f"option 'scale' is {scale!r}; a finite number above 0 is expected")


def check_count(option: str, value: Any, least: int) -> None:
    """Refuse an option that is no whole number of at least `least`.

    Raises:
        TaskError: naming the option and the value.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise TaskError(f"option {option!r} is {value!r}; a whole number of {least} or more is expected")


def check_choice(option: str, value: Any, allowed: Sequence[str]) -> None:
    """Refuse an option that is none of the allowed words.

    Raises:
        TaskError: naming the option, the value and the nearest allowed one.
    """
    if value not in allowed:
        hint = (nearest(value, allowed) if isinstance(value, str) else "") or "."
        raise TaskError(f"option {option!r} is {value!r}{hint} Allowed: {', '.join(allowed)}")


def describe_classes(batch: Batch) -> str:
    """Say what the labels are, for messages."""
    return f"{batch.classes} classes" if batch.classes else "labels that are no class numbers"
