"""The training loop: batches, options and their effect, determinism, refusals, and evaluation."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from fedmap.errors import ConfigError, DataError, UpdateError
from fedmap.local.client import LocalClient
from fedmap.local.rules import LocalRule, Memory, make_rule
from fedmap.local.tensors import get_weights
from fedmap.local.training import TrainingOptions, epoch_batches, evaluate, make_optimizer, train
from fedmap.records import Broadcast
from fedmap.weights import difference, norm
from tests.toys import PLAIN_SGD, Net, Parabola, Rows, net_clients, parabola, same


@pytest.mark.parametrize(
    ("rows", "size", "expected"),
    [(10, 4, [4, 4, 2]), (9, 4, [4, 5]), (8, 4, [4, 4]), (1, 4, [1]), (2, 1, [2]), (3, 5, [3]), (5, 1, [1, 1, 1, 2])],
)
def test_batches_cover_every_row_once_and_end_in_no_single_row(rows: int, size: int, expected: list[int]) -> None:
    """A last row alone would crash BatchNorm; it joins the batch before it. With batch_size=1 that is the user's wish."""
    batches = list(epoch_batches(rows, size, np.random.default_rng(0)))
    assert [len(batch) for batch in batches] == expected
    assert sorted(np.concatenate(batches)) == list(range(rows))


def test_batches_are_shuffled_anew_each_epoch() -> None:
    rng = np.random.default_rng(0)
    first, second = (np.concatenate(list(epoch_batches(50, 8, rng))) for _ in range(2))
    assert first.tolist() != second.tolist()


def steps_of(**options: object) -> int:
    client = net_clients(TrainingOptions(**options), count=2)[1]  # type: ignore[arg-type]  # 24 rows
    update, _ = client.train_round(Broadcast(1, get_weights(client.model)), Memory())
    assert update.num_examples == 24
    return update.num_steps


def test_epochs_batch_size_and_updates_decide_the_steps() -> None:
    assert steps_of(batch_size=8) == 3
    assert steps_of(batch_size=8, num_epochs=3) == 9
    assert steps_of(batch_size=12, num_epochs=3) == 6
    assert steps_of(batch_size=23) == 1, "the 24th row joins the first batch"
    assert steps_of(batch_size=8, num_epochs=3, num_updates=5) == 5, "num_updates replaces epochs"
    assert steps_of(batch_size=100, num_updates=4) == 4


def test_one_step_of_plain_sgd_by_hand() -> None:
    """Loss (w - 3)^2 / 2 from w = 1: the gradient is -2, and with rate 0.1 w becomes 1.2."""
    client = parabola(0, optimum=3.0, options=replace(PLAIN_SGD, num_updates=1))
    update, _ = client.train_round(Broadcast(1, {"w": np.float32([1.0])}), Memory())
    assert update.weights["w"] == pytest.approx(1.2)
    assert update.signals.train_loss == pytest.approx(2.0)
    assert update.signals.gradient_norm == pytest.approx(2.0)
    assert update.signals.update_norm == pytest.approx(0.2)
    assert update.signals.validation_loss == pytest.approx((3 - 1.2) ** 2 / 2)


def test_the_rate_and_clipping_have_their_effect() -> None:
    def step(**options: float) -> float:
        client = parabola(0, optimum=3.0, options=replace(PLAIN_SGD, num_updates=1, **options))
        update, _ = client.train_round(Broadcast(1, {"w": np.float32([1.0])}), Memory())
        assert update.signals.gradient_norm == pytest.approx(2.0), "measured before clipping"
        return float(update.weights["w"][0]) - 1.0

    assert step() == pytest.approx(0.2)
    assert step(learning_rate=0.3) == pytest.approx(0.6)
    assert step(clip_norm=0.5) == pytest.approx(0.05)
    assert step(clip_norm=10.0) == pytest.approx(0.2)
    assert step(weight_decay=1.0) == pytest.approx(0.1), "decay adds w = 1 to the gradient of -2"


def test_the_gradient_norm_is_the_mean_over_all_steps() -> None:
    """From w = 0 towards 1 at rate 0.1 the gradients are 1, 0.9, 0.81."""
    client = parabola(0, optimum=1.0, options=replace(PLAIN_SGD, num_updates=3))
    update, _ = client.train_round(Broadcast(1, {"w": np.float32([0.0])}), Memory())
    assert update.signals.gradient_norm == pytest.approx((1 + 0.9 + 0.81) / 3)


