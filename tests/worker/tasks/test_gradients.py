"""Every built-in gradient against central differences of its own loss, in float64."""

import numpy as np
import pytest
from scipy.sparse import csr_array

from paramserver.worker.batches import Batch
from paramserver.worker.tasks import initial_parameters, load_task, loss_and_gradient, takes_out, takes_scale

LABELS = {
    "values": (lambda rng, n: rng.standard_normal(n), 0),
    "0/1": (lambda rng, n: rng.integers(0, 2, n), 2),
    "-1/+1": (lambda rng, n: rng.choice([-1, 1], n), 2),
    "classes": (lambda rng, n: rng.integers(0, 4, n), 4),
}
CASES = [
    ("linear_regression", {}, "values"),
    ("linear_regression", {"l2": 0.1}, "classes"),
    ("logistic_regression", {}, "0/1"),
    ("logistic_regression", {"l2": 0.1}, "-1/+1"),
    ("softmax_regression", {}, "classes"),
    ("softmax_regression", {"classes": 6, "l2": 0.1}, "classes"),
    ("mlp", {"hidden": [7]}, "classes"),
    ("mlp", {"hidden": [7], "l2": 0.1}, "-1/+1"),
    ("mlp", {"hidden": [5, 4], "activation": "tanh"}, "classes"),
    ("mlp", {"hidden": [5, 4]}, "values"),
    ("mlp", {"hidden": [6], "output": "value"}, "classes"),
    ("mlp", {"hidden": []}, "classes"),
]


def make_batch(labels, dtype=np.float64, sparse=False, n=9):
    rng = np.random.default_rng(5)
    draw, classes = LABELS[labels]
    x = (rng.standard_normal((n, 6)) * (rng.random((n, 6)) < 0.6)).astype(dtype)
    return Batch(csr_array(x) if sparse else x, draw(rng, n).astype(dtype), classes)


@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "csr"])
@pytest.mark.parametrize(("use", "options", "labels"), CASES)
def test_gradient_is_the_slope_of_the_loss(use, options, labels, sparse):
    task, batch = load_task(use, options), make_batch(labels, sparse=sparse)
    rng = np.random.default_rng(1)
    params = initial_parameters(task, rng, batch)
    for value in params.values():
        value += 0.3 * rng.standard_normal(value.shape)
    _, grad = loss_and_gradient(task, params, batch)
    step = 1e-6
    for name, value in params.items():
        slope = np.empty_like(value)
        for place in np.ndindex(value.shape):
            before = value[place]
            value[place] = before + step
            above, _ = task.loss_and_grad(params, batch)
            value[place] = before - step
            below, _ = task.loss_and_grad(params, batch)
            value[place] = before
            slope[place] = (above - below) / (2 * step)
        np.testing.assert_allclose(grad[name], slope, rtol=1e-6, atol=1e-8, err_msg=name)


@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "csr"])
@pytest.mark.parametrize(("use", "options", "labels"), CASES)
def test_float32_in_gives_float32_out(use, options, labels, sparse):
    task, batch = load_task(use, options), make_batch(labels, np.float32, sparse)
    params = initial_parameters(task, np.random.default_rng(1), batch)
    assert {value.dtype for value in params.values()} == {np.dtype(np.float32)}
    loss_and_gradient(task, params, batch)  # refuses any other dtype


@pytest.mark.parametrize(("use", "options", "labels"), CASES)
def test_parameters_and_batch_are_left_as_they_were(use, options, labels):
    task, batch = load_task(use, options), make_batch(labels)
    params = initial_parameters(task, np.random.default_rng(1), batch)
    for array in (batch.x, batch.y, *params.values()):
        array.flags.writeable = False
    loss_and_gradient(task, params, batch)
    task.metrics(params, batch)


@pytest.mark.parametrize(("use", "options", "labels"), CASES)
def test_the_mean_over_parts_weighed_by_samples_is_the_mean_over_all(use, options, labels):
    task, batch = load_task(use, options), make_batch(labels)
    params = initial_parameters(task, np.random.default_rng(1), batch)
    whole_loss, whole = loss_and_gradient(task, params, batch)
    parts = [Batch(batch.x[cut], batch.y[cut], batch.classes) for cut in (slice(0, 2), slice(2, 9))]
    results = [(part.n / batch.n, *loss_and_gradient(task, params, part)) for part in parts]
    np.testing.assert_allclose(sum(share * loss for share, loss, _ in results), whole_loss, rtol=1e-12)
    for name in params:
        combined = sum(share * grad[name] for share, _, grad in results)
        np.testing.assert_allclose(combined, whole[name], rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "csr"])
@pytest.mark.parametrize(("use", "options", "labels"), [case for case in CASES if case[0] == "mlp"])
def test_a_gradient_in_given_arrays_has_the_same_bits(use, options, labels, sparse):
    task, batch = load_task(use, options), make_batch(labels, np.float32, sparse)
    params = initial_parameters(task, np.random.default_rng(1), batch)
    assert takes_out(task)
    out = {name: np.full_like(value, np.nan) for name, value in params.items()}
    arrays = dict(out)
    expected, own = loss_and_gradient(task, params, batch)
    loss, grad = loss_and_gradient(task, params, batch, out)
    assert loss == expected
    for name, array in arrays.items():
        assert grad[name] is array
        assert array.tobytes() == own[name].tobytes()


@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "csr"])
@pytest.mark.parametrize(("use", "options", "labels"), [case for case in CASES if case[0] == "mlp"])
def test_a_scaled_gradient_is_so_many_times_the_gradient_and_the_loss_is_the_loss(use, options, labels, sparse):
    task, batch = load_task(use, options), make_batch(labels, sparse=sparse)
    params = initial_parameters(task, np.random.default_rng(1), batch)
    assert takes_scale(task)
    expected, own = loss_and_gradient(task, params, batch)
    for scale in (1.0, 2.5, batch.n):
        loss, grad = loss_and_gradient(task, params, batch, scale=scale)
        assert loss == expected
        for name, array in grad.items():
            np.testing.assert_allclose(array, scale * own[name], rtol=1e-12, atol=1e-14)
