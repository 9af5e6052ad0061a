"""Numbers per client that weights are made of: the teacher's seven features and the student's ten.

Each has a part that the server verified itself (the client's own model on the server's validation rows, the size of its
change) and a part that the client claims. Claims can never move a client's logit by more than `claim_limit`.

| feature            | verified by the server            | claimed by the client                  |
| ---                | ---                               | ---                                    |
| performance        | score of the client's own model   | lambda p_k + (1 - lambda) (p_k - before) |
| log size           |                                   | log(n_k / geometric mean of n)         |
| diversity          |                                   | share of labels that occur             |
| modality           |                                   | mean share of rows with each modality  |
| -loss              | loss of the client's own model    | validation loss                        |
| -gradient norm     | norm of the change, w_k - w_t     | mean norm of its gradients             |
| balance            |                                   | -label imbalance                       |

The student's further three are the verified performance, loss and norm alone. A user's own signal adds a feature to both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fedmap.aggregators.modality_aware.checks import Claims
from fedmap.aggregators.modality_aware.objective import Verdict
from fedmap.guard.signals import HIGHER

FloatArray = npt.NDArray[np.float64]

FEATURES = ("performance", "log-size", "diversity", "modality", "loss", "gradient-norm", "balance")
NUM_META = len(FEATURES) + 3

# Differences between clients smaller than these are noise, however alike the clients are otherwise: with two clients
# every difference is one standard deviation.
_FLOORS: Mapping[str, float] = {"score": 0.05, "log": 0.25, "share": 0.1}


def z_scores(values: FloatArray, floor: float, clip: float) -> FloatArray:
    """(x - mean) / max(standard deviation, floor), clipped to [-clip, clip]; all zero for a single client."""
    centred = values - values.mean()
    scores: FloatArray = np.clip(centred / max(float(values.std()), floor), -clip, clip)
    return scores


@dataclass(frozen=True)
class Features:
    """The clients' features in one round.

    Attributes:
        verified: [K, F] what the server measured, in [-z_clip, z_clip]; zero where it cannot.
        claimed: [K, F] what the clients say, in [-z_clip, z_clip].
        claim_limit: B: what is claimed moves a logit by at most B up or down.
    """

    verified: FloatArray
    claimed: FloatArray
    claim_limit: float

    def logits(self, alphas: FloatArray) -> FloatArray:
        """[K] features @ alphas, the claims' part limited to [-B, B]."""
        limited: FloatArray = self.verified @ alphas + np.clip(self.claimed @ alphas, -self.claim_limit, self.claim_limit)
        return limited

    def meta(self, with_claims: bool = True) -> FloatArray:
        """[K, F + 3] what the student sees; without claims their part is zero."""
        columns = [FEATURES.index(name) for name in ("performance", "loss", "gradient-norm")]
        together = self.verified + (self.claimed if with_claims else 0.0)
        return np.concatenate([together, self.verified[:, columns]], axis=1)


def make_features(
    claims: Claims,
    num_examples: Sequence[int],
    verdicts: Sequence[Verdict],
    update_norms: Sequence[float],
    *,
    perf_mix_lambda: float,
    z_clip: float,
    claim_limit: float,
    custom: Mapping[str, str],
) -> Features:
    """Features from checked claims and verified verdicts; every argument is in the order of the K updates."""
    values = claims.values
    performance = perf_mix_lambda * values["f1_after"] + (1 - perf_mix_lambda) * (values["f1_after"] - values["f1_before"])
    shares = [values[name] for name in values if name.startswith("share.")]
    # the mean of the modalities' shares; a federation of one modality has nothing to tell clients apart by
    modality = np.mean(shares, axis=0) if shares else np.zeros(len(verdicts))
    logs = np.log(np.asarray(num_examples, dtype=np.float64))

    def score(x: FloatArray, kind: str) -> FloatArray:
        return z_scores(x, _FLOORS[kind], z_clip)

    claimed = [
        score(performance, "score"),
        np.clip(logs - logs.mean(), -z_clip, z_clip),  # alpha 1 here alone is n_k / n: FedAvg's weights
        score(values["diversity"], "share"),
        score(modality, "share"),
        -score(np.log1p(values["validation_loss"]), "log"),
        -score(np.log1p(values["gradient_norm"]), "log"),
        -score(values["label_imbalance"], "share"),
    ]
    for name, better in custom.items():
        own = values[f"custom.{name}"]
        claimed.append(z_scores(own, 0.1 * float(np.abs(own).mean()) + 1e-12, z_clip) * (1 if better == HIGHER else -1))
    verified = np.zeros((len(verdicts), len(claimed)))
    verified[:, 0] = score(np.array([max(verdict.score, -1.0) for verdict in verdicts]), "score")
    verified[:, 4] = -score(np.log1p(np.array([min(verdict.loss, 1e9) for verdict in verdicts])), "log")
    verified[:, 5] = -score(np.log1p(np.minimum(np.asarray(update_norms, dtype=np.float64), 1e30)), "log")
    return Features(verified, np.stack(claimed, axis=1), claim_limit)


def softmax(logits: FloatArray) -> FloatArray:
    """exp(x) / sum exp(x), without overflow."""
    exps = np.exp(logits - logits.max())
    shares: FloatArray = exps / exps.sum()
    return shares