def test_the_same_seed_round_and_client_give_the_same_bits_whatever_came_before() -> None:
    options = TrainingOptions(batch_size=8, num_epochs=2)
    clients = net_clients(options, count=2)
    sent = Broadcast(1, get_weights(clients[0].model))
    first, _ = clients[0].train_round(sent, Memory())
    clients[1].train_round(sent, Memory())
    torch.rand(5)
    again, _ = clients[0].train_round(sent, Memory())
    assert same(first.weights, again.weights)
    other_round, _ = clients[0].train_round(replace(sent, round_index=2), Memory())
    assert not same(first.weights, other_round.weights)
    other_seed, _ = replace(clients[0], seed=4).train_round(sent, Memory())
    assert not same(first.weights, other_seed.weights)


def test_frozen_parts_do_not_change() -> None:
    client = net_clients(TrainingOptions(batch_size=8))[0]
    tower = {name: tensor.clone() for name, tensor in client.model.tower.state_dict().items()}
    client.train_round(Broadcast(1, get_weights(client.model)), Memory())
    assert all(torch.equal(tensor, tower[name]) for name, tensor in client.model.tower.state_dict().items())


def test_the_update_norm_covers_parameters_and_not_buffers() -> None:
    client = net_clients(TrainingOptions(batch_size=8))[0]
    sent = get_weights(client.model)
    update, _ = client.train_round(Broadcast(1, sent), Memory())
    trained = [name for name, p in client.model.named_parameters() if p.requires_grad]
    delta = difference(update.weights, sent)
    assert update.signals.update_norm == pytest.approx(norm(delta, trained))
    assert norm(delta) > 1.01 * norm(delta, trained), "the running statistics moved, too"


def test_without_validation_rows_nothing_is_claimed() -> None:
    client = net_clients(TrainingOptions(batch_size=8))[0]
    nothing = Rows(x=np.zeros((0, 4)), labels=np.zeros((0, 2)))
    update, _ = replace(client, splits={**client.splits, "val": nothing}).train_round(Broadcast(1, get_weights(client.model)), Memory())
    assert (update.signals.f1_before, update.signals.f1_after, update.signals.validation_loss) == (None, None, None)
    assert update.signals.train_loss is not None
    assert update.counts["val-after"].num_samples == 0


def test_f1_before_is_that_of_the_received_model() -> None:
    client = net_clients(TrainingOptions(batch_size=8, num_epochs=3, learning_rate=0.05))[0]
    sent = get_weights(client.model)
    expected = evaluate(client.model, client.splits["val"], client.options).counts
    update, _ = client.train_round(Broadcast(1, sent), Memory())
    assert update.counts["val-before"] == expected
    assert update.signals.f1_before == pytest.approx(expected.macro_f1)
    assert update.signals.f1_after == pytest.approx(update.counts["val-after"].macro_f1)
    assert update.counts["val-after"] == evaluate(client.model, client.splits["val"], client.options).counts


def test_evaluation_does_not_depend_on_the_batch_size() -> None:
    client = net_clients(TrainingOptions())[2]
    results = [evaluate(client.model, client.splits["train"], TrainingOptions(batch_size=size)) for size in (1, 7, 64)]
    assert results[0].counts == results[1].counts == results[2].counts
    assert results[1].loss == pytest.approx(results[0].loss) == pytest.approx(results[2].loss)
    assert results[0].counts.num_samples == len(client.splits["train"])
    with torch.inference_mode():
        rows = client.splits["train"].batch(np.arange(32))
        expected = nn.functional.binary_cross_entropy_with_logits(client.model(rows), rows["labels"])
    assert results[0].loss == pytest.approx(float(expected), rel=1e-5)


def test_evaluation_leaves_running_statistics_alone() -> None:
    client = net_clients(TrainingOptions())[0]
    before = get_weights(client.model)
    evaluate(client.model, client.splits["train"], client.options)
    assert same(before, get_weights(client.model))


def test_an_empty_training_split_is_an_error() -> None:
    client = net_clients(TrainingOptions())[0]
    nothing = Rows(x=np.zeros((0, 4)), labels=np.zeros((0, 2)))
    with pytest.raises(DataError, match="training split has no rows"):
        replace(client, splits={**client.splits, "train": nothing}).train_round(Broadcast(1, get_weights(client.model)), Memory())


