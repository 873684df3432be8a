"""Finds a task by name and builds it with the job's options."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from paramserver.wire.errors import RequestError, TaskError, nearest
from paramserver.worker.objects import line_of, load_object
from paramserver.worker.tasks.contract import Task
from paramserver.worker.tasks.factorization import MatrixFactorization
from paramserver.worker.tasks.linear import LinearRegression, LogisticRegression, SoftmaxRegression
from paramserver.worker.tasks.mlp import Mlp
from paramserver.worker.tasks.sparse import FactorizationMachine, SparseLogisticRegression

BUILT_IN: dict[str, Callable[..., Task]] = {
    "linear_regression": LinearRegression,
    "logistic_regression": LogisticRegression,
    "softmax_regression": SoftmaxRegression,
    "mlp": Mlp,
    "sparse_logistic_regression": SparseLogisticRegression,
    "factorization_machine": FactorizationMachine,
    "matrix_factorization": MatrixFactorization,
}


def load_task(use: str, options: dict[str, Any], base: Path | None = None) -> Task:
    """Return the task that a job names: a built-in, `module:Name`, or `file.py:Name` relative to `base`.

    A class or function is called with the options; any other object is the task itself and takes none.

    Raises:
        TaskError: if it cannot be found or imported, takes other options, or lacks a method of the contract.
    """
    if use in BUILT_IN:
        return cast(Task, _build(use, BUILT_IN[use], options))
    if ":" not in use:
        raise TaskError(
            f"unknown task {use!r}{nearest(use, BUILT_IN) or '.'} "
            f"Allowed: {', '.join(BUILT_IN)}, module:Name, file.py:Name"
        )
    found = load_object(use, base, TaskError)
    if inspect.isclass(found) or not hasattr(found, "loss_and_grad"):
        if not callable(found):
            raise TaskError(f"{use!r} is of type {type(found).__name__}; a class, a function or a task is expected")
        found = _build(use, found, options)
    elif options:
        raise TaskError(f"{use!r} is a finished object and takes no options; found: {', '.join(options)}")
    for method in ("init", "loss_and_grad"):
        if not callable(getattr(found, method, None)):
            hint = nearest(method, (name for name in dir(found) if not name.startswith("_")))
            raise TaskError(f"{use!r} has no method {method!r}{hint}")
    return cast(Task, found)


def _build(use: str, factory: Callable[..., Any], options: dict[str, Any]) -> Any:
    _check_options(use, factory, options)
    try:
        return factory(**options)
    except RequestError as error:
        raise TaskError(f"{use}: {error}") from None
    except Exception as error:
        raised = f"{type(error).__name__}: {error}{line_of(error)}"
        raise TaskError(f"{use!r} cannot be built with {options}: {raised}") from error


def _check_options(use: str, factory: Callable[..., Any], options: dict[str, Any]) -> None:
    parameters = inspect.signature(factory).parameters.values()
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return
    named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    allowed = [parameter.name for parameter in named]
    for option in options:
        if option not in allowed:
            raise TaskError(
                f"{use!r} has no option {option!r}{nearest(option, allowed) or '.'} "
                f"Allowed: {', '.join(allowed) or 'none'}"
            )
    for parameter in named:
        if parameter.default is parameter.empty and parameter.name not in options:
            raise TaskError(f"{use!r} needs the option {parameter.name!r}")
