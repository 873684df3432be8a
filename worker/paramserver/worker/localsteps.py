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
        elastic       the shard's own parameters x after the last step

    With `elastic` the worker does not begin at θ but where the shard was after its last push, from where it first goes
    the share `elasticity` = α of its way to θ:

        x ← x − α · (x − θ),   x ← x − η · ∇J(x) H times,   and on the server   θ ← θ + β · mean(x − θ)

    where β is the optimizer's rate. In `learner.own` it leaves x for the shard's next step.

    Sources: the accumulated gradient is that of Downpour SGD (Dean et al., "Large Scale Distributed Deep Networks",
    2012; the sum there is H times this mean). The difference, applied with a learning rate of 1, is federated
    averaging (McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized Data", 2017,
    algorithm 1), and with Nesterov momentum on the server the outer step of DiLoCo (Douillard et al., "DiLoCo:
    Distributed Low-Communication Training of Language Models", 2023, algorithm 1), whose inner optimizer is AdamW.
    `elastic` is elastic averaging (Zhang, Choromanska & LeCun, "Deep learning with Elastic Averaging SGD", 2015,
    section 3 and algorithm 1, β = shards · α in sync and α in async), but for the order: there x and θ move towards
    each other from where both were, here x moves towards a θ that has moved. With one shard, our α is their α/(1 − β).

    Warning: on shards that differ much the workers drift apart, each towards the optimum of its own shard, and the more
    so the larger H is; θ then settles beside the optimum of all data.
    """
    train = learner.job.train
    rate = learner.job.optimizer.learning_rate if train.local_learning_rate is None else train.local_learning_rate
    own = {name: values.copy() for name, values in theta.items()}
    if train.local_update == "elastic" and shard in learner.own:
        for name, values in learner.own[shard].items():
            np.subtract(values, train.elasticity * (values - theta[name]), out=own[name])
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
    elif train.local_update == "elastic":
        contribution = own
        # As the server does with what it is sent, so that both have the same bits.
        learner.own[shard] = {name: (values * samples) * (1.0 / samples) for name, values in own.items()}
    else:
        contribution = {name: total / samples for name, total in gradients.items()}
    return losses / samples, contribution, samples
