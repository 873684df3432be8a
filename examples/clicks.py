import numpy as np

from paramserver.worker import Table


class Clicks:
    def tables(self):
        return {"w": Table(1)}

    def keys(self, batch):
        return {"w": batch.x.indices.reshape(batch.n, 3)}

    def init(self, rng, batch):
        return {"b": np.zeros(1)}

    def loss_and_grad(self, params, batch):
        p = 1 / (1 + np.exp(-params["w"].sum(axis=(1, 2)) - params["b"]))
        delta = (p - batch.y) / batch.n
        loss = -np.log(np.where(batch.y > 0, p, 1 - p)).mean()
        each = np.repeat(delta, 3).reshape(batch.n, 3, 1)
        return loss, {"w": each, "b": delta.sum(keepdims=True)}
