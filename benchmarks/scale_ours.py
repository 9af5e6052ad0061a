"""One run of the scale benchmark with FedMAP: `python -m benchmarks.scale_ours JOB OUT`.

The run is the program's own from the configuration on: `runtime=local`, FedAvg, events, results, checkpoints and report, everything that
`python server_main.py` does but the web page.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.scale_clock import Clock, Job
from fedmap.config import compose_and_resolve, parse, save
from fedmap.history import RoundRecord
from fedmap.progress import Progress

COMMON = (
    "runtime=local",
    "model=digits",
    "dataset=digits",
    "strategy=fedavg",
    "tracking=none",
    "training.device=cpu",
    "training.optimizer=sgd",
    "training.weight_decay=0",
    "training.clip_norm=0",
    "training.evaluation_batch_size=1000",
    "service.enabled=false",
    "hooks.after_round=null",
)

HEADS = {  # by task, the configuration of a fusion model whose towers are frozen
    "head": ("model=minilm_efficientnet_lite0", "model.fusion_output_dim=256", "dataset=mm_imdb", "dataset.image_size=96"),
    "tiny-head": ("model=tiny", "model.freeze_bert=true", "model.freeze_vision=true", "dataset=mm_imdb", "dataset.image_size=32"),
}
ADAPTIVE = ("training.optimizer=adamw", "training.weight_decay=0.01", "training.clip_norm=1")  # the head's own training, not plain SGD


class Watch(Progress):
    """A progress that looks at the clock."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def round_done(self, record: RoundRecord) -> None:
        """See `Progress`; round 0 is the initial model's, and ends when the first round begins."""
        assert record.test is not None
        tuned = record.validation_tuned  # of a model of many labels, whose probabilities seldom reach 0.5 at first
        self.clock.tick(tuned.macro_f1 if tuned else record.test.micro_f1)


def tree_of(job: Job) -> dict[str, Any]:
    """The run's configuration, as from a file in conf/model and one in conf/dataset."""
    settings = {
        "random_seed": job.seed,
        "num_rounds": job.rounds,
        "batch_size": job.batch_size,
        "learning_rate": job.learning_rate,
        "runtime.workers": job.workers,
        "runtime.clients_at_once": job.at_once,
    }
    overrides = [f"{key}={value}" for key, value in settings.items()]
    same = {"num_clients": job.clients, "rows": job.rows, "seed": job.seed}
    if job.features:
        tree = compose_and_resolve("config", [*COMMON, *HEADS[job.task], *ADAPTIVE, *overrides])
        tree["model"]["_target_"] = "benchmarks.scale_movies.Head"
        tree["dataset"] = {"_target_": "benchmarks.scale_movies.ManyMovies", "features": job.features, **same}
        return tree
    tree = compose_and_resolve("config", [*COMMON, *overrides])
    tree["model"] = {"_target_": "benchmarks.scale_ground.Classifier", "task": job.task, "output_size": None}
    tree["dataset"] = {
        "_target_": "benchmarks.scale_ground.ManyClients",
        "task": job.task,
        "validation_rows": job.validation_rows,
        **same,
    }
    return tree


def run(job: Job, clock: Clock, place: Path) -> None:
    """The whole run, in the folder `place`."""
    from fedmap.flower import doors
    from fedmap.flower.events import EVENTS, EventProgress, Told
    from fedmap.flower.federation import Server
    from fedmap.outputs import RunFolder

    folder = place / "run"
    tree = tree_of(job)
    save(tree, folder / "run.yaml")
    progress = Told(EventProgress(folder / EVENTS), Watch(clock))
    doors._serve_locally(parse(tree), folder / "run.yaml", RunFolder(folder), progress, Server)


def main() -> None:
    """Run the job that the command line names and write what it took."""
    job, out = Job(**json.loads(sys.argv[1])), Path(sys.argv[2]).resolve()
    clock = Clock()
    with tempfile.TemporaryDirectory(prefix="fedmap-scale-") as place:
        os.chdir(place)
        run(job, clock, Path(place))
    clock.write(job, out)


if __name__ == "__main__":
    main()
