from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from paramserver.wire.errors import TaskError
from paramserver.worker.batches import Batch
from paramserver.worker.tasks.contract import check_gradient, initial_parameters, loss_and_gradient, metrics

PARAMS = {"weight": np.zeros((2, 3), np.float32), "bias": np.zeros(3, np.float32)}
BATCH = Batch(np.zeros((4, 2), np.float32), np.arange(4, dtype=np.float32), classes=4)


def gradient(**changes):
    return {name: np.ones_like(value) for name, value in PARAMS.items()} | changes


def test_a_right_gradient_passes_also_where_its_sum_overflows():
    check_gradient(PARAMS, gradient(), np.float32(1.5))
    check_gradient(PARAMS, gradient(bias=np.full(3, 3e38, np.float32)), 0)


@pytest.mark.parametrize(
    ("grad", "loss", "message"),
    [
        ([1, 2], 0.0, "the gradient is \\[1, 2\\] \\(list\\)"),
        (gradient(weigth=np.zeros(1)), 0.0, r"has 'weigth', which is no parameter, did you mean 'weight'\?"),
        ({"weight": np.ones((2, 3), np.float32)}, 0.0, "lacks 'bias'; found: weight"),
        (gradient(bias=[1.0, 2.0, 3.0]), 0.0, "'bias' is .* an array is expected"),
        (gradient(weight=np.ones((3, 2), np.float32)), 0.0, r"'weight' has shape \(3, 2\).*\(2, 3\)"),
        (gradient(bias=np.ones((3, 1), np.float32)), 0.0, r"'bias' has shape \(3, 1\)"),
        (gradient(bias=np.ones(3)), 0.0, "'bias' is float64; the parameter is float32 .numpy makes float64"),
        (gradient(bias=np.ones(3, np.int32)), 0.0, "'bias' is int32; the parameter is float32"),
        (gradient(bias=np.array([0, np.nan, np.inf], np.float32)), 0.0, "'bias' holds nan; 2 of 3"),
        (gradient(bias=np.array([np.inf, -np.inf, 0], np.float32)), 0.0, "'bias' holds inf; 2 of 3"),
        (gradient(), float("nan"), "the loss is nan"),
        (gradient(), None, "the loss is None"),
        (gradient(), np.ones(3), "the loss is a float64 array"),
    ],
)
def test_a_wrong_gradient_is_refused_and_named(grad, loss, message):
    with pytest.raises(TaskError, match=message):
        check_gradient(PARAMS, grad, loss)


@pytest.mark.parametrize(
    ("result", "message"),
    [(1.0, "a pair \\(loss, gradient\\)"), ((1.0, {}, 2), "a pair")],
)
def test_what_is_no_pair_is_refused(result, message):
    task = SimpleNamespace(loss_and_grad=lambda _params, _batch: result)
    with pytest.raises(TaskError, match=message):
        loss_and_gradient(task, PARAMS, BATCH)


def test_an_exception_of_the_task_names_the_method_and_keeps_its_cause():
    task = SimpleNamespace(loss_and_grad=lambda params, _batch: params["wight"])
    with pytest.raises(TaskError, match="loss_and_grad raised KeyError: 'wight'") as caught:
        loss_and_gradient(task, PARAMS, BATCH)
    assert isinstance(caught.value.__cause__, KeyError)


def test_where_a_task_went_wrong_is_told_by_the_line_of_its_own_code_that_called_a_library():
    def loss_and_grad(_params, _batch):
        return np.linalg.inv(np.zeros((2, 2)))

    line = loss_and_grad.__code__.co_firstlineno + 1
    with pytest.raises(TaskError, match=rf"LinAlgError: .* \({Path(__file__).name}, line {line}\)"):
        loss_and_gradient(SimpleNamespace(loss_and_grad=loss_and_grad), PARAMS, BATCH)


def test_first_parameters_take_the_dtype_of_the_batch():
    task = SimpleNamespace(init=lambda rng, _batch: {"w": rng.standard_normal((2, 2)).T, "n": np.int64(3)})
    params = initial_parameters(task, np.random.default_rng(0), BATCH)
    assert {value.dtype for value in params.values()} == {np.dtype(np.float32)}
    assert params["w"].flags.c_contiguous
    assert params["n"].shape == ()


@pytest.mark.parametrize(
    ("params", "message"),
    [
        (None, "init returned None"),
        ({}, "at least one array"),
        ({"w": [0.0]}, "as 'w'; an array"),
        ({"w": np.array(["a"])}, "as 'w'; an array of real numbers"),
        ({3: np.zeros(1)}, "named 3"),
        ({"w": np.array([np.nan])}, "NaN or infinity in 'w'"),
    ],
)
def test_wrong_first_parameters_are_refused(params, message):
    task = SimpleNamespace(init=lambda _rng, _batch: params)
    with pytest.raises(TaskError, match=message):
        initial_parameters(task, np.random.default_rng(0), BATCH)


def test_metrics_come_from_the_task_or_its_predictions_or_are_empty():
    assert metrics(SimpleNamespace(metrics=lambda _p, _b: {"auc": np.float32(0.5)}), PARAMS, BATCH) == {"auc": 0.5}
    guess = SimpleNamespace(predict=lambda _p, _b: np.array([0, 1, 2, 0]))
    assert metrics(guess, PARAMS, BATCH) == {"accuracy": 0.75}
    values = metrics(guess, PARAMS, Batch(BATCH.x, BATCH.y))
    assert values["rmse"] == pytest.approx(1.5)
    assert values["r2"] == pytest.approx(1 - 9 / 5)
    assert metrics(SimpleNamespace(), PARAMS, BATCH) == {}


def test_values_predicted_for_whole_number_labels_are_not_scored_as_classes():
    assert BATCH.classes
    regression = SimpleNamespace(predict=lambda _p, batch: batch.y + 0.5)
    assert metrics(regression, PARAMS, BATCH)["rmse"] == pytest.approx(0.5)
    exact = SimpleNamespace(predict=lambda _p, batch: batch.y)
    assert metrics(exact, PARAMS, BATCH)["rmse"] == 0


def test_wrong_metrics_and_predictions_are_refused():
    with pytest.raises(TaskError, match="a dict of numbers"):
        metrics(SimpleNamespace(metrics=lambda _p, _b: 3), PARAMS, BATCH)
    with pytest.raises(TaskError, match=r"shape \(4, 1\)"):
        metrics(SimpleNamespace(predict=lambda _p, _b: np.zeros((4, 1))), PARAMS, BATCH)
