"""A multi-layer perceptron in numpy, with analytic gradients; x may be dense or csr."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paramserver.wire.errors import TaskError
from paramserver.worker.batches import Batch
from paramserver.worker.tasks.contract import Params
from paramserver.worker.tasks.losses import cross_entropy, penalise
from paramserver.worker.tasks.options import check_choice, check_count, check_l2, describe_classes
from paramserver.worker.tasks.scores import accuracy, regression

ACTIVATIONS = ("relu", "tanh")
OUTPUTS = ("auto", "classes", "value")


@dataclass(frozen=True)
class Mlp:
    """Fully connected layers: softmax and cross-entropy for class labels, else one value and squared error.

    Layer i has the tensors `w{i}` (inputs, outputs) and `b{i}` (outputs,). Weights begin normally distributed
    with variance 2 / inputs before a relu (He et al. 2015) and 2 / (inputs + outputs) before a tanh and at
    the output (Glorot and Bengio 2010), biases at zero. The loss is a mean over the batch, plus l2 · ‖w‖² of
    all weights.
    """

    hidden: Sequence[int] = (256,)
    activation: str = "relu"
    #: What the last layer gives. "auto" takes labels 0, 1, 2, … as classes; "value" regresses on them.
    output: str = "auto"
    l2: float = 0.0

    def __post_init__(self) -> None:
        check_l2(self.l2)
        if not isinstance(self.hidden, list | tuple):
            raise TaskError(f"option 'hidden' is {self.hidden!r}; a list of layer sizes is expected, such as [256]")
        for size in self.hidden:
            check_count("hidden", size, least=1)
        check_choice("activation", self.activation, ACTIVATIONS)
        check_choice("output", self.output, OUTPUTS)

    def init(self, rng: np.random.Generator, batch: Batch) -> Params:
        """Return random weights and zero biases.

        Raises:
            TaskError: if classes are asked for and the labels are no class numbers.
        """
        if self.output == "classes" and not batch.classes:
            raise TaskError(f"mlp with output = 'classes' needs labels 0, 1, 2, …; found {describe_classes(batch)}")
        sizes = [batch.x.shape[1], *self.hidden, batch.classes if self._classifies(batch) else 1]
        params: Params = {}
        for layer, (inputs, outputs) in enumerate(pairwise(sizes)):
            before_relu = self.activation == "relu" and layer < len(self.hidden)
            deviation = (2 / inputs if before_relu else 2 / (inputs + outputs)) ** 0.5
            weights = deviation * rng.standard_normal((inputs, outputs))
            params[f"w{layer}"] = weights.astype(batch.x.dtype)
            params[f"b{layer}"] = np.zeros(outputs, batch.x.dtype)
        return params

    def loss_and_grad(
        self, params: Params, batch: Batch, out: Params | None = None, gradient_scale: float = 1.0
    ) -> tuple[float, Params]:
        """Return the loss and `gradient_scale` times its gradient, by back-propagation; with `out`, arrays like the
        parameters, in these."""
        inputs = self._forward(params, batch)
        output = inputs.pop()
        if self._classifies(batch):
            loss, delta = cross_entropy(output, batch.labels, gradient_scale)
        else:
            residual = output[:, 0] - batch.y
            loss = float(np.mean(np.square(residual), dtype=np.float64))
            delta = (residual * (2 * gradient_scale / batch.n))[:, None]
        grad: Params = {} if out is None else out
        for layer in reversed(range(len(inputs))):
            w, b = f"w{layer}", f"b{layer}"
            grad[w] = _product(inputs[layer].T, delta, grad.get(w))
            grad[b] = np.add.reduce(delta, axis=0, out=grad.get(b))
            loss += penalise(self.l2, params[w], grad[w], gradient_scale)
            if layer:
                delta = delta @ params[w].T
                delta *= self._slope(inputs[layer])
        return loss, grad

    def predict(self, params: Params, batch: Batch) -> NDArray[Any]:
        """Return class numbers or values, shape (n,)."""
        output = self._forward(params, batch)[-1]
        return np.asarray(np.argmax(output, axis=1) if self._classifies(batch) else output[:, 0])

    def metrics(self, params: Params, batch: Batch) -> dict[str, float]:
        """Return the accuracy, or rmse and r2."""
        score = accuracy if self._classifies(batch) else regression
        return score(self.predict(params, batch), batch)

    def _classifies(self, batch: Batch) -> bool:
        return self.output != "value" and batch.classes > 0

    def _forward(self, params: Params, batch: Batch) -> list[Any]:
        """Return the input of every layer, and last the output, before any softmax."""
        values = [batch.x]
        for layer in range(len(self.hidden) + 1):
            value = np.asarray(values[-1] @ params[f"w{layer}"])
            value += params[f"b{layer}"]
            if layer < len(self.hidden):
                value = np.maximum(value, 0, out=value) if self.activation == "relu" else np.tanh(value, out=value)
            values.append(value)
        return values

    def _slope(self, activated: NDArray[Any]) -> NDArray[Any]:
        """Return the derivative of the activation where it has these values."""
        return activated > 0 if self.activation == "relu" else 1 - np.square(activated)


def _product(inputs: Any, delta: NDArray[Any], out: NDArray[Any] | None) -> NDArray[Any]:
    """Return `inputs`, dense or sparse, times `delta`, in `out` if that is given."""
    if isinstance(inputs, np.ndarray):
        return np.matmul(inputs, delta, out=out)
    product = np.asarray(inputs @ delta)
    if out is None:
        return product
    np.copyto(out, product)
    return out
