"""Clients that train together learn what each learns alone, within rounding, whatever their sizes, options and rules."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fedmap.errors import ConfigError, DataError
from fedmap.local.client import LocalClient
from fedmap.local.rules import Memory
from fedmap.local.tensors import get_weights
from fedmap.local.together import train_together
from fedmap.local.training import TrainingOptions
from fedmap.randomness import generator, torch_seed
from fedmap.records import Broadcast
from tests.toys import Net, Rows

SEED = 5


class Dense(nn.Module):
    """Two layers, a frozen one, and a parameter that takes no part."""

    def __init__(self) -> None:
        super().__init__()
        self.tower = nn.Linear(6, 6).requires_grad_(False)
        self.net = nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.ReLU(), nn.Linear(8, 3))
        self.idle = nn.Parameter(torch.ones(2))

    def forward(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        return self.net(self.tower(batch["x"]))


class Pictures(nn.Module):
    """Convolutions and pooling on pictures [6, 6] of one channel."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 5, 2), nn.ReLU(), nn.MaxPool2d(2, stride=1),
            nn.Flatten(), nn.Linear(5, 3),
        )  # fmt: skip

    def forward(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        return self.net(batch["x"])

    def parameter_groups(self, options: TrainingOptions) -> list[dict[str, object]]:
        return [{"params": list(self.net[0].parameters()), "lr": options.learning_rate / 3}, {"params": list(self.net[3:].parameters())}]


SHAPES = {Dense: (6,), Pictures: (1, 6, 6)}


def rows_of(client: int, count: int, shape: tuple[int, ...]) -> Rows:
    rng = np.random.default_rng([7, client])
    return Rows(x=rng.normal(size=(count, *shape)), labels=(rng.random((count, 3)) < 0.4).astype(np.uint8))


def model_of(kind: type[nn.Module]) -> nn.Module:
    with torch_seed(3, purpose="model"):
        return kind()


@settings(max_examples=12, deadline=None)
@given(
    kind=st.sampled_from([Dense, Pictures]),
    sizes=st.lists(st.integers(1, 20), min_size=1, max_size=5),
    options=st.builds(
        TrainingOptions,
        learning_rate=st.just(0.05),
        batch_size=st.integers(2, 8),
        optimizer=st.sampled_from(["sgd", "adam", "adamw"]),
        momentum=st.sampled_from([0.0, 0.9]),
        weight_decay=st.sampled_from([0.0, 0.1]),
        clip_norm=st.sampled_from([0.0, 0.2]),
        num_epochs=st.integers(1, 2),
        num_updates=st.sampled_from([None, 3]),
    ),
    rule=st.sampled_from(["plain", "proximal"]),
)
def test_together_is_one_after_another(kind: type[nn.Module], sizes: list[int], options: TrainingOptions, rule: str) -> None:
    """Adam divides by the root of squared gradients, so a rounding of a gradient near 0 counts: hence 2e-4 there."""
    model = model_of(kind)
    broadcast = Broadcast(2, get_weights(model), rule, scalars={"mu": 0.5})
    splits = [rows_of(client, count, SHAPES[kind]) for client, count in enumerate(sizes)]
    rngs = [generator(SEED, purpose="batches", round_index=2, client_id=client) for client in range(len(sizes))]
    near = 1e-5 if options.optimizer == "sgd" else 2e-4
    together = train_together(model, broadcast, splits, options, rngs)
    assert {name: array.tobytes() for name, array in get_weights(model).items()} == {n: a.tobytes() for n, a in broadcast.weights.items()}
    for client, (split, trained) in enumerate(zip(splits, together, strict=True)):
        place = (client, model, {"train": split, "val": split, "test": split}, options, SEED)
        alone, _ = LocalClient(*place).train_round(broadcast, Memory())
        with_others, _ = LocalClient(*place, trained=trained).train_round(broadcast, Memory())
        assert with_others.num_steps == alone.num_steps
        assert list(with_others.weights) == list(alone.weights)
        for name, array in alone.weights.items():
            np.testing.assert_allclose(with_others.weights[name], array, atol=near, err_msg=name)
        for measure in ("train_loss", "gradient_norm", "update_norm", "validation_loss"):
            assert getattr(with_others.signals, measure) == pytest.approx(getattr(alone.signals, measure), abs=10 * near)


def refused(model: nn.Module, *, rule: str = "plain", sizes: tuple[int, ...] = (4, 4), **options: object) -> str:
    splits = [rows_of(client, count, (4,)) for client, count in enumerate(sizes)]
    rngs = [np.random.default_rng(client) for client in range(len(sizes))]
    with pytest.raises((ConfigError, DataError)) as caught:
        train_together(model, Broadcast(1, get_weights(model), rule), splits, TrainingOptions(**options), rngs)  # type: ignore[arg-type]
    return str(caught.value)


def test_what_cannot_be_stacked_is_refused_with_a_sentence() -> None:
    plain = nn.Sequential(nn.Linear(4, 3))
    assert "keeps statistics of the rows that it has seen (body.1.num_batches_tracked)" in refused(Net())
    assert "the model has dropout" in refused(nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.1)))
    assert "by the rule 'control-variate', and only plain and proximal can be stacked" in refused(plain, rule="control-variate")
    assert "training.amp=true cannot be stacked" in refused(plain, amp=True)
    assert "no rows" in refused(plain, sizes=(4, 0))


class Tossing(nn.Linear):
    """Draws random numbers in a way that nobody sees from outside."""

    def forward(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:  # type: ignore[override]
        return nn.functional.dropout(super().forward(batch["x"]), 0.5)


def test_hidden_random_numbers_are_an_error_and_leave_the_model_as_it_was() -> None:
    model = Tossing(4, 3)
    before = get_weights(model)
    splits = [rows_of(client, 4, (4,)) for client in range(2)]
    with pytest.raises(RuntimeError, match="random"):
        train_together(model, Broadcast(1, before), splits, TrainingOptions(), [np.random.default_rng(k) for k in range(2)])
    assert all((array == before[name]).all() for name, array in get_weights(model).items())
