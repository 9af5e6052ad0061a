"""Which tensors travel, and writing them back."""

import numpy as np
import pytest
import torch
from torch import nn

from fedmap.errors import UpdateError
from fedmap.local.tensors import get_weights, layout_of, put_weights, set_weights, shared_tensors, weights_in
from tests.toys import Net


def test_frozen_towers_stay_at_home_with_their_statistics() -> None:
    names = [name for name, _ in shared_tensors(Net())]
    assert not any(name.startswith("tower") for name in names)
    assert {"body.0.weight", "body.1.weight", "body.1.running_mean", "body.1.num_batches_tracked", "head.bias"} <= set(names)


def test_layout_goes_by_module_type_and_not_by_name() -> None:
    """ResNet's `downsample.1` is a BatchNorm without "bn" in its name, and a Linear may well be called bn."""

    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bn = nn.Linear(2, 2)
            self.downsample = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
            self.scale = nn.GroupNorm(1, 2)

    layout = layout_of(Named())
    assert layout.normalisation == {
        "downsample.1.weight", "downsample.1.bias", "downsample.1.running_mean", "downsample.1.running_var",
        "downsample.1.num_batches_tracked", "scale.weight", "scale.bias",
    }  # fmt: skip
    assert layout.buffers == {"downsample.1.running_mean", "downsample.1.running_var", "downsample.1.num_batches_tracked"}


def test_buffers_that_are_not_saved_do_not_travel() -> None:
    model = nn.Linear(2, 1)
    model.register_buffer("scratch", torch.zeros(3), persistent=False)
    model.register_buffer("kept", torch.zeros(3))
    assert [name for name, _ in shared_tensors(model)] == ["weight", "bias", "kept"]


def test_writing_what_was_read_changes_nothing_and_copies() -> None:
    model = Net()
    weights = get_weights(model)
    before = {name: array.copy() for name, array in weights.items()}
    with torch.no_grad():
        for _, tensor in shared_tensors(model):
            tensor.add_(1)
    assert all(np.array_equal(weights[name], before[name]) for name in before), "what was read is a copy"
    set_weights(model, weights)
    for name, array in get_weights(model).items():
        assert array.dtype == before[name].dtype
        assert np.array_equal(array, before[name])
    with torch.no_grad():
        model.head.weight.zero_()
    assert np.array_equal(weights["head.weight"], before["head.weight"]), "what was written is a copy"


def test_gradients_and_training_go_on_after_writing() -> None:
    model = Net()
    set_weights(model, get_weights(model))
    model({"x": torch.ones(4, 4)}).sum().backward()
    assert model.head.weight.requires_grad
    assert model.head.weight.grad is not None


def test_misfits_are_named() -> None:
    model = Net()
    weights = get_weights(model)
    with pytest.raises(UpdateError, match=r"1 unknown, first \['tower.0.weight'\].*use the same model configuration"):
        set_weights(model, {**weights, "tower.0.weight": np.zeros((4, 4), np.float32)})
    with pytest.raises(UpdateError, match=r"1 missing, first \['head.bias'\]"):
        set_weights(model, {name: array for name, array in weights.items() if name != "head.bias"})
    with pytest.raises(UpdateError, match=r"head.bias is \(3,\), expected \(2,\)"):
        set_weights(model, {**weights, "head.bias": np.zeros(3, np.float32)})


def test_a_misfit_changes_nothing() -> None:
    model = Net()
    before = get_weights(model)
    wrong = {name: array + 1 for name, array in before.items()}
    wrong["head.bias"] = np.zeros(3, np.float32)
    with pytest.raises(UpdateError):
        set_weights(model, wrong)
    assert all(np.array_equal(array, before[name]) for name, array in get_weights(model).items())


def test_some_of_the_tensors() -> None:
    model = Net()
    before = get_weights(model)
    set_weights(model, {"head.bias": np.array([5, 6], np.float32)}, partial=True)
    after = get_weights(model)
    assert after["head.bias"].tolist() == [5, 6]
    assert all(np.array_equal(after[name], before[name]) for name in before if name != "head.bias")
    with pytest.raises(UpdateError, match="unknown"):
        set_weights(model, {"nose": np.zeros(1, np.float32)}, partial=True)


def test_tied_parameters_travel_once() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(2, 2, bias=False)
            self.b = nn.Linear(2, 2, bias=False)
            self.b.weight = self.a.weight

    assert [name for name, _ in shared_tensors(Tied())] == ["a.weight"]


def test_a_model_that_is_changed_later_is_looked_at_anew() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    assert len(dict(shared_tensors(model))) == 4
    assert layout_of(model) is layout_of(model), "walked through once"
    model[0].requires_grad_(False)
    assert list(dict(shared_tensors(model))) == ["1.weight", "1.bias"]
    model[1] = nn.LayerNorm(2)
    assert dict(shared_tensors(model))["1.weight"] is model[1].weight
    assert layout_of(model).normalisation == {"1.weight", "1.bias"}
    model.append(nn.BatchNorm1d(2))
    assert layout_of(model).buffers == {"2.running_mean", "2.running_var", "2.num_batches_tracked"}
    model[2].running_mean = torch.ones(2)
    assert np.array_equal(get_weights(model)["2.running_mean"], [1, 1])


def test_the_servers_model_lies_in_its_arrays_and_who_holds_the_old_ones_keeps_them() -> None:
    model = Net()
    first = weights_in(model)
    assert all(np.array_equal(array, first[name]) for name, array in get_weights(model).items())
    assert first["head.weight"].base is not None, "a parameter is not copied"
    given = {name: np.array(array) + 1 for name, array in first.items()}
    before = {name: array.copy() for name, array in first.items()}
    second = put_weights(model, given)
    assert list(second) == list(given)
    assert all(np.array_equal(array, before[name]) for name, array in first.items()), "the old model is somebody else's"
    given["head.weight"][:] = 0
    for name, array in get_weights(model).items():
        assert np.array_equal(array, before[name] + 1)
        assert np.array_equal(second[name], array)
        assert second[name].dtype == array.dtype
    assert np.shares_memory(second["head.weight"], model.head.weight.detach().numpy())
    with torch.no_grad():
        model.body[1].running_mean.add_(1)
    assert np.array_equal(second["body.1.running_mean"], before["body.1.running_mean"] + 1), "a forward pass may write into buffers"
    with pytest.raises(UpdateError, match="1 missing"):
        put_weights(model, {name: array for name, array in given.items() if name != "head.bias"})
