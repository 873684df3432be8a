"""docs/job-file.md lists every key of a job file with its real type, default and bounds."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import annotated_types
import pytest
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from paramserver.wire.job import OPTIMIZER_OPTIONS, Job

DOCUMENT = (Path(__file__).parents[2] / "docs/job-file.md").read_text(encoding="utf-8")

TYPES = {str: "string", int: "integer", float: "number", bool: "boolean", dict: "table", list: "list"}
BOUNDS = ((annotated_types.Ge, "ge", "≥"), (annotated_types.Gt, "gt", ">"))
UPPER_BOUNDS = ((annotated_types.Le, "le", "≤"), (annotated_types.Lt, "lt", "<"))


def sections() -> dict[str, type[BaseModel]]:
    return {name: field.annotation for name, field in Job.model_fields.items()}  # type: ignore[misc]


def documented(section: str) -> list[list[str]]:
    """The first four cells of every row of a section's table."""
    _, _, rest = DOCUMENT.partition(f"\n## `[{section}]`\n")
    table = re.search(r"^\| key .*\n\|[-| ]+\n((?:\|.*\n)+)", rest.partition("\n## ")[0], re.MULTILINE)
    assert table is not None, f"no table of [{section}]"
    return [[cell.strip() for cell in row.strip("|").split("|")[:4]] for row in table[1].splitlines()]


def real(section: type[BaseModel]) -> list[list[str]]:
    return [[f"`{name}`", *describe(field)] for name, field in section.model_fields.items()]


def describe(field: FieldInfo) -> tuple[str, str, str]:
    kind: Any = field.annotation
    options = [option for option in get_args(kind) if option is not type(None)]
    if get_origin(kind) is Literal:
        kind, allowed = type(options[0]), ", ".join(f"`{literal(option)}`" for option in options)
    else:
        # An optional key has the type and the bounds of its value.
        kind = kind if kind in TYPES or get_origin(kind) in TYPES else options[0]
        allowed = ", ".join(bounds(field))
    return TYPES[get_origin(kind) or kind], default(field), allowed


def default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    return "none" if value is None else f"`{literal(value)}`"


def bounds(field: FieldInfo) -> list[str]:
    found = []
    for constraint in field.metadata:
        for kind, name, sign in (*BOUNDS, *UPPER_BOUNDS):
            if isinstance(constraint, kind):
                found.append(f"{sign} {power(getattr(constraint, name))}")
        if isinstance(constraint, annotated_types.MinLen):
            found.append("not empty")
    return found


def power(value: float) -> str:
    exponent = math.log2(value) if value > 0 else 0.0
    if exponent.is_integer() and exponent > 20:
        return f"2{str(int(exponent)).translate(str.maketrans('0123456789', '⁰¹²³⁴⁵⁶⁷⁸⁹'))}"
    return f"{value:g}" if isinstance(value, float) else str(value)


def literal(value: object) -> str:
    return json.dumps(value)


@pytest.mark.parametrize("section", sections())
def test_a_table_tells_what_the_model_takes(section: str) -> None:
    assert documented(section) == real(sections()[section])


def test_every_optimizer_is_listed_with_its_options() -> None:
    rows = dict(re.findall(r"^\| `\"(\w+)\"` \| (.*?) \|$", DOCUMENT, re.MULTILINE))
    assert {name: re.findall(r"`(\w+)`", options) for name, options in rows.items()} == {
        name: list(options) for name, options in OPTIMIZER_OPTIONS.items()
    }
