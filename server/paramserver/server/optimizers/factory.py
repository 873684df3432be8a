"""From a job's `[optimizer]` table to the functions that apply it."""

from __future__ import annotations

from paramserver.server.optimizers import fused
from paramserver.server.optimizers.adagrad import adagrad
from paramserver.server.optimizers.adam import adam
from paramserver.server.optimizers.ftrl import ftrl
from paramserver.server.optimizers.layerwise import lamb, lars
from paramserver.server.optimizers.optimizer import Optimizer
from paramserver.server.optimizers.rmsprop import rmsprop
from paramserver.server.optimizers.sgd import sgd
from paramserver.server.optimizers.yogi import yogi
from paramserver.wire.job import OptimizerSection


def make_optimizer(section: OptimizerSection, fuse: bool = fused.AVAILABLE, halves: bool = False) -> Optimizer:
    """Return the optimizer that a job asks for; schedule and clipping are apart from it.

    With `fuse`, those that have a compiled form use it: faster, with the same bits. `halves` says that contributions
    come as bfloat16, which it then takes for terms if it can.
    """
    s = section
    match s.name:
        case "sgd" if fuse and s.momentum:
            return fused.fused_momentum(s.momentum, s.nesterov, s.weight_decay)
        case "sgd" if fuse and halves:
            return fused.fused_sgd(s.weight_decay)
        case "adam" | "adamw" if fuse:
            decoupled = s.name == "adamw"
            return fused.fused_adam(s.beta1, s.beta2, s.epsilon, s.weight_decay, decoupled)
        case "sgd":
            return sgd(s.momentum, s.nesterov, s.weight_decay)
        case "adam":
            return adam(s.beta1, s.beta2, s.epsilon, s.weight_decay)
        case "adamw":
            return adam(s.beta1, s.beta2, s.epsilon, s.weight_decay, decoupled=True)
        case "adagrad":
            return adagrad(s.epsilon, s.initial_accumulator, s.weight_decay)
        case "rmsprop":
            return rmsprop(s.rho, s.epsilon, s.momentum, s.weight_decay)
        case "yogi":
            return yogi(s.beta1, s.beta2, s.epsilon, s.initial_accumulator)
        case "ftrl":
            return ftrl(s.l1, s.l2, s.beta)
        case "lars":
            return lars(s.momentum, s.nesterov, s.weight_decay, s.trust_coefficient)
        case "lamb":
            return lamb(s.beta1, s.beta2, s.epsilon, s.weight_decay)
