"""What a task is, and the checks on everything that a task returns before it leaves the worker."""

from __future__ import annotations

import inspect
import math
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from paramserver.wire.errors import ParamserverError, TaskError, nearest
from paramserver.wire.layout import Array, Layout, is_finite
from paramserver.worker.batches import Batch
from paramserver.worker.objects import line_of
from paramserver.worker.tasks.scores import accuracy, regression

#: Tensors by name.
Params: TypeAlias = dict[str, NDArray[Any]]


class Task(Protocol):
    """A model: parameters to begin with, and the loss and gradient at any parameters.

    A task may also have `predict(params, batch)`, which returns class numbers (integers) or values (floats),
    shape (n,), and `metrics(params, batch)`, which returns numbers by name. A task with tables also has
    `tables()` and `keys(batch)`, see `tasks.tables`. It holds no state that a step changes: two workers must
    compute the same from the same parameters and batch.
    """

    def init(self, rng: np.random.Generator, batch: Batch) -> Params:
        """Return the first parameters; `batch` shows features, classes and dtype."""

    def loss_and_grad(self, params: Params, batch: Batch) -> tuple[float, Params]:
        """Return the mean loss over the batch, and its gradient by every parameter."""


def initial_parameters(task: Task, rng: np.random.Generator, batch: Batch) -> Params:
    """Return the first parameters of a task, cast to the dtype of the batch.

    Raises:
        TaskError: if `init` fails or returns anything but finite real arrays by name.
    """
    params = call(task, "init", rng, batch)
    if not isinstance(params, dict) or not params:
        raise TaskError(f"init returned {describe(params)}; a dict of at least one array is expected")
    for name, value in params.items():
        if not isinstance(name, str) or not name:
            raise TaskError(f"init returned a tensor named {name!r}; a non-empty string is expected")
        if not isinstance(value, np.ndarray | np.generic) or value.dtype.kind not in "iuf":
            raise TaskError(f"init returned {describe(value)} as {name!r}; an array of real numbers is expected")
        if not is_finite(np.asarray(value)):
            raise TaskError(f"init returned NaN or infinity in {name!r}")
    return {name: np.array(value, dtype=batch.y.dtype, order="C") for name, value in params.items()}


def takes_out(task: Task) -> bool:
    """Say whether the task's `loss_and_grad` has a parameter `out`: arrays by name in which to write the gradient.

    They are where the gradient travels from, so a task that fills and returns them saves a copy.
    """
    return "out" in inspect.signature(task.loss_and_grad).parameters


def takes_scale(task: Task) -> bool:
    """Say whether the task's `loss_and_grad` has a parameter `gradient_scale`: what it is to multiply the gradient by,
    and not the loss.

    What travels is the gradient times the examples of the batch, so a task that has it at once saves a pass over it.
    """
    return "gradient_scale" in inspect.signature(task.loss_and_grad).parameters


def loss_and_gradient(
    task: Task, params: Params, batch: Batch, out: Params | None = None, scale: float | None = None
) -> tuple[float, Params]:
    """Return the checked loss and gradient of a task; `out` is handed to a task that `takes_out`, `scale` to one that
    `takes_scale`.

    Whether every value is finite is left to `check_finite`, once they lie where they travel from.

    Raises:
        TaskError: if `loss_and_grad` fails, or what it returned breaks the contract.
    """
    given = (params, batch) if out is None else (params, batch, out)
    result = call(task, "loss_and_grad", *given, **({} if scale is None else {"gradient_scale": scale}))
    if not isinstance(result, tuple) or len(result) != 2:
        raise TaskError(f"loss_and_grad returned {describe(result)}; a pair (loss, gradient) is expected")
    loss, grad = result
    check_form(params, grad, loss)
    return float(loss), grad


def check_gradient(params: Params, grad: Any, loss: Any) -> None:
    """Check all of a loss and a gradient: `check_form` and `check_finite`."""
    check_form(params, grad, loss)
    check_finite(grad)


