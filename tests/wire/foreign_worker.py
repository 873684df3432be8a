"""A worker that knows paramserver only from its .proto and docs/wire-format.md.

It imports nothing of paramserver, and no numpy: bytes, batches and sums are spelled out as the specification does.
Usage: foreign_worker.py STUBS ADDRESS NAME TABLE, where STUBS holds what protoc made of the .proto and TABLE is a csv
file with a header whose last column is the label. It does one job, and leaves when its standard input ends.
"""

import csv
import json
import math
import queue
import sys
import threading
from array import array

sys.path.insert(0, sys.argv[1])

import grpc
import paramserver_pb2 as pb
import paramserver_pb2_grpc as rpc

MASK = 2**64 - 1


def philox(key, block):
    """Philox4x64-10: the four words of a block, which counts from 1."""
    c0, c1, c2, c3 = block, 0, 0, 0
    k0, k1 = key
    for _ in range(10):
        low, high = 0xD2E7470EE14C6C93 * c0, 0xCA5A826395121157 * c2
        c0, c1, c2, c3 = (high >> 64) ^ c1 ^ k0, high & MASK, (low >> 64) ^ c3 ^ k1, low & MASK
        k0, k1 = (k0 + 0x9E3779B97F4A7C15) & MASK, (k1 + 0xBB67AE8584CAA73B) & MASK
    return c0, c1, c2, c3


