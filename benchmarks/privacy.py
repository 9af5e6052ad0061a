"""What privacy costs: macro-F1 on the server's test rows by the noise multiplier, for both options, on movies dealt evenly.

FedAvg over frozen towers with a small head: the fewer numbers are trained, the less noise is added in all. Each federation starts from
the same weights and has the same rows for every noise multiplier. Epsilon is that of the client with fewest rows.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks.harness import Options, Result, Table, Target, main, median, spread
from benchmarks.modality_ground import SETTINGS, Ground, deal, read_movies
from fedmap.aggregators.fedavg import FedAvg
from fedmap.local.tensors import get_weights, layout_of, set_weights
from fedmap.local.training import evaluate
from fedmap.privacy import Privacy
from fedmap.privacy.accounting import Training, epsilon
from fedmap.privacy.secret import derived
from fedmap.scoring import counts_at, tuned_thresholds
from fedmap.simulation import simulate

HEAD = ["model.image_output_dim=32", "model.fusion_output_dim=64", "model.dropout=0", "runtime=local"]
REAL = ["model=minilm_efficientnet_lite0", "dataset.image_size=224", *HEAD]
SYNTHETIC = ["model=minilm_efficientnet_lite0", "dataset.image_size=96", *HEAD]
QUICK = ["model=tiny", "model.freeze_bert=true", "model.freeze_vision=true", "dataset.image_size=32", *HEAD]
TRAINING = ["learning_rate=0.003", "batch_size=64", "num_epochs=1"]
ROUNDS, QUICK_ROUNDS = 8, 2
CASES = [
    Privacy(),
    *(Privacy("record", max_norm=1.0, noise_multiplier=z, noise_seed=0) for z in (0.3, 0.6, 1.0, 2.0)),
    *(Privacy("client", max_norm=1.0, noise_multiplier=z, noise_seed=0) for z in (0.003, 0.01, 0.1, 1.0)),
]


def measure(options: Options) -> Result:
    """Train every case with every seed."""
    quick, extra = options.quick, options.extra
    rounds = QUICK_ROUNDS if quick else ROUNDS
    overrides = [*(QUICK if quick else SYNTHETIC if extra.data is None else REAL), *TRAINING, f"num_rounds={rounds}"]
    scores: dict[str, list[float]] = {}
    spent: dict[str, float] = {}
    untrained: list[float] = []
    with tempfile.TemporaryDirectory() as temporary:
        movies = read_movies(extra.work or Path(temporary), extra.data, 200 if quick else None, overrides)
        for seed in options.seed_list():
            ground = deal(movies, SETTINGS["iid"], seed)
            untrained.append(tuned_score(ground))
            for case in CASES if not quick else [CASES[0], CASES[2], CASES[-1]]:
                name = name_of(case)
                scores.setdefault(name, []).append(trained(ground, case, rounds, seed))
                fewest = min(len(client.splits["train"]) for client in ground.clients)
                training = Training(ground.options.batch_size, ground.options.num_epochs, None)
                spent[name] = epsilon(case, training, rounds, fewest) if case.wanted else float("inf")
                print(f"seed {seed} {name}: {scores[name][-1]:.3f}, epsilon {spent[name]:.3g}", flush=True)
    rows = [("untrained", "", spread(untrained)), *((name, f"{spent[name]:.3g}", spread(found)) for name, found in scores.items())]
    figures = {f"macro_f1.{name}": found for name, found in scores.items()}
    return Result(
        settings={"rounds": rounds, "clients": len(ground.clients), "overrides": [o for o in overrides if "/" not in o], "delta": 1e-5},
        figures={**figures, "macro_f1.untrained": untrained, **{f"epsilon.{n}": [e] for n, e in spent.items() if e < float("inf")}},
        tables=[Table("Test macro-F1 at thresholds tuned on validation rows", ("privacy", "epsilon", "macro-F1"), rows)],
        targets=[Target("training without privacy beats the untrained model", median(scores["none"]) - median(untrained), 0.0, ">")],
    )


def name_of(case: Privacy) -> str:
    """For tables."""
    return f"{case.name}, noise {case.noise_multiplier:g}" if case.wanted else "none"


def trained(ground: Ground, privacy: Privacy, rounds: int, seed: int) -> float:
    """The last model's score."""
    clients = [replace(client, privacy=privacy, secret=derived(b"", seed)) for client in ground.clients]
    initial = get_weights(ground.model)
    aggregator = FedAvg()
    state, _ = simulate(aggregator, aggregator.init(initial, layout_of(ground.model)), clients, rounds, seed=seed)
    set_weights(ground.model, state.weights)
    score = tuned_score(ground)
    set_weights(ground.model, initial)
    return score


def tuned_score(ground: Ground) -> float:
    """Test macro-F1 of the model as it is."""
    thresholds = tuned_thresholds(evaluate(ground.model, ground.validation, ground.options))
    assert thresholds is not None
    return counts_at(evaluate(ground.model, ground.test, ground.options), thresholds).macro_f1


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", type=Path, help="a folder with movies.csv and posters/; default: made-up movies")
    parser.add_argument("--work", type=Path, help="keep data and features here, for the next start")


def run(argv: Sequence[str] | None = None) -> int:
    """The command."""
    return main("privacy", measure, description=__doc__ or "", arguments=_arguments, argv=argv)


if __name__ == "__main__":
    sys.exit(run())
