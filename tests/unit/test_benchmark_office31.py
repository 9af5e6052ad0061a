"""The Office-31 benchmark: reading of the folders, the split, and the table on generated images."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.harness import main
from benchmarks.office31 import METHODS, FiveLayerCNN, arguments, measure
from benchmarks.office_domains import DOMAINS, SHAPES, generate_office, read_office, split_domain
from fedmap.errors import DataError


def write_folders(root: Path, *, below_images: bool) -> Path:
    """The stand-in's images as Office-31 folders of PNG files."""
    office = generate_office(16, rows=dict.fromkeys(DOMAINS, 3))
    for name, domain in office.domains.items():
        for place, (image, c) in enumerate(zip(domain.images, domain.classes, strict=True)):
            folder = root / name / ("images" if below_images else "") / SHAPES[c]
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image.transpose(1, 2, 0)).save(folder / f"frame_{place:04d}.png")
    return root


@pytest.mark.parametrize("below_images", [True, False])
def test_reads_both_layouts_without_loss(tmp_path: Path, below_images: bool) -> None:
    office = read_office(write_folders(tmp_path, below_images=below_images), 16)
    made = generate_office(16, rows=dict.fromkeys(DOMAINS, 3))
    assert office.real
    assert list(office.class_names) == sorted(SHAPES)
    for name in DOMAINS:
        read, drawn = office.domains[name], made.domains[name]
        assert read.images.shape == (3 * len(SHAPES), 3, 16, 16)
        for c, shape in enumerate(office.class_names):
            expected = drawn.images[drawn.classes == SHAPES.index(shape)]
            np.testing.assert_array_equal(read.images[read.classes == c], expected)


def test_domains_are_drawn_in_a_manner_of_their_own() -> None:
    means = [float(domain.images.mean()) for domain in generate_office(32).domains.values()]
    assert means[0] > means[1] + 30 > means[2] + 60


def test_missing_domain_is_named(tmp_path: Path) -> None:
    root = write_folders(tmp_path, below_images=True)
    (root / "dslr").rename(root / "DSLR_camera")
    with pytest.raises(DataError, match=r"no folder dslr; it holds DSLR_camera, amazon, webcam"):
        read_office(root, 16)


def test_a_folder_of_images_without_classes_is_refused(tmp_path: Path) -> None:
    for name in DOMAINS:
        (tmp_path / name / "images").mkdir(parents=True)
    with pytest.raises(DataError, match="0 class folders"):
        read_office(tmp_path, 16)


def test_classes_that_differ_are_named(tmp_path: Path) -> None:
    root = write_folders(tmp_path, below_images=False)
    (root / "webcam" / "ring").rename(root / "webcam" / "rings")
    with pytest.raises(DataError, match="differ from amazon's in ring, rings"):
        read_office(root, 16)


def test_an_empty_class_is_named(tmp_path: Path) -> None:
    root = write_folders(tmp_path, below_images=False)
    for file in (root / "amazon" / "disc").iterdir():
        file.unlink()
    with pytest.raises(DataError, match=r"amazon/disc: 0 images"):
        read_office(root, 16)


def test_a_broken_image_is_named(tmp_path: Path) -> None:
    root = write_folders(tmp_path, below_images=False)
    broken = sorted((root / "dslr" / "square").iterdir())[0]
    broken.write_bytes(b"not an image")
    with pytest.raises(DataError, match=broken.name):
        read_office(root, 16)


def test_split_keeps_the_share_of_every_class() -> None:
    domain = generate_office(16, rows=dict.fromkeys(DOMAINS, 10)).domains["amazon"]
    train, scored = split_domain(domain, len(SHAPES), 0.7, np.random.default_rng(0))
    assert np.bincount(train.classes).tolist() == [7] * len(SHAPES)
    assert np.bincount(scored.classes).tolist() == [3] * len(SHAPES)
    assert sorted([*train.row_ids, *scored.row_ids]) == sorted(domain.row_ids)


@pytest.mark.parametrize("size", [32, 128])
def test_network_has_five_normalised_convolutions(size: int) -> None:
    import torch
    from torch import nn

    model = FiveLayerCNN(7, size, 0.125)
    kinds = [type(m) for m in model.features if not isinstance(m, nn.MaxPool2d | nn.AdaptiveAvgPool2d)]
    assert kinds == [nn.Conv2d, nn.BatchNorm2d, nn.ReLU] * 5
    assert model({"image": torch.zeros(2, 3, size, size)}).shape == (2, 7)


def test_quick_run_on_folders_writes_every_method(tmp_path: Path) -> None:
    out = tmp_path / "office31.json"
    root = write_folders(tmp_path / "office", below_images=True)
    argv = ["--quick", "--data", str(root), "--image-size", "16", "--rounds", "1", "--width", "0.1", "--out", str(out)]
    assert main("office31", measure, arguments=arguments, argv=argv) == 0
    document = json.loads(out.read_text())
    assert document["stand_in"] is False
    assert set(document["figures"]) == {f"{m}.{d}" for m in METHODS for d in (*DOMAINS, "average")}
    assert all(0 <= figure["mean"] <= 100 for figure in document["figures"].values())


def test_wrong_folder_ends_with_status_two(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["--quick", "--data", str(tmp_path / "nowhere"), "--out", str(tmp_path / "x.json")]
    assert main("office31", measure, arguments=arguments, argv=argv) == 2
    assert "no such folder; expected amazon/, webcam/ and dslr/" in capsys.readouterr().out


def test_without_data_the_result_says_stand_in(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "office31.json"
    assert main("office31", measure, arguments=arguments, argv=["--quick", "--rounds", "1", "--out", str(out)]) == 0
    assert json.loads(out.read_text())["stand_in"] is True
    assert "GENERATED STAND-IN, NOT OFFICE-31" in capsys.readouterr().out
