"""From a job's `[optimizer]` table to the functions that apply it."""

from __future__ import annotations

from paramserver.server.optimizers.adam import adam
from paramserver.server.optimizers.optimizer import Optimizer
from paramserver.server.optimizers.sgd import sgd
from paramserver.wire.job import OptimizerSection


def make_optimizer(section: OptimizerSection) -> Optimizer:
    """Return the optimizer that a job asks for; schedule and clipping are apart from it."""
    match section.name:
        case "sgd":
            return sgd(section.momentum, section.nesterov, section.weight_decay)
        case "adam":
            return adam(section.beta1, section.beta2, section.epsilon, section.weight_decay)
