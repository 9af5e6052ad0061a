"""Office-31, three domains as three clients: Individual, FedMAP, FedBN, FedProx and FedAvg with a five-layer CNN.

    python -m benchmarks.office31 --data /path/to/office31      the real folders
    python -m benchmarks.office31                               a generated stand-in that proves the code and nothing else

The protocol is that of Zhang et al. (FedMAP, 2024), table 2, with the network of Li et al. (FedBN, 2021): five convolutions, each
with BatchNorm and ReLU, SGD, 70 % of every domain for training, 30 % scored. What the paper does not say (learning rates, mu, sigma)
is chosen for every method from as many candidates, on a fifth of the training rows that is then trained on; never on the 30 %.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from benchmarks.harness import Options, Result, Table, main, spread
from benchmarks.office_domains import DOMAINS, Domain, Office, as_split, generate_office, read_office, split_domain
from fedmap.aggregators.base import Aggregator
from fedmap.aggregators.fedavg import FedAvg
from fedmap.aggregators.fedbn import FedBN
from fedmap.aggregators.fedmap import FedMAP
from fedmap.aggregators.fedprox import FedProx
from fedmap.aggregators.individual import Individual
from fedmap.data.base import Batch
from fedmap.errors import ConfigError
from fedmap.local.client import LocalClient
from fedmap.local.rules import Memory
from fedmap.local.tensors import get_weights, layout_of
from fedmap.local.training import TrainingOptions
from fedmap.randomness import generator, torch_seed
from fedmap.simulation import simulate

PAPER = {  # table 2 of the FedMAP paper, in percent, in the order of DOMAINS
    "individual": (65.80, 68.98, 85.57),
    "fedmap": (70.34, 86.04, 95.54),
    "fedbn": (70.29, 83.98, 82.52),
    "fedprox": (64.37, 40.22, 75.52),
    "fedavg": (64.86, 42.22, 77.49),
}
METHODS = tuple(PAPER)


class FiveLayerCNN(nn.Module):
    """Five convolutions with BatchNorm and ReLU in the widths of AlexNet, then an output layer.

    Large images (128 pixels and more) meet AlexNet's 11 x 11 convolution of stride 4 first, small ones 5 x 5 without stride.
    """

    def __init__(self, num_classes: int, image_size: int, width: float = 1.0) -> None:
        super().__init__()
        self.num_classes = num_classes
        a, b, c, d, e = (max(round(width * n), 1) for n in (64, 192, 384, 256, 256))
        large = image_size >= 128
        self.features = nn.Sequential(
            *_layer(3, a, 11 if large else 5, stride=4 if large else 1),
            nn.MaxPool2d(3, 2, padding=1),
            *_layer(a, b, 5),
            nn.MaxPool2d(3, 2, padding=1),
            *_layer(b, c, 3),
            *_layer(c, d, 3),
            *_layer(d, e, 3),
            nn.MaxPool2d(3, 2, padding=1),
            nn.AdaptiveAvgPool2d(4),
        )
        self.head = nn.Linear(e * 16, num_classes)

    def forward(self, batch: Batch) -> torch.Tensor:
        """Logits [B, C] of images [B, 3, S, S]."""
        logits: torch.Tensor = self.head(self.features(batch["image"]).flatten(start_dim=1))
        return logits

    def loss(self, logits: torch.Tensor, batch: Batch) -> torch.Tensor:
        """Mean cross-entropy with one-hot labels."""
        return nn.functional.cross_entropy(logits, batch["labels"])

    def decide(self, logits: npt.NDArray[np.float32]) -> npt.NDArray[np.bool_]:
        """[n, C], true at the largest logit."""
        return np.eye(self.num_classes, dtype=bool)[logits.argmax(axis=1)]


def _layer(inputs: int, outputs: int, kernel: int, stride: int = 1) -> tuple[nn.Module, nn.Module, nn.Module]:
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2)
    return convolution, nn.BatchNorm2d(outputs), nn.ReLU()


@dataclass(frozen=True)
class Study:
    """What all methods have in common.

    Attributes:
        rounds: of communication.
        epochs: local epochs per round.
        batch_size: rows per step.
        image_size: pixels of a side.
        width: of the network, 1 is AlexNet's.
        device: torch device.
        learning_rates: candidates for the methods without a number of their own.
        mus: FedProx's candidates.
        sigmas: FedMAP's candidates.
    """

    rounds: int
    epochs: int
    batch_size: int
    image_size: int
    width: float
    device: str
    learning_rates: Sequence[float] = (0.01, 0.03, 0.1)
    mus: Sequence[float] = (0.001, 0.01, 0.1)
    sigmas: Sequence[float] = (0.3, 1.0, 3.0)


@dataclass(frozen=True)
class Choice:
    """A method with the numbers it runs with."""

    method: str
    learning_rate: float
    mu: float = 0.0
    sigma: float = 1.0

    def aggregator(self) -> Aggregator:  # type: ignore[type-arg]
        """The server half."""
        return {
            "individual": Individual(),
            "fedmap": FedMAP(sigma=self.sigma),
            "fedbn": FedBN(),
            "fedprox": FedProx(mu=self.mu),
            "fedavg": FedAvg(),
        }[self.method]


def accuracies(choice: Choice, parts: Mapping[str, tuple[Domain, Domain]], num_classes: int, study: Study, seed: int) -> list[float]:
    """Train one method and score every client with the model it uses, in percent, in the order of `DOMAINS`.

    Args:
        choice: the method and its numbers.
        parts: for each domain the rows to train on and the rows to score.
        num_classes: C.
        study: what the methods share.
        seed: of the initial model and the order of rows.
    """
    with torch_seed(seed, purpose="model"):
        model = FiveLayerCNN(num_classes, study.image_size, study.width).to(study.device)
    options = TrainingOptions(
        learning_rate=choice.learning_rate,
        num_epochs=study.epochs,
        batch_size=study.batch_size,
        optimizer="sgd",
        weight_decay=0.0,
        clip_norm=0.0,
        device=study.device,
    )
    clients = []
    for client_id, name in enumerate(DOMAINS):
        train, scored = (as_split(part, num_classes) for part in parts[name])
        nothing = replace(scored, images=scored.images[:0], labels=scored.labels[:0], modalities=scored.modalities[:0], row_ids=())
        clients.append(LocalClient(client_id, model, {"train": train, "val": nothing, "test": scored}, options, seed))
    aggregator = choice.aggregator()
    state, memories = simulate(aggregator, aggregator.init(get_weights(model), layout_of(model)), clients, study.rounds, seed=seed)
    broadcast = aggregator.broadcast(state)
    return [100 * client.evaluate_round(broadcast, memories.get(client.client_id, Memory()), "test").counts.micro_f1 for client in clients]


def choose(parts: Mapping[str, tuple[Domain, Domain]], num_classes: int, study: Study) -> dict[str, tuple[Choice, list[float]]]:
    """For every method the best of three candidates by mean accuracy on a part of the training rows, and all candidates' scores."""
    inner = {
        name: split_domain(train, num_classes, 0.8, generator(0, purpose="tuning-split", client_id=place))
        for place, (name, (train, _)) in enumerate(parts.items())
    }

    def best(candidates: Sequence[Choice]) -> tuple[Choice, list[float]]:
        scores = [statistics.fmean(accuracies(candidate, inner, num_classes, study, 0)) for candidate in candidates]
        return candidates[scores.index(max(scores))], scores

    chosen = {method: best([Choice(method, rate) for rate in study.learning_rates]) for method in ("individual", "fedbn", "fedavg")}
    # FedProx without its pull is FedAvg, FedMAP without its prior is Individual: they inherit those learning rates
    chosen["fedprox"] = best([Choice("fedprox", chosen["fedavg"][0].learning_rate, mu=mu) for mu in study.mus])
    chosen["fedmap"] = best([Choice("fedmap", chosen["individual"][0].learning_rate, sigma=sigma) for sigma in study.sigmas])
    return {method: chosen[method] for method in METHODS}