def check_finite(grad: Params, where: str = "") -> None:
    """Check the values of a gradient.

    Raises:
        TaskError: naming the tensor, if a value is NaN or infinite.
    """
    for name, value in grad.items():
        values = np.asarray(value)
        if not is_finite(values):
            wrong = values[~np.isfinite(values)]
            counts = f"{wrong.size} of {values.size} values are not finite"
            raise TaskError(f"{where}gradient {name!r} holds {wrong[0]}; {counts}")


def check_flat(flat: Array, layout: Layout, where: str) -> None:
    """Check a gradient as one vector, all values at once, and each tensor only if something is wrong.

    Raises:
        TaskError: naming the tensor, if a value is NaN or infinite.
    """
    if not is_finite(flat):
        check_finite(layout.views(flat), where)


def check_form(params: Params, grad: Any, loss: Any) -> None:
    """Check a loss, and a gradient against the parameters that it was computed at, but for the gradient's values.

    Raises:
        TaskError: naming the tensor, if its name, shape or dtype is no parameter's, or if the loss is no finite number.
    """
    if not isinstance(grad, dict):
        raise TaskError(f"the gradient is {describe(grad)}; a dict of arrays is expected")
    for name in grad:
        if name not in params:
            hint = nearest(str(name), params) or "."
            raise TaskError(f"the gradient has {name!r}, which is no parameter{hint} Allowed: {', '.join(params)}")
    for name, param in params.items():
        if name not in grad:
            raise TaskError(f"the gradient lacks {name!r}; found: {', '.join(grad) or 'nothing'}")
        _check_tensor(name, grad[name], param)
    try:
        value = float(loss)
    except (TypeError, ValueError):
        raise TaskError(f"the loss is {describe(loss)}; a number is expected") from None
    if not math.isfinite(value):
        raise TaskError(f"the loss is {value}; a finite number is expected")


def metrics(task: Task, params: Params, batch: Batch) -> dict[str, float]:
    """Return the task's own metrics, or else scores of its predictions, or else {}.

    Integers predicted for class labels are scored by their accuracy, everything else by rmse and r2.

    Raises:
        TaskError: if the task's `metrics` or `predict` fails or returns something else.
    """
    if hasattr(task, "metrics"):
        found = call(task, "metrics", params, batch)
        try:
            return {str(name): float(value) for name, value in found.items()}
        except (AttributeError, TypeError, ValueError):
            raise TaskError(f"metrics returned {describe(found)}; a dict of numbers is expected") from None
    if hasattr(task, "predict"):
        predicted = np.asarray(call(task, "predict", params, batch))
        if predicted.shape != batch.y.shape:
            raise TaskError(f"predict returned shape {predicted.shape}; {batch.y.shape} is expected")
        # Whole-number labels may be classes or values; the predictions say which the task takes them for.
        classifies = batch.classes > 0 and predicted.dtype.kind in "biu"
        return accuracy(predicted, batch) if classifies else regression(predicted, batch)
    return {}


def _check_tensor(name: str, value: Any, param: NDArray[Any]) -> None:
    if not isinstance(value, np.ndarray | np.generic):
        raise TaskError(f"gradient {name!r} is {describe(value)}; an array is expected")
    if value.shape != param.shape:
        raise TaskError(f"gradient {name!r} has shape {value.shape}; the parameter has {param.shape}")
    if value.dtype != param.dtype:
        why = " (numpy makes float64 of float32 with float64 or int64 arrays)" if value.dtype == np.float64 else ""
        raise TaskError(f"gradient {name!r} is {value.dtype}; the parameter is {param.dtype}{why}")


def call(task: Task, method: str, *arguments: Any, **named: Any) -> Any:
    """Call a method of a task.

    Raises:
        TaskError: if it fails, with what it raised.
    """
    try:
        return getattr(task, method)(*arguments, **named)
    except ParamserverError:
        raise
    except Exception as error:
        raised = f"{type(error).__name__}: {error}{line_of(error)}"
        raise TaskError(f"{type(task).__name__}.{method} raised {raised}") from error


def describe(value: Any) -> str:
    """Say what a task returned, for messages."""
    if isinstance(value, np.ndarray | np.generic):
        return f"a {value.dtype} array of shape {value.shape}"
    text = repr(value)
    return f"{text[:60]}{'…' if len(text) > 60 else ''} ({type(value).__name__})"
