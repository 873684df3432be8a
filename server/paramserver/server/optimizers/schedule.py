"""Learning-rate schedules as pure functions of the update's number."""

from __future__ import annotations

import math

from paramserver.wire.job import OptimizerSection


def learning_rate(section: OptimizerSection, number: int, total_steps: int) -> float:
    """Return the learning rate of update `number`, which counts from 1.

    Warm-up rises linearly, `learning_rate·number/warmup_steps`, and reaches the full rate at update
    `warmup_steps`. The schedule starts there, or at update 1, and ends at update `total_steps`: `step`
    multiplies the rate by `decay_rate` after every `decay_steps` updates; `cosine` falls along half a
    cosine to `final_learning_rate` and stays there.

    Source: Loshchilov & Hutter, "SGDR", 2017, equation 5 without restarts; Goyal et al., "Accurate, Large
    Minibatch SGD", 2017, section 2.2 for the warm-up.
    """
    peak = section.learning_rate
    if number < section.warmup_steps:
        return peak * number / section.warmup_steps
    start = max(section.warmup_steps, 1)
    elapsed, length = number - start, total_steps - start
    if elapsed == 0 or section.schedule == "constant":
        return peak
    if section.schedule == "step":
        return peak * section.decay_rate ** (elapsed // section.decay_steps)
    if elapsed >= length:
        return section.final_learning_rate
    fall = (1.0 + math.cos(math.pi * elapsed / length)) / 2.0
    return section.final_learning_rate + (peak - section.final_learning_rate) * fall
