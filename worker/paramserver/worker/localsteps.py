"""Several steps of plain gradient descent on the worker's own θ before anything is pushed."""

from __future__ import annotations

import numpy as np

from paramserver.wire.layout import Array
from paramserver.worker.learner import Learner


def local_steps(
    learner: Learner, theta: dict[str, Array], shard: int, step: int
) -> tuple[float, dict[str, Array], int]:
    """Return mean loss, contribution and sample count of the job's `local_steps` = H steps that start at θ.

    They take the batches H·step … H·step + H − 1 of the shard and move the worker's own θ with `local_learning_rate`,
    or the optimizer's rate where that is not set. The contribution is, by `local_update`,

        gradient      the mean gradient over the samples of all batches, each at θ as the worker had it then
        difference    θ at the first step less θ after the last: what the server's optimizer takes for a gradient

    Sources: the accumulated gradient is that of Downpour SGD (Dean et al., "Large Scale Distributed Deep Networks",
    2012; the sum there is H times this mean). The difference, applied with a learning rate of 1, is federated
    averaging (McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized Data", 2017,
    algorithm 1), and with Nesterov momentum on the server the outer step of DiLoCo (Douillard et al., "DiLoCo:
    Distributed Low-Communication Training of Language Models", 2023, algorithm 1), whose inner optimizer is AdamW.

    Warning: on shards that differ much the workers drift apart, each towards the optimum of its own shard, and the more
    so the larger H is; θ then settles beside the optimum of all data.
    """
    train = learner.job.train
    rate = learner.job.optimizer.learning_rate if train.local_learning_rate is None else train.local_learning_rate
    own = {name: values.copy() for name, values in theta.items()}
    shown = {name: values.view() for name, values in own.items()}
    for values in shown.values():
        values.flags.writeable = False
    gradients = {name: np.zeros_like(values) for name, values in theta.items()}
    losses, samples = 0.0, 0
    for number in range(step * train.local_steps, (step + 1) * train.local_steps):
        batch = learner.batch(shard, number)
        loss, arrays = learner.gradient(shown, batch, shard, number)
        losses += batch.n * loss
        samples += batch.n
        for name, gradient in arrays.items():
            gradients[name] += batch.n * gradient
            own[name] -= rate * gradient
    if train.local_update == "difference":
        contribution = {name: theta[name] - own[name] for name in theta}
    else:
        contribution = {name: total / samples for name, total in gradients.items()}
    return losses / samples, contribution, samples
