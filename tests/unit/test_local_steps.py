"""The steps of training without torch's wrappers: the same bits as torch's own optimisers, clipping and seeding."""

import math
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from torch import nn

from fedmap.config import PROJECT
from fedmap.local.steps import backward, clip_gradients
from fedmap.local.training import TrainingOptions, make_optimizer
from fedmap.randomness import derive_seed, torch_seed

PLAIN = {
    "sgd, plain": lambda p: torch.optim.SGD(p, lr=0.1),
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.02),
    "adam": lambda p: torch.optim.Adam(p, lr=0.1, weight_decay=0.02),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.02),
}


def _net() -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 2))


def _backward(model: nn.Module, step: int) -> None:
    x = torch.linspace(-1, 1, 24).reshape(4, 6) * (1 + step)
    model(x).square().sum().backward()


@pytest.mark.parametrize("name", sorted(PLAIN))
def test_a_bare_optimizer_takes_torchs_steps(name: str) -> None:
    ours, theirs = _net(), _net()
    kind, _, simple = name.partition(", ")
    more = {} if simple else {"momentum": 0.9, "weight_decay": 0.02}
    options = TrainingOptions(**{"optimizer": kind, "learning_rate": 0.1, "weight_decay": 0.0, **more})
    bare, plain = make_optimizer(ours, options), PLAIN[name](theirs.parameters())
    for step in range(5):
        bare.zero_grad()
        plain.zero_grad()
        assert all(p.grad is None for p in ours.parameters())
        for model in (ours, theirs):
            _backward(model, step)
        bare.step()
        plain.step()
        for left, right in zip(ours.parameters(), theirs.parameters(), strict=True):
            assert torch.equal(left, right)
            assert not left.grad_fn
    assert isinstance(bare, type(plain)), "state_dict() and param_groups are torch's"


@pytest.mark.parametrize("loss", [lambda x: x.sum(), lambda x: x.double().sum(), lambda x: x.sum().reshape(1)])
def test_a_bare_backward_pass_gives_torchs_gradients(loss: Callable[[torch.Tensor], torch.Tensor]) -> None:
    ours, theirs = _net(), _net()
    x = torch.linspace(-1, 1, 24).reshape(4, 6)
    for _ in range(2):  # gradients add up
        backward(loss(ours(x).square()))
        loss(theirs(x).square()).backward()
    for left, right in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(left.grad, right.grad)
    with pytest.raises(RuntimeError, match="grad"):
        backward(torch.ones(()))


def test_training_does_not_import_torchs_compiler() -> None:
    """It takes a second of every process that trains, and nothing here compiles."""
    code = (
        "import sys\n"
        "from fedmap.local.training import TrainingOptions\n"
        "from tests.toys import net_clients\n"
        "from fedmap.local.rules import Memory\n"
        "from fedmap.local.tensors import get_weights\n"
        "from fedmap.records import Broadcast\n"
        "for name in ('adamw', 'adam', 'sgd'):\n"
        "    client = net_clients(TrainingOptions(optimizer=name))[0]\n"
        "    client.train_round(Broadcast(1, get_weights(client.model)), Memory())\n"
        "sys.exit('torch._dynamo' in sys.modules)\n"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=PROJECT, check=False).returncode == 0


@pytest.mark.parametrize("factor", [0.0, 1e-3, 1.0, 1e3, math.inf, math.nan])
@pytest.mark.parametrize("limit", [0.5, 1.0, 20.0, math.inf])
def test_clipping_is_torchs(factor: float, limit: float) -> None:
    models = _net(), _net()
    norms = []
    for model, clip in zip(models, (clip_gradients, nn.utils.clip_grad_norm_), strict=True):
        _backward(model, 0)
        for parameter in model.parameters():
            assert parameter.grad is not None
            parameter.grad.mul_(factor)
        norms.append(float(clip(list(model.parameters()), limit)))
    assert norms[0] == norms[1] or (math.isnan(norms[0]) and math.isnan(norms[1]))
    for left, right in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert torch.equal(torch.nan_to_num(left.grad), torch.nan_to_num(right.grad))  # type: ignore[arg-type]
        assert torch.equal(torch.isnan(left.grad), torch.isnan(right.grad))  # type: ignore[arg-type]


def test_clipping_at_the_very_norm_is_torchs() -> None:
    """Around a factor of 1, where rounding decides whether anything is multiplied."""
    for nudge in (-2e-6, -1e-6, -1e-7, 0.0, 1e-7, 1e-6, 2e-6):
        models = _net(), _net()
        for model in models:
            _backward(model, 0)
        limit = float(nn.utils.get_total_norm([p.grad for p in models[0].parameters() if p.grad is not None])) * (1 + nudge)
        clip_gradients(list(models[0].parameters()), limit)
        nn.utils.clip_grad_norm_(models[1].parameters(), limit)
        for left, right in zip(models[0].parameters(), models[1].parameters(), strict=True):
            assert torch.equal(left.grad, right.grad)  # type: ignore[arg-type]


def test_gradients_of_several_kinds_are_left_to_torch() -> None:
    first, second = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(2, dtype=torch.float64))
    (3 * first.sum() + 4 * second.sum()).backward()
    assert clip_gradients([first, second], 1.0) == pytest.approx(math.sqrt(27 + 32))
    assert first.grad is not None
    assert float(first.grad.square().sum()) < 1
    assert clip_gradients([nn.Parameter(torch.ones(2))], 1.0) == 0.0


def test_a_seeded_block_draws_what_manual_seed_draws_and_leaves_no_trace() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(derive_seed(5, purpose="x"))
        expected = torch.rand(4)
    before = torch.get_rng_state()
    with torch_seed(5, purpose="x"):
        assert torch.equal(torch.rand(4), expected)
    assert torch.equal(torch.get_rng_state(), before)
    with pytest.raises(RuntimeError), torch_seed(5, purpose="x"):
        torch.rand(-1)
    assert torch.equal(torch.get_rng_state(), before)