def measure(options: Options) -> Result:
    """The whole table."""
    torch.set_num_threads(int(options.extra.threads))
    office, study = prepare(options)
    num_classes = len(office.class_names)
    parts = {
        seed: {
            name: split_domain(domain, num_classes, 0.7, generator(seed, purpose="split", client_id=place))
            for place, (name, domain) in enumerate(office.domains.items())
        }
        for seed in options.seed_list()
    }
    chosen = choose(parts[0], num_classes, study)
    scores = {method: [accuracies(chosen[method][0], parts[s], num_classes, study, s) for s in options.seed_list()] for method in METHODS}
    figures = {f"{method}.{name}": [row[i] for row in rows] for method, rows in scores.items() for i, name in enumerate(DOMAINS)}
    figures |= {f"{method}.average": [statistics.fmean(row) for row in rows] for method, rows in scores.items()}
    body = [(name, *(spread(figures[f"{m}.{name}"], 2) for m in METHODS)) for name in (*DOMAINS, "average")]
    paper = [(name, *(PAPER[m][i] for m in METHODS)) for i, name in enumerate(DOMAINS)]
    paper.append(("average", *(round(statistics.fmean(PAPER[m]), 2) for m in METHODS)))
    columns = ("domain", *METHODS)
    label = "Office-31" if office.real else "GENERATED STAND-IN, NOT OFFICE-31"
    notes = (
        []
        if office.real
        else [
            "These are generated shapes, not Office-31: the table proves that the code runs and says nothing about the paper's figures.",
        ]
    )
    return Result(
        settings={
            "data": office.source,
            "real_images": office.real,
            "classes": num_classes,
            "rows": {name: len(domain.classes) for name, domain in office.domains.items()},
            "study": vars(study),
            "chosen": {method: vars(choice) for method, (choice, _) in chosen.items()},
            "tuning_scores": {method: candidates for method, (_, candidates) in chosen.items()},
        },
        figures=figures,
        tables=[
            Table(f"{label}: accuracy in percent on the held-out 30 %, mean ± standard deviation over seeds", columns, body),
            Table("Office-31 photographs, as printed in the paper", columns, paper),
        ],
        details={"stand_in": not office.real, "paper": {m: dict(zip(DOMAINS, values, strict=True)) for m, values in PAPER.items()}},
        notes=notes,
    )