class Shard:
    """The rows of one shard."""

    def __init__(self, path, job, shard):
        with open(path, newline="", encoding="utf-8") as file:
            table = [[float(cell) for cell in row] for row in list(csv.reader(file))[1:]]
        shards = job["data"]["shards"]
        rows = table[shard * len(table) // shards : (shard + 1) * len(table) // shards]
        self.x, self.y = [row[:-1] for row in rows], [row[-1] for row in rows]
        self.features = len(self.x[0])
        self._seed, self._batch, self._shard = job["train"]["seed"], job["data"]["batch_size"], shard

    def moments(self):
        """Means, then sums of squared deviations."""
        columns = list(zip(*self.x, strict=True))
        means = [math.fsum(column) / len(column) for column in columns]
        return means + [math.fsum((v - m) ** 2 for v in column) for column, m in zip(columns, means, strict=True)]

    def standardize(self, rows, flat):
        """Replace every feature by (x − mean) / deviation."""
        mean, m2 = flat[: self.features], flat[self.features :]
        scale = [math.sqrt(v / rows) or 1.0 for v in m2]
        self.x = [[(v - m) / s for v, m, s in zip(row, mean, scale, strict=True)] for row in self.x]

    def batch(self, step):
        """The row numbers of the batch of a step."""
        rows = len(self.y)
        per_epoch = -(-rows // self._batch) if self._batch else 1
        if per_epoch == 1:
            return list(range(rows))
        epoch, position = divmod(step, per_epoch)
        key = ((self._seed << 32) | self._shard, epoch)
        words = [word for block in range(1, -(-rows // 4) + 1) for word in philox(key, block)][:rows]
        order = sorted(range(rows), key=words.__getitem__)
        return sorted(order[position * self._batch : (position + 1) * self._batch])


class LinearRegression:
    """Mean squared error; the tensors are those of the built-in task of this name."""

    def tensors(self, features):
        return [("w", [features]), ("b", [1])]

    def summed(self, theta, shard, rows):
        """The sum over the rows of loss and gradient."""
        *w, b = theta
        loss, gradient = 0.0, [0.0] * len(theta)
        for i in rows:
            residual = sum(wi * xi for wi, xi in zip(w, shard.x[i], strict=True)) + b - shard.y[i]
            loss += residual**2
            for j, xj in enumerate([*shard.x[i], 1.0]):
                gradient[j] += 2 * residual * xj
        return loss, gradient


class Constant:
    """`size` parameters that all approach the mean label: small work in a vector of many chunks."""

    def __init__(self, size):
        self._size = size

    def tensors(self, features):  # noqa: ARG002
        return [("left", [2, self._size // 4]), ("right", [self._size - self._size // 4 * 2])]

    def summed(self, theta, shard, rows):
        labels = [shard.y[i] for i in rows]
        n, total = len(labels), sum(labels)
        return sum((theta[0] - y) ** 2 / 2 for y in labels), [n * value - total for value in theta]


class Worker:
    """One stream, one job."""

    def __init__(self, address, name, path):
        self._name, self._path = name, path
        self._out = queue.SimpleQueue()
        self._stub = rpc.TrainingStub(grpc.insecure_channel(address))
        self._over = threading.Event()
        self._shards, self._moments, self._theta = {}, None, array("d")

    def run(self):
        self._send(join=pb.Join(protocol=1, worker=self._name, host="elsewhere"))
        for message in self._stub.Train(iter(self._out.get, None)):
            kind = message.WhichOneof("kind")
            getattr(self, f"on_{kind}")(getattr(message, kind), message.payload)
        self._over.set()

    def _send(self, payload=b"", **kind):
        self._out.put(pb.WorkerMessage(payload=payload, **kind))

    def on_welcome(self, welcome, _payload):
        assert welcome.protocol == 1
        self._chunk_bytes = welcome.chunk_bytes
        print("joined", flush=True)

    def on_job(self, started, _payload):
        self._job_file = json.loads(started.job_json)
        self._type = {"float32": "f", "float64": "d"}[self._job_file["train"]["dtype"]]
        use, options = self._job_file["task"]["use"], self._job_file["task"]["options"]
        self._task = Constant(**options) if use == "constant" else LinearRegression()
        threading.Thread(target=self._heartbeats, args=(started.heartbeat_s,), daemon=True).start()
        self._send(pull=pb.PullWork(job_id=started.job_id))

    def _heartbeats(self, every_s):
        while not self._over.wait(every_s / 2):
            self._send(heartbeat=pb.Heartbeat())

    def on_census(self, census, payload):
        if payload:
            self._moments = (census.rows, from_bytes("d", payload))
            for shard in self._shards.values():
                shard.standardize(*self._moments)

    def on_layout(self, layout, _payload):
        size = sum(math.prod(tensor.shape) for tensor in layout.tensors)
        self._theta = array(self._type, bytes(size * array(self._type).itemsize))

    def on_work(self, work, payload):
        if payload:
            values = from_bytes(self._type, payload)
            self._theta[work.offset : work.offset + len(values)] = values
        for position, assignment in enumerate(work.assignments, start=1):
            pull = position == len(work.assignments)
            if assignment.kind == pb.Assignment.GRADIENT:
                self._gradient(work.version, assignment, pull)
                continue
            if assignment.kind == pb.Assignment.SURVEY:
                self._survey(assignment)
            else:
                self._initial(assignment)
            if pull:
                self._send(pull=pb.PullWork())

    def _survey(self, assignment):
        shard = self._shards[assignment.shard] = Shard(self._path, self._job_file, assignment.shard)
        survey = pb.Survey(
            shard=assignment.shard, epoch=assignment.epoch, rows=len(shard.y), features=shard.features, classes=0
        )
        wanted = self._job_file["data"]["standardize"]
        self._send(survey=survey, payload=to_bytes("d", shard.moments()) if wanted else b"")

    def _initial(self, assignment):
        tensors = self._task.tensors(self._shards[assignment.shard].features)
        zeros = [0.0] * sum(math.prod(shape) for _, shape in tensors)
        for offset, chunk in self._chunks(zeros):
            declared = [pb.Tensor(name=name, shape=shape) for name, shape in tensors] if offset == 0 else []
            initial = pb.Initial(shard=assignment.shard, epoch=assignment.epoch, tensors=declared, offset=offset)
            self._send(initial=initial, payload=chunk)

    def _gradient(self, version, assignment, pull):
        if assignment.shard not in self._shards:
            shard = self._shards[assignment.shard] = Shard(self._path, self._job_file, assignment.shard)
            if self._moments:
                shard.standardize(*self._moments)
        shard = self._shards[assignment.shard]
        rows = shard.batch(assignment.step)
        loss, gradient = self._task.summed(self._theta, shard, rows)
        chunks = self._chunks(gradient)
        for number, (offset, chunk) in enumerate(chunks, start=1):
            push = pb.Push(
                shard=assignment.shard,
                epoch=assignment.epoch,
                step=assignment.step,
                version=version,
                samples=len(rows),
                loss=loss / len(rows),
                offset=offset,
                pull=pull and number == len(chunks),
            )
            self._send(push=push, payload=chunk)

    def _chunks(self, values):
        data = to_bytes(self._type, values)
        itemsize = array(self._type).itemsize
        starts = range(0, len(data), self._chunk_bytes)
        return [(start // itemsize, data[start : start + self._chunk_bytes]) for start in starts]

    def on_refusal(self, refusal, _payload):
        print(f"refused: {refusal.reason}", file=sys.stderr)

    def on_ended(self, ended, _payload):
        print(ended.status, flush=True)
        sys.stdin.read()
        self._send(leave=pb.Leave(reason="one job is enough"))
        self._out.put(None)


def to_bytes(kind, values):
    """Little-endian bytes of float32 (f) or float64 (d) values."""
    values = array(kind, values)
    if sys.byteorder == "big":
        values.byteswap()
    return values.tobytes()


def from_bytes(kind, data):
    """The values in little-endian bytes."""
    values = array(kind, data)
    if sys.byteorder == "big":
        values.byteswap()
    return values


if __name__ == "__main__":
    Worker(*sys.argv[2:]).run()
    assert not any(name.split(".")[0] in ("paramserver", "numpy") for name in sys.modules)
