"""The peer's side of `benchmarks.wire`: what the published application sends, by its own code, in its own environment.

    .peer/venv/bin/python benchmarks/peer_wire.py < tensors.json

Standard input: {"tensors": [[name, shape, dtype], ...]}, a model's whole state, whether it is trained or not. The payload is
what `fedops.client.parameter_contract` takes of it; it goes into Flower's messages of the two exchanges of a round (train: model
down, model up; evaluate: model down, numbers up), serialised as its gRPC connection serialises them. The numbers do not
matter to the sizes: nothing is compressed.

Standard output: one line of JSON with the bytes of each message, and the versions.
"""

from __future__ import annotations

import importlib.metadata
import json
import sys
from collections import OrderedDict

import torch
from fedops.client.parameter_contract import get_parameters
from flwr.common import Code, EvaluateIns, EvaluateRes, FitIns, FitRes, Status, ndarrays_to_parameters, serde
from flwr.proto.transport_pb2 import ClientMessage, ServerMessage

FIT = {"batch_size": 32, "local_epochs": 1, "num_rounds": 10}  # what its server's fit_config says
METRICS = {  # what a client of the published use case reports: loss, accuracy and four scores, of two splits
    f"{split}_{name}": 0.5 for split in ("train", "val") for name in ("loss", "accuracy", "f1_macro", "f1_micro", "f1_weighted", "hamming")
}


class Model(torch.nn.Module):
    """A model by the tensors of its state."""

    def __init__(self, tensors):
        super().__init__()
        self.tensors = OrderedDict((name, torch.zeros(shape, dtype=getattr(torch, kind))) for name, shape, kind in tensors)

    def state_dict(self, *args, **kwargs):
        """The whole state, as of any other model."""
        return self.tensors


def main():
    """Read the tensors, make the messages, say their sizes."""
    payload = get_parameters(Model(json.load(sys.stdin)["tensors"]), "Pytorch")
    parameters = ndarrays_to_parameters(payload)
    done = Status(Code.OK, "Success")
    train = {
        "train-down": ServerMessage(fit_ins=serde.fit_ins_to_proto(FitIns(parameters, FIT))).ByteSize(),
        "train-up": ClientMessage(fit_res=serde.fit_res_to_proto(FitRes(done, parameters, 100, METRICS))).ByteSize(),
        "evaluate-down": ServerMessage(evaluate_ins=serde.evaluate_ins_to_proto(EvaluateIns(parameters, {"batch_size": 32}))).ByteSize(),
        "evaluate-up": ClientMessage(evaluate_res=serde.evaluate_res_to_proto(EvaluateRes(done, 0.5, 100, METRICS))).ByteSize(),
    }
    versions = {name: importlib.metadata.version(name) for name in ("fedops", "flwr", "torch")}
    print(json.dumps({"bytes": train, "tensors": len(payload), "numbers": sum(a.size for a in payload), "versions": versions}))


main()