def prepare(options: Options) -> tuple[Office, Study]:
    """The data and the settings that the command line asks for.

    Raises:
        ConfigError: --rounds or --image-size is too small.
        DataError: the folders are not what is expected.
    """
    asked = options.extra
    real = asked.data is not None
    size = asked.image_size or ((64 if options.quick else 128) if real else 32)
    rounds = asked.rounds or (2 if options.quick else 100 if real else 12)
    if size < 16 or rounds < 1:
        raise ConfigError(f"--image-size {size} and --rounds {rounds}: at least 16 pixels and 1 round are needed")
    study = Study(rounds, 1, 32 if real else 16, size, asked.width or (1.0 if real else 0.125), asked.device)
    if real:
        return read_office(asked.data, size), study
    if options.quick:
        return generate_office(size, rows={"amazon": 8, "webcam": 4, "dslr": 4}), study
    return generate_office(size), study


def arguments(parser: argparse.ArgumentParser) -> None:
    """The benchmark's own options."""
    parser.add_argument("--data", type=Path, help="folder with amazon/, webcam/ and dslr/; without it a generated stand-in is used")
    parser.add_argument("--rounds", type=int, help="rounds of communication (default 100 on real images, 12 on the stand-in)")
    parser.add_argument("--image-size", type=int, help="pixels of a side (default 128 on real images, 32 on the stand-in)")
    parser.add_argument("--width", type=float, help="width of the network, 1 is AlexNet's (default 1 on real images, 1/8 on the stand-in)")
    parser.add_argument("--device", default="cpu", help="torch device, e.g. cuda (default cpu)")
    parser.add_argument("--threads", type=int, default=1, help="processor threads for torch (default 1)")


if __name__ == "__main__":
    sys.exit(main("office31", measure, seeds=3, description=(__doc__ or "").split("\n\n")[0], arguments=arguments))