def test_an_unknown_optimizer_is_an_error() -> None:
    with pytest.raises(ConfigError, match="optimizer='adagard': expected one of adamw, adam, sgd"):
        make_optimizer(Net(), TrainingOptions(optimizer="adagard"))


@pytest.mark.parametrize(("name", "kind"), [("adamw", torch.optim.AdamW), ("adam", torch.optim.Adam), ("sgd", torch.optim.SGD)])
def test_optimizers_by_name_over_what_is_trained(name: str, kind: type) -> None:
    model = Net()
    optimizer = make_optimizer(model, TrainingOptions(optimizer=name, learning_rate=0.3, momentum=0.5, weight_decay=0.02))
    assert isinstance(optimizer, kind)
    assert optimizer.param_groups[0]["lr"] == 0.3
    assert optimizer.param_groups[0]["weight_decay"] == 0.02
    assert {id(p) for group in optimizer.param_groups for p in group["params"]} == {id(p) for p in model.parameters() if p.requires_grad}


def test_an_unknown_rule_is_an_error_that_names_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"no local rule 'plian': expected one of \[.*'plain'"):
        make_rule("plian")
    with pytest.raises(ConfigError, match="is not a subclass"):
        make_rule("fedmap.records.Broadcast")


def test_a_rule_adds_to_the_loss_and_to_the_gradients_but_not_to_the_reported_loss() -> None:
    class Pull(LocalRule):
        def penalty(self, model: nn.Module) -> torch.Tensor:
            return 5 * model.w.sum()

        def correct_gradients(self, model: nn.Module) -> None:
            model.w.grad += 1

    model = Parabola(start=1.0)
    split = Rows(labels=np.ones((2, 1)), optimum=np.full(2, 3.0), curvature=np.ones(2))
    result = train(model, split, replace(PLAIN_SGD, num_updates=1), Pull(), np.random.default_rng(0))
    assert model.w.item() == pytest.approx(1 - 0.1 * (-2 + 5 + 1))
    assert result.loss == pytest.approx(2.0)


def test_a_hook_may_change_the_update_and_steps_are_reported() -> None:
    client = parabola(3, optimum=1.0)
    seen: list[tuple[int, float]] = []
    hooked = LocalClient(3, client.model, client.splits, client.options, 0, after_round=lambda update: replace(update, num_examples=99))
    update, _ = hooked.train_round(Broadcast(1, {"w": np.float32([0.0])}), Memory(), lambda step, loss: seen.append((step, loss)))
    assert update.num_examples == 99
    assert [step for step, _ in seen] == [1, 2]
    assert [loss for _, loss in seen] == pytest.approx([0.5, 0.405])


def test_a_broadcast_of_another_model_is_refused() -> None:
    client = parabola(0, optimum=1.0)
    with pytest.raises(UpdateError, match="do not fit this model"):
        client.train_round(Broadcast(1, {"w": np.zeros(2, np.float32)}), Memory())


def test_mixed_precision_learns_in_bfloat16_and_keeps_float32() -> None:
    """Not the bits of float32, nearly its numbers, and float32 wherever something is kept."""
    trained, scores = {}, {}
    for amp in (False, True):
        client = net_clients(replace(PLAIN_SGD, num_updates=30, learning_rate=0.5, amp=amp), count=1)[0]
        before = evaluate(client.model, client.splits["train"], client.options)
        update, _ = client.train_round(Broadcast(1, get_weights(client.model)), Memory())
        after = evaluate(client.model, client.splits["train"], client.options)
        assert after.loss < 0.8 * before.loss
        assert after.logits.dtype == np.float32
        assert all(array.dtype == get_weights(client.model)[name].dtype for name, array in update.weights.items())
        trained[amp], scores[amp] = update.weights, after
    assert not same(trained[True], trained[False])
    assert norm(difference(trained[True], trained[False])) < 0.1 * norm(trained[False])
    assert scores[True].loss == pytest.approx(scores[False].loss, abs=0.05)
    halves = torch.from_numpy(scores[True].logits)
    assert torch.equal(halves, halves.bfloat16().float()), "the model's output was made in bfloat16"
