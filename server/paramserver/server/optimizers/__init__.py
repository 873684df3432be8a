"""Server-side optimizers: pure `(init, update)` pairs over blocks of one flat vector."""

from paramserver.server.optimizers.factory import make_optimizer
from paramserver.server.optimizers.optimizer import Optimizer, StepInfo, slice_state

__all__ = ["Optimizer", "StepInfo", "make_optimizer", "slice_state"]
