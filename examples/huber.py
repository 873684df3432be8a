import numpy as np


class Huber:
    def __init__(self, delta=1.0):
        self.delta = delta

    def init(self, rng, batch):
        return {"w": np.zeros(batch.x.shape[1], batch.x.dtype), "b": np.zeros(1, batch.x.dtype)}

    def loss_and_grad(self, params, batch):
        error = self.predict(params, batch) - batch.y
        slope = np.clip(error, -self.delta, self.delta)
        loss = np.mean(slope * (error - slope / 2))
        return loss, {"w": batch.x.T @ slope / batch.n, "b": slope.mean(keepdims=True)}

    def predict(self, params, batch):
        return batch.x @ params["w"] + params["b"]

    def metrics(self, params, batch):
        return {"mean_absolute_error": np.abs(self.predict(params, batch) - batch.y).mean()}
