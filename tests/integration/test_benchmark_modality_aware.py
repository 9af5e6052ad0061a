"""`python -m benchmarks.modality_aware --quick`, and the real peer where its environment was made."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.harness import main
from benchmarks.make_peer_venv import python_of
from benchmarks.modality_aware import arguments, measure
from benchmarks.peer import Peer, PeerProcess
from fedmap.records import ClientSignals, ClientUpdate

needs_peer = pytest.mark.skipif(
    not python_of().is_file(), reason="the peer has no environment; make it: python -m benchmarks.make_peer_venv"
)


def test_quick_writes_figures_and_plots(tmp_path: Path) -> None:
    out = tmp_path / "quick.json"
    argv = ["--quick", "--out", str(out), "--work", str(tmp_path / "work"), "--strategies", "fedavg", "teacher"]
    assert main("modality_aware", measure, arguments=arguments, argv=argv) == 0
    result = json.loads(out.read_text())
    assert {key.split(".")[0] for key in result["figures"]} == {"iid", "modality", "liar"}
    assert 0 < result["figures"]["iid.teacher.tuned"]["mean"] < 1
    assert (tmp_path / "quick_scores.png").stat().st_size > 1000
    assert (tmp_path / "quick_weights.png").stat().st_size > 1000
    weights = result["runs"]["liar"]["teacher"]["weights"]
    assert len(weights) == result["settings"]["rounds"]
    assert all(sum(shares) == pytest.approx(1.0, abs=0.01) for shares in weights)


def _updates() -> list[ClientUpdate]:
    rng = np.random.default_rng(0)
    return [
        ClientUpdate(
            client_id=k,
            round_index=1,
            weights={"w": np.full((2, 3), float(k), np.float32), "b": rng.normal(size=4).astype(np.float32)},
            num_examples=10 + k,
            num_steps=1,
            signals=ClientSignals(
                f1_before=0.1, f1_after=0.2 + 0.1 * k, validation_loss=0.5, gradient_norm=1.0, modality_shares={"text": 1.0}
            ),
        )
        for k in range(3)
    ]


@pytest.mark.slow
@needs_peer
def test_the_peer_mixes_the_clients_by_our_scores_and_gives_the_same_twice() -> None:
    updates = _updates()
    process = PeerProcess()
    try:
        results = []
        for _ in range(2):
            asked: list[float] = []

            def judge(weights: dict[str, np.ndarray], asked: list[float] = asked) -> tuple[float, float]:
                asked.append(float(weights["w"].mean()))
                return min(max(asked[-1] / 2, 0.0), 1.0), 0.0

            peer = Peer(process, judge, trials=3, seed=5)
            state, report = peer.aggregate(peer.init(updates[0].weights), updates)
            assert len(asked) == 3 + 2  # its trials, its student and its probe
            assert peer.evaluations == [5]
            assert peer.seconds[0] > 0
            assert report.round_index == state.round_index == 1
            results.append(state.weights)
        assert 0.0 < results[0]["w"].mean() < 2.0
        assert np.ptp(results[0]["w"]) < 1e-6
        np.testing.assert_array_equal(results[0]["b"], results[1]["b"])
        assert process.versions["numpy"].startswith("1.26")
    finally:
        process.close()
