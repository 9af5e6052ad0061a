"""The peer's side of the pipe: runs `fedops.server.fedmap.strategy.ModalityAwareAggregation` in its own environment.

    .peer/venv/bin/python benchmarks/peer_driver.py

Started by `benchmarks.peer`; it imports nothing of this project. Messages on standard input and output are a line of JSON
and the float32 numbers that it announces, so that two versions of NumPy need not agree on anything else.

    parent: {"do": "start", "shapes", "options", "seed", "threads", "processor"}   a new federation
    parent: {"do": "round", "round_index", "clients": [{"num_examples", "metrics"}, ...]} + each client's arrays
    child:  {"do": "evaluate"} + arrays                      for every candidate; answered by {"score", "loss"}
    child:  {"do": "done", "seconds"} + arrays               seconds: without the waiting for scores

The strategy runs as it is. Two things are added around it, neither of which it can notice: its studies get a sampler
with a seed (it makes them without), and torch's generator is seeded before its student is drawn.
"""

from __future__ import annotations

import json
import os
import sys
import time

import flwr
import numpy as np
import optuna
import torch
from flwr.common import Code, FitRes, Status, ndarrays_to_parameters, parameters_to_ndarrays

pipe_in = sys.stdin.buffer
pipe_out = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # the strategy prints


def send(header, arrays=()):
    """One line of JSON, then the arrays end to end."""
    pipe_out.write(json.dumps(header).encode() + b"\n")
    for array in arrays:
        pipe_out.write(np.ascontiguousarray(array, dtype=np.float32).tobytes())
    pipe_out.flush()


def receive():
    """One line of JSON."""
    line = pipe_in.readline()
    if not line:
        sys.exit(0)
    return json.loads(line)


def receive_arrays(shapes):
    """Arrays of these shapes."""
    arrays = []
    for shape in shapes:
        size = int(np.prod(shape, dtype=np.int64)) * 4
        arrays.append(np.frombuffer(pipe_in.read(size), dtype=np.float32).reshape(shape))
    return arrays


class Clock:
    """Seconds spent, without the waiting for the parent; by the wall or by the processor."""

    def __init__(self):
        self.now = time.perf_counter
        self.start()

    def start(self):
        self.waited = 0.0
        self.started = self.now()

    def seconds(self):
        return self.now() - self.started - self.waited


def main():
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    create_study, sampler_seeds = optuna.create_study, [0]

    def seeded_study(*args, **kwargs):
        sampler_seeds[0] += 1
        return create_study(*args, sampler=optuna.samplers.TPESampler(seed=sampler_seeds[0]), **kwargs)

    optuna.create_study = seeded_study
    from fedops.server.fedmap.strategy import ModalityAwareAggregation

    clock = Clock()

    def evaluate(server_round, arrays, config):
        left = clock.now()
        send({"do": "evaluate"}, arrays)
        answer = receive()
        clock.waited += clock.now() - left
        return answer["loss"], {"test_f1_macro": answer["score"]}

    while True:
        order = receive()
        if order["do"] == "start":
            shapes = [tuple(shape) for shape in order["shapes"]]
            torch.manual_seed(order["seed"])
            torch.set_num_threads(order["threads"])
            sampler_seeds[0] = order["seed"] * 1000
            clock.now = time.process_time if order["processor"] else time.perf_counter
            strategy = ModalityAwareAggregation(evaluate_fn=evaluate, **order["options"])
            send({"do": "ready", "flwr": flwr.__version__, "numpy": np.__version__, "optuna": optuna.__version__})
            continue
        results = []
        for client in order["clients"]:
            parameters = ndarrays_to_parameters(receive_arrays(shapes))
            metrics = {name: float(value) for name, value in client["metrics"].items()}
            results.append((None, FitRes(Status(Code.OK, ""), parameters, client["num_examples"], metrics)))
        clock.start()
        parameters, _ = strategy.aggregate_fit(order["round_index"], results, [])
        seconds = clock.seconds()
        send({"do": "done", "seconds": seconds}, parameters_to_ndarrays(parameters))


if __name__ == "__main__":
    main()
