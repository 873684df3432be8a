import pytest

from paramserver.wire.errors import TaskError
from paramserver.worker.tasks import load_task

OWN = """
class Model:
    def __init__(self, rate=1.0, *, depth=2): self.rate = rate; self.depth = depth
    def init(self, rng, batch): return {}
    def loss_and_grad(self, params, batch): return 0.0, {}
class Needs(Model):
    def __init__(self, size): self.size = size
class Any(Model):
    def __init__(self, **options): self.options = options
class Fails(Model):
    def __init__(self, size=1): raise ValueError("size is odd")
class NoInit:
    def loss_and_grad(self, params, batch): return 0.0, {}
class Typo:
    def init(self, rng, batch): return {}
    def loss_and_grads(self, params, batch): return 0.0, {}
def factory(rate): return Model(rate)
ready = Model(rate=5.0)
number = 3
"""


@pytest.fixture
def own(tmp_path):
    (tmp_path / "own.py").write_text(OWN)
    return tmp_path


def test_a_class_a_factory_and_a_finished_object_are_all_tasks(own):
    assert load_task("own.py:Model", {"rate": 2.0, "depth": 3}, own).depth == 3
    assert load_task("own.py:factory", {"rate": 4.0}, own).rate == 4.0
    assert load_task("own.py:ready", {}, own).rate == 5.0
    assert load_task("own.py:Any", {"whatever": 1}, own).options == {"whatever": 1}


@pytest.mark.parametrize(
    ("use", "options", "message"),
    [
        ("linear_regresion", {}, "did you mean 'linear_regression'"),
        ("mlp", {"hiden": [3]}, r"no option 'hiden', did you mean 'hidden'\? Allowed: hidden, activation"),
        ("mlp", {"hidden": 3}, r"'hidden' is 3; a list of layer sizes"),
        ("mlp", {"hidden": [0]}, r"'hidden' is 0; a whole number of 1 or more"),
        ("mlp", {"activation": "rleu"}, r"'rleu', did you mean 'relu'\? Allowed: relu, tanh"),
        ("linear_regression", {"l2": -1}, r"'l2' is -1"),
        ("linear_regression", {"l2": "much"}, r"'l2' is 'much'"),
        ("softmax_regression", {"classes": 2.5}, r"'classes' is 2.5"),
        ("own.py:Model", {"rates": 1}, r"no option 'rates', did you mean 'rate'\? Allowed: rate, depth"),
        ("own.py:Needs", {}, "needs the option 'size'"),
        ("own.py:Fails", {}, "ValueError: size is odd"),
        ("own.py:ready", {"rate": 1}, "takes no options; found: rate"),
        ("own.py:number", {}, "is of type int; a class"),
        ("own.py:NoInit", {}, "has no method 'init'"),
        ("own.py:Typo", {}, r"no method 'loss_and_grad', did you mean 'loss_and_grads'\?"),
        ("own.py:Modle", {}, r"did you mean 'Model'\?"),
        ("missing.py:Model", {}, "no such file"),
    ],
)
def test_a_task_that_cannot_be_used_is_explained(own, use, options, message):
    with pytest.raises(TaskError, match=message):
        load_task(use, options, own)
