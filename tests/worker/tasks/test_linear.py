import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression, Ridge

from paramserver.wire.errors import TaskError
from paramserver.worker.batches import Batch
from paramserver.worker.data import open_source
from paramserver.worker.tasks import initial_parameters, load_task, loss_and_gradient


def descend(task, batch, rate, steps):
    params = initial_parameters(task, np.random.default_rng(0), batch)
    for _ in range(steps):
        _, grad = loss_and_gradient(task, params, batch)
        for name in params:
            params[name] -= rate * grad[name]
    return params


def test_linear_regression_descends_to_the_closed_form():
    x, y = open_source("builtin:linear").read(0, 1000)
    params = descend(load_task("linear_regression", {}), Batch(x, y), 0.5, 1000)
    np.testing.assert_allclose([params["w"][0], params["b"][0]], np.polyfit(x[:, 0], y, 1), rtol=1e-9)


def test_the_penalty_is_that_of_ridge_regression():
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((40, 3)), rng.standard_normal(40)
    params = descend(load_task("linear_regression", {"l2": 0.5}), Batch(x, y), 0.1, 500)
    expected = Ridge(alpha=0.5 * 40, tol=1e-12).fit(x, y)
    np.testing.assert_allclose(params["w"], expected.coef_, rtol=1e-8)
    np.testing.assert_allclose(params["b"], expected.intercept_, rtol=1e-8)


@pytest.mark.parametrize("low", [0, -1])
def test_logistic_regression_agrees_with_scikit_learn_for_both_kinds_of_labels(low):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((60, 3))
    y = np.where(x[:, 0] + rng.standard_normal(60) > 0, 1.0, low)
    batch = Batch(x, y, classes=2)
    task = load_task("logistic_regression", {"l2": 0.05})
    params = descend(task, batch, 1.0, 500)
    # Its objective is C · Σ losses + ½‖w‖², ours the mean of the losses + l2 · ‖w‖².
    expected = LogisticRegression(C=1 / (2 * 0.05 * 60), tol=1e-10).fit(x, y)
    np.testing.assert_allclose(params["w"], expected.coef_[0], rtol=1e-4)
    assert task.metrics(params, batch) == {"accuracy": expected.score(x, y)}


def test_scores_of_any_size_neither_overflow_nor_lose_the_loss():
    batch = Batch(np.array([[1e4], [1e4]], np.float32), np.array([1, 0], np.float32), classes=2)
    params = {"w": np.ones(1, np.float32), "b": np.zeros(1, np.float32)}
    loss, grad = loss_and_gradient(load_task("logistic_regression", {}), params, batch)
    assert loss == pytest.approx(5e3)
    assert grad["w"][0] == pytest.approx(5e3)
    params = {"w": np.array([[1.0, -1.0]], np.float32), "b": np.zeros(2, np.float32)}
    loss, _ = loss_and_gradient(load_task("softmax_regression", {}), params, batch)
    assert loss == pytest.approx(1e4)


@pytest.mark.parametrize(
    ("use", "options", "classes", "message"),
    [
        ("logistic_regression", {}, 10, "labels 0/1 or -1/\\+1; found 10 classes"),
        ("logistic_regression", {}, 0, "found labels that are no class numbers"),
        ("softmax_regression", {}, 0, "found labels that are no class numbers"),
        ("softmax_regression", {"classes": 3}, 4, "up to 3 classes; found 4 classes"),
        ("mlp", {"output": "classes"}, 0, "found labels that are no class numbers"),
    ],
)
def test_labels_that_a_task_cannot_learn_are_refused(use, options, classes, message):
    batch = Batch(np.zeros((2, 1)), np.zeros(2), classes)
    with pytest.raises(TaskError, match=message):
        load_task(use, options).init(np.random.default_rng(0), batch)
