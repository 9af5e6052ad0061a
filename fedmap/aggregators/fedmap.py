"""FedMAP, personalised federated learning by bi-level MAP optimisation (Zhang et al., 2024, algorithms 1 to 3).

    client k: theta_k <- argmin_theta 1/N_k sum_i -log P(y_i | phi(x_i; theta)) + 1/(2 sigma^2) ||theta - gamma||^2   (7)
              starting from its own theta_k of the round before                            (rule "map-prior")
              omega_k = P(Z_k | theta_k) * rho_gamma(theta_k)                                                          (8)
    server:   gamma <- sum_k omega_k theta_k / sum_j omega_j                                                           (9)

The model of client k is theta_k: it persists on the client and is what the client is scored with. gamma is the mean of a
Gaussian prior over the clients' models, and what a client that has none yet starts from.

What the paper leaves open, and what is done here (reasons in docs/algorithms/fedmap.md):
- omega underflows as a product, so clients send log P and the prior's energy, and the server takes a softmax of
  log omega = log P - energy (the density's constant is the same for all clients and cancels).
- `likelihood` says whether log P is the mean over the N_k examples, as in (7) (default), or their sum, as in (6) and (8).
- `temperature` divides log omega before the softmax; 1 is the paper.
- The covariance that the paper leaves to future work: sigma per layer or per coordinate, fixed, or learnt as the
  minimiser of the paper's upper-level problem (3) over the variance, Sigma = sum_k omega_k (theta_k - gamma)^2, shrunk
  towards the initial sigma^2.
- The prior may cover only some parameters; the others are shared as in FedAvg or stay personal.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from fedmap.aggregators.base import ServerState, check_choice, check_number, in_client_order, mean_weights
from fedmap.errors import ConfigError, UpdateError
from fedmap.records import Broadcast, ClientUpdate, RoundReport
from fedmap.weights import Array, Layout, Weights

VARIANCE = "prior-variance"
Vector = npt.NDArray[np.float64]


@dataclass(frozen=True)
class FedMAPState(ServerState):
    """The prior.

    Attributes:
        weights: gamma, the prior's mean.
        variances: sigma^2 of each covered parameter by name, float64: of shape [1], or of the parameter's own shape where
            the covariance is diagonal.
    """

    variances: Weights = field(default_factory=dict)


@dataclass(frozen=True)
class FedMAP:
    """A Gaussian prior over personal models, estimated from them.

    Attributes:
        sigma: the prior's standard deviation, > 0. Large: individual training; small: every client is held at gamma.
        likelihood: "mean" or "sum" of the examples' log-likelihoods in omega.
        temperature: > 0; large values weight clients equally, small ones choose the best.
        covariance: "isotropic" (one sigma), "layer" (one per named tensor) or "diagonal" (one per coordinate).
        layer_sigma: sigma by name prefix where it differs from `sigma`; the longest prefix counts. Not with "isotropic".
        learn_sigma: whether the variance follows the spread of the clients' models.
        sigma_strength: how many clients' worth of evidence the initial sigma counts when sigma is learnt, > 0.
        sigma_decay: sigma is multiplied by this after each round, > 0; 1 keeps it. Not with `learn_sigma`.
        prior_covers: "trainable" or "all" (the same, since frozen tensors always equal gamma), "head", or name prefixes.
        head_prefixes: the name prefixes that "head" stands for.
        uncovered: what happens to parameters outside the prior: "shared" (start from gamma every round) or "personal".
        warm_start: whether a client goes on from its own theta_k (the paper) or starts every round from gamma.
    """

    sigma: float = 1.0
    likelihood: str = "mean"
    temperature: float = 1.0
    covariance: str = "isotropic"
    layer_sigma: Mapping[str, float] = field(default_factory=dict)
    learn_sigma: bool = False
    sigma_strength: float = 1.0
    sigma_decay: float = 1.0
    prior_covers: str | Sequence[str] = "trainable"
    head_prefixes: Sequence[str] = ("fusion", "norm", "classifier", "head")
    uncovered: str = "shared"
    warm_start: bool = True

    def __post_init__(self) -> None:
        check_number("sigma", self.sigma, above=0, why="it is the prior's standard deviation; for no prior at all use strategy=individual")
        check_choice("likelihood", self.likelihood, ("mean", "sum"))
        check_number("temperature", self.temperature, above=0)
        check_choice("covariance", self.covariance, ("isotropic", "layer", "diagonal"))
        for prefix, sigma in self.layer_sigma.items():
            check_number(f"layer_sigma[{prefix!r}]", sigma, above=0)
        if self.layer_sigma and self.covariance == "isotropic":
            raise ConfigError("layer_sigma contradicts covariance=isotropic; set covariance=layer, or use sigma alone")
        check_number("sigma_strength", self.sigma_strength, above=0, why="without it a single round of alike clients would end learning")
        check_number("sigma_decay", self.sigma_decay, above=0)
        if self.learn_sigma and self.sigma_decay != 1:
            raise ConfigError("learn_sigma and sigma_decay both change sigma; keep one of them")
        if isinstance(self.prior_covers, str):
            check_choice("prior_covers", self.prior_covers, ("trainable", "all", "head"))
        check_choice("uncovered", self.uncovered, ("shared", "personal"))

    def init(self, weights: Weights, layout: Layout | None = None) -> FedMAPState:
        """The initial model as the prior's mean (the paper draws some client's initial model).

        Raises:
            ConfigError: the prior covers no parameter of this model.
        """
        layout = layout or Layout.of(weights)
        parameters = layout.parameters(weights)
        prefixes = self._prefixes()
        covered = [name for name in parameters if any(_under(name, prefix) for prefix in prefixes)]
        if not covered:
            raise ConfigError(
                f"the prior covers no parameter: none of {list(parameters)[:5]}... starts with one of {list(prefixes)}; set prior_covers"
            )
        unknown = [prefix for prefix in self.layer_sigma if not any(_under(name, prefix) for name in covered)]
        if unknown:
            raise ConfigError(
                f"layer_sigma names {unknown}, under which the prior covers nothing; the first covered names are {covered[:5]}"
            )
        shapes = {name: parameters[name].shape if self.covariance == "diagonal" else (1,) for name in covered}
        variances = {name: np.full(shapes[name], self._initial_sigma(name) ** 2) for name in covered}
        return FedMAPState(weights=weights, layout=layout, variances=variances)

    def broadcast(self, state: FedMAPState) -> Broadcast:
        """The prior: gamma, and sigma^2 of every covered parameter."""
        factor = float(self.sigma_decay) ** (2 * state.round_index)
        return Broadcast(
            round_index=state.round_index + 1,
            weights=state.weights,
            rule="map-prior",
            extras={VARIANCE: {name: variance.astype(np.float64) * factor for name, variance in state.variances.items()}},
            scalars={"uncovered": self.uncovered, "warm-start": self.warm_start},
        )

    @property
    def own_start(self) -> bool:
        """Whether clients train on from models of their own; see `fedmap.aggregators.base.expected_form`."""
        return self.warm_start

    def expected_scalars(self, state: FedMAPState) -> dict[str, tuple[float, float]]:
        """The logarithm of a probability, and half a squared distance: a client that claims more could buy the model."""
        return {"log-likelihood": (-math.inf, 0.0), "prior-energy": (0.0, math.inf)}

    def aggregate(self, state: FedMAPState, updates: Sequence[ClientUpdate]) -> tuple[FedMAPState, RoundReport]:
        """gamma = sum_k omega_k theta_k, omega a softmax of log omega; and the variance, if it is learnt."""
        ordered = in_client_order(updates)
        log_omega = np.array([self._log_omega(update) for update in ordered])
        scaled = (log_omega - log_omega.max()) / self.temperature
        omega = np.exp(scaled) / np.exp(scaled).sum()
        gamma = mean_weights(ordered, omega.tolist(), state.weights.keys())
        variances = self._learnt_variances(state, gamma, ordered, omega) if self.learn_sigma else state.variances
        done = state.round_index + 1
        report = RoundReport(
            round_index=done,
            client_weights={update.client_id: float(share) for update, share in zip(ordered, omega, strict=True)},
            diagnostics={
                "effective-clients": float(1 / (omega**2).sum()),
                "log-likelihood": float(np.mean([update.scalars["log-likelihood"] for update in ordered])),
                "prior-energy": float(np.mean([update.scalars["prior-energy"] for update in ordered])),
                "sigma": float(np.sqrt(np.mean([v.astype(np.float64).mean() for v in variances.values()]))) * self.sigma_decay**done,
            },
        )
        return replace(state, weights=gamma, variances=variances, round_index=done), report

    def _log_omega(self, update: ClientUpdate) -> float:
        missing = [name for name in ("log-likelihood", "prior-energy") if not np.isfinite(update.scalars.get(name, np.nan))]
        if missing:
            raise UpdateError(
                f"client {update.client_id} did not send finite {' and '.join(missing)}, which its weight is made of; "
                "let the clients train by the rule that the broadcast names, and lower the learning rate if the loss overflows"
            )
        examples = update.num_examples if self.likelihood == "sum" else 1
        return examples * update.scalars["log-likelihood"] - update.scalars["prior-energy"]

    def _learnt_variances(self, state: FedMAPState, gamma: Weights, updates: Sequence[ClientUpdate], omega: Vector) -> dict[str, Array]:
        """(nu sigma_0^2 + K spread) / (nu + K), the spread being that of the K clients around gamma, weighted by omega."""
        nu, clients = float(self.sigma_strength), len(updates)
        spreads = {name: _spread([update.weights[name] for update in updates], gamma[name], omega) for name in state.variances}
        if self.covariance == "isotropic":
            pooled = sum(float(spread.sum()) for spread in spreads.values()) / sum(spread.size for spread in spreads.values())
            spreads = {name: np.array([pooled]) for name in spreads}
        elif self.covariance == "layer":
            spreads = {name: np.array([spread.mean()]) for name, spread in spreads.items()}
        # asarray: NumPy turns sums of 0-d arrays into scalars
        return {name: np.asarray((nu * self._initial_sigma(name) ** 2 + clients * s) / (nu + clients)) for name, s in spreads.items()}

    def _initial_sigma(self, name: str) -> float:
        fitting = [prefix for prefix in self.layer_sigma if _under(name, prefix)]
        return float(self.layer_sigma[max(fitting, key=len)] if fitting else self.sigma)

    def _prefixes(self) -> Sequence[str]:
        if isinstance(self.prior_covers, str):
            return self.head_prefixes if self.prior_covers == "head" else ("",)
        return self.prior_covers


def _under(name: str, prefix: str) -> bool:
    return not prefix or name == prefix or name.startswith(prefix.removesuffix(".") + ".")


def _spread(thetas: Sequence[Array], gamma: Array, omega: Vector) -> Vector:
    total = np.zeros(gamma.shape)
    for theta, share in zip(thetas, omega, strict=True):
        total += float(share) * np.square(theta.astype(np.float64) - gamma.astype(np.float64))
    return total
