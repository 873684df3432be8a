"""Write optimizers.npz: where torch.optim and optax are after each of 100 steps, in float64.

Neither library is needed to run the tests, only to run this:

    pip install torch==2.13.0 optax==0.2.8 && python tests/server/golden/make_optimizer_golden.py

θ holds two tensors. FTRL has no implementation there: the tests follow the paper's formulas instead.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
import torch

jax.config.update("jax_enable_x64", True)

STEPS, SIZES = 100, (24, 8)


def yogi(learning_rate: float, **options: Any) -> Any:
    """Return optax's Yogi started from zero moments; `optax.yogi` always starts both from 1e-6."""
    scale = optax.scale_by_yogi(initial_accumulator_value=0.0, **options)
    return optax.chain(scale, optax.scale_by_learning_rate(learning_rate))


#: Options of the `[optimizer]` table, and what they are called in the library.
TORCH: dict[str, tuple[dict[str, Any], Any, dict[str, Any]]] = {
    "sgd": ({"weight_decay": 0.01}, torch.optim.SGD, {"weight_decay": 0.01}),
    "sgd-momentum": ({"momentum": 0.9}, torch.optim.SGD, {"momentum": 0.9}),
    "sgd-nesterov": (
        {"momentum": 0.9, "nesterov": True, "weight_decay": 0.01},
        torch.optim.SGD,
        {"momentum": 0.9, "nesterov": True, "weight_decay": 0.01},
    ),
    "adam": ({"weight_decay": 0.01}, torch.optim.Adam, {"weight_decay": 0.01}),
    "adamw": ({"weight_decay": 0.1}, torch.optim.AdamW, {"weight_decay": 0.1}),
    "adagrad": (
        {"initial_accumulator": 0.1, "epsilon": 1e-8},
        torch.optim.Adagrad,
        {"initial_accumulator_value": 0.1, "eps": 1e-8},
    ),
    "rmsprop": (
        {"rho": 0.95, "momentum": 0.5, "weight_decay": 0.01},
        torch.optim.RMSprop,
        {"alpha": 0.95, "momentum": 0.5, "weight_decay": 0.01},
    ),
}
OPTAX: dict[str, tuple[dict[str, Any], Any, dict[str, Any]]] = {
    "adamw-optax": (
        {"name": "adamw", "weight_decay": 0.1, "beta1": 0.8, "beta2": 0.99},
        optax.adamw,
        {"weight_decay": 0.1, "b1": 0.8, "b2": 0.99},
    ),
    "yogi": ({"epsilon": 1e-3}, yogi, {"eps": 1e-3}),
    "lars": (
        {"momentum": 0.9, "weight_decay": 0.01, "trust_coefficient": 0.02},
        optax.lars,
        {"momentum": 0.9, "weight_decay": 0.01, "trust_coefficient": 0.02},
    ),
    "lars-nesterov": (
        {"momentum": 0.9, "nesterov": True, "weight_decay": 0.01, "trust_coefficient": 0.02},
        optax.lars,
        {"momentum": 0.9, "nesterov": True, "weight_decay": 0.01, "trust_coefficient": 0.02},
    ),
    "lamb": (
        {"weight_decay": 0.05, "epsilon": 1e-6},
        optax.lamb,
        {"weight_decay": 0.05, "eps": 1e-6},
    ),
}


def follow_torch(kind: Any, options: dict[str, Any], theta: Any, gradients: Any) -> Any:
    tensors = [torch.tensor(part) for part in np.split(theta, [SIZES[0]])]
    optimizer = kind(tensors, lr=0.02, **options)
    path = []
    for gradient in gradients:
        for tensor, part in zip(tensors, np.split(gradient, [SIZES[0]]), strict=True):
            tensor.grad = torch.tensor(part)
        optimizer.step()
        path.append(np.concatenate([tensor.numpy() for tensor in tensors]))
    return np.stack(path)


def follow_optax(kind: Any, options: dict[str, Any], theta: Any, gradients: Any) -> Any:
    tensors = [jax.numpy.asarray(part) for part in np.split(theta, [SIZES[0]])]
    optimizer = kind(0.02, **options)
    state = optimizer.init(tensors)
    path = []
    for gradient in gradients:
        updates, state = optimizer.update(np.split(gradient, [SIZES[0]]), state, tensors)
        tensors = optax.apply_updates(tensors, updates)
        path.append(np.concatenate([np.asarray(tensor) for tensor in tensors]))
    return np.stack(path)


def main() -> None:
    rng = np.random.default_rng(20)
    theta = rng.normal(size=sum(SIZES))
    gradients = rng.normal(size=(STEPS, theta.size)) * rng.uniform(0.01, 3, size=theta.size)
    cases, paths = {}, {}
    for table, follow in ((TORCH, follow_torch), (OPTAX, follow_optax)):
        for case, (section, kind, options) in table.items():
            cases[case] = {"name": case.split("-")[0], "learning_rate": 0.02, **section}
            paths[f"path/{case}"] = follow(kind, options, theta, gradients)[[0, 1, 9, 49, 99]]
    about = {
        "versions": {"torch": torch.__version__, "optax": optax.__version__, "jax": jax.__version__},
        "sizes": SIZES,
        "after_steps": [1, 2, 10, 50, 100],
        "cases": cases,
    }
    target = Path(__file__).with_name("optimizers.npz")
    np.savez_compressed(target, about=np.array(json.dumps(about)), theta=theta, gradients=gradients, **paths)
    print(f"{target}: {len(cases)} cases, {target.stat().st_size} bytes, {about['versions']}")


if __name__ == "__main__":
    main()
