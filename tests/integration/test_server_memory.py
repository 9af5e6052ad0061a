"""The server of a whole run holds two models and not more, whatever the number of clients: seen from the system, in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fedmap.config import PROJECT

NUMBERS = 20_000_000  # of the model: four clients' updates are more than stay in memory
MODEL = f"""
import torch
from torch import nn
from examples.digits.model import TwoSensorNet

class Wide(TwoSensorNet):
    def __init__(self, hidden=32, output_size=10):
        super().__init__(hidden, output_size)
        self.bulk = nn.ParameterList(torch.zeros({NUMBERS // 20}) for _ in range(20))

    def forward(self, batch):
        return super().forward(batch) + sum(part[0] for part in self.bulk)
"""
RUN = """
import sys, threading
from pathlib import Path

def anonymous():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))

class Watch(threading.Thread):
    peak, over = 0, False

    def run(self):
        while not self.over:
            self.peak = max(self.peak, anonymous())
            threading.Event().wait(0.002)

if __name__ == "__main__":
    import fedmap.compiled, fedmap.report.plots
    from fedmap.flower import federation
    from tests.federations import run_locally

    watch, begin = Watch(daemon=True), federation.Server.__post_init__

    def began(server):
        global base
        base = anonymous()
        watch.start()
        begin(server)

    federation.Server.__post_init__ = began
    settings = ("model._target_=wide_model.Wide", "strategy=fedavg", "num_rounds=3", "training.num_updates=1", "training.optimizer=sgd")
    history = run_locally(Path(sys.argv[1]), *settings, workers=1)
    watch.over = True
    assert [len(record.clients) for record in history.rounds] == [0, 4, 4, 4], history
    print("peak", watch.peak - base)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_a_run_takes_two_models(tmp_path: Path) -> None:
    (tmp_path / "wide_model.py").write_text(MODEL)
    (tmp_path / "run.py").write_text(RUN)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join((str(tmp_path), str(PROJECT)))}
    done = subprocess.run(
        [sys.executable, tmp_path / "run.py", tmp_path / "run"], cwd=PROJECT, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = int(done.stdout.split("peak ")[-1]) / (4 * NUMBERS)
    assert 1.5 < found < 2.75, f"{found:.2f} models beside what the process had before"
