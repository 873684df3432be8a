"""Every optimizer against where torch.optim and optax went with the same gradients."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from paramserver.server.optimizers import StepInfo, make_optimizer, slice_state
from paramserver.server.optimizers.norms import block_squares, norm
from paramserver.wire.job import OptimizerSection

with np.load(Path(__file__).parent / "golden" / "optimizers.npz") as _archive:
    GOLDEN = dict(_archive)
ABOUT = json.loads(str(GOLDEN["about"]))


@pytest.mark.parametrize("case", ABOUT["cases"])
def test_a_hundred_steps_agree_with_another_library(case: str) -> None:
    section = OptimizerSection(**ABOUT["cases"][case])
    optimizer = make_optimizer(section)
    theta = GOLDEN["theta"].copy()
    state = optimizer.init(theta.size, theta.dtype)
    scratch = np.empty((optimizer.scratch_rows, theta.size))
    first = ABOUT["sizes"][0]
    path = []
    for number, gradient in enumerate(GOLDEN["gradients"].copy(), 1):
        for cut in (slice(0, first), slice(first, theta.size)):
            step = StepInfo(number, section.learning_rate)
            part = slice_state(state, cut.start, cut.stop)
            if optimizer.layerwise:
                optimizer.layerwise.direction(theta[cut], gradient[cut], part, step, part, scratch)
                norms = [norm(block_squares(vector[cut])) for vector in (theta, gradient)]
                ratio = optimizer.layerwise.ratio(*norms)
                step = step._replace(learning_rate=step.learning_rate * ratio)
            optimizer.update(theta[cut], gradient[cut], part, step, theta[cut], part, scratch)
        path.append(theta.copy())
    found = np.stack(path)[np.array(ABOUT["after_steps"]) - 1]
    np.testing.assert_allclose(found, GOLDEN[f"path/{case}"], rtol=1e-10, atol=1e-12)
