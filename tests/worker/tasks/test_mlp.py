import numpy as np

from paramserver.worker.batches import Batch
from paramserver.worker.tasks import initial_parameters, load_task


def test_tensors_have_the_documented_names_and_shapes():
    batch = Batch(np.zeros((2, 5)), np.zeros(2), classes=3)
    params = initial_parameters(load_task("mlp", {"hidden": [8, 4]}), np.random.default_rng(0), batch)
    shapes = {"w0": (5, 8), "b0": (8,), "w1": (8, 4), "b1": (4,), "w2": (4, 3), "b2": (3,)}
    assert {name: value.shape for name, value in params.items()} == shapes


def test_weights_begin_with_the_variances_of_he_and_glorot():
    batch = Batch(np.zeros((1, 400)), np.zeros(1), classes=0)
    for activation, variance in (("relu", 2 / 400), ("tanh", 2 / 700)):
        task = load_task("mlp", {"hidden": [300], "activation": activation})
        params = initial_parameters(task, np.random.default_rng(0), batch)
        np.testing.assert_allclose(params["w0"].var(), variance, rtol=0.02)
        np.testing.assert_allclose(params["w1"].var(), 2 / 301, rtol=0.3)
        assert not params["b0"].any()


def test_the_same_generator_gives_the_same_bits():
    batch = Batch(np.zeros((1, 3), np.float32), np.zeros(1, np.float32), classes=2)
    first, second = (initial_parameters(load_task("mlp", {}), np.random.default_rng(9), batch) for _ in range(2))
    assert all(first[name].tobytes() == second[name].tobytes() for name in first)


def test_metrics_follow_the_output():
    batch = Batch(np.eye(3), np.arange(3.0), classes=3)
    rng = np.random.default_rng(0)
    for output, keys in (("auto", {"accuracy"}), ("value", {"rmse", "r2"})):
        task = load_task("mlp", {"hidden": [4], "output": output})
        assert set(task.metrics(initial_parameters(task, rng, batch), batch)) == keys
