"""One contestant of `benchmarks.aggregation`: the published FedOps strategy, in its own environment and process.

    .peer/venv/bin/python benchmarks/aggregation_peer.py

It imports nothing of this project but `benchmarks/aggregation_clock.py`, which imports nothing but the standard library. The strategy runs as it
is, with 4 candidates, and its evaluation function answers at once, so that nothing counts but what it does with the clients' models:
reading them from the messages, four candidates, the student's mix, the probe towards it and the mix that is returned.
"""

import os
import sys
import tempfile

import flwr
import numpy as np
import optuna
import torch
from aggregation_clock import Clock, serve
from flwr.common import Code, FitRes, Parameters, Status, ndarray_to_bytes

CANDIDATES = 4


def prepare(order):
    """Messages of K clients. They share one set of bytes, which saves memory; the strategy copies each into tensors of its own."""
    os.chdir(tempfile.mkdtemp())  # it writes its student into the working directory
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    torch.set_num_threads(1)  # the waiting of further threads would count as processor time
    from fedops.server.fedmap.strategy import ModalityAwareAggregation

    rng = np.random.default_rng(0)
    tensors = [
        ndarray_to_bytes((rng.random(shape, dtype=np.float32) - 0.5).astype(dtype) if dtype == "float32" else np.ones(shape, dtype))
        for shape, dtype in order["tensors"]
    ]
    parameters = Parameters(tensors, "numpy.ndarray")
    metrics = {"p_k": 0.3, "c_k": 0.1, "diversity": 1.0, "val_loss": 0.5, "grad_norm": 1.0, "imbalance_ratio": 0.2}
    results = [
        (None, FitRes(Status(Code.OK, ""), parameters, 100 + 10 * k, {**metrics, "p_k": 0.3 + 0.01 * k})) for k in range(order["clients"])
    ]
    strategy = ModalityAwareAggregation(
        evaluate_fn=lambda *_: (0.5, {"test_f1_macro": 0.5}), n_trials_per_round=CANDIDATES, aggregator_path="student.pth"
    )
    versions = {"flwr": flwr.__version__, "numpy": np.__version__, "torch": torch.__version__}
    return {"peer": lambda: strategy.aggregate_fit(1, results, [])}, versions


if __name__ == "__main__":
    serve(prepare, Clock(), sys.stdin.buffer)
