import io
import os
import zlib

import numpy as np
import pytest
from PIL import Image

from fedmap.data import posters
from fedmap.data.posters import decode_poster, load_posters, why_unreadable
from fedmap.errors import DataError


def _encoded(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def _colour(array):
    return array.reshape(3, -1).mean(axis=1)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP"])
def test_known_formats_decode_to_rgb(kind):
    content = _encoded(Image.new("RGB", (30, 50), (200, 100, 50)), kind)
    array = decode_poster(content, 16)
    assert array.shape == (3, 16, 16)
    assert array.dtype == np.uint8
    np.testing.assert_allclose(_colour(array), (200, 100, 50), atol=6)


def test_transparency_is_laid_over_white():
    half = Image.new("RGBA", (8, 8), (255, 0, 0, 0))
    np.testing.assert_array_equal(_colour(decode_poster(_encoded(half, "PNG"), 8)), (255, 255, 255))
    palette = Image.new("P", (8, 8), 0)
    palette.putpalette([255, 0, 0, 0, 255, 0])
    assert _colour(decode_poster(_encoded(palette, "PNG"), 8)).tolist() == [255, 0, 0]
    assert _colour(decode_poster(_encoded(palette, "PNG", transparency=0), 8)).tolist() == [255, 255, 255]


def test_grey_cmyk_and_sixteen_bit_pictures():
    grey = decode_poster(_encoded(Image.new("L", (8, 8), 90), "PNG"), 8)
    assert _colour(grey).tolist() == [90, 90, 90]
    red = decode_poster(_encoded(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG"), 8)
    np.testing.assert_allclose(_colour(red), (255, 0, 0), atol=6)
    deep = Image.fromarray(np.full((8, 8), 128 * 257, np.uint16))
    assert _colour(decode_poster(_encoded(deep, "PNG"), 8)).tolist() == [128, 128, 128]


def test_a_picture_is_turned_as_its_exif_data_says():
    image = Image.new("RGB", (40, 20), "black")
    image.paste("white", (0, 0, 20, 20))  # white on the left
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter clockwise: white is then at the top
    array = decode_poster(_encoded(image, "JPEG", exif=exif), 16)
    assert array[:, :6].mean() > 240
    assert array[:, -6:].mean() < 15


def test_large_pictures_decode_to_what_a_plain_resize_gives(tmp_path):
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 255, (6, 4, 3), dtype=np.uint8)).resize((800, 1200), Image.Resampling.BICUBIC)
    content = _encoded(image, "JPEG", quality=95)
    plain = np.asarray(Image.open(io.BytesIO(content)).convert("RGB").resize((32, 32), Image.Resampling.BILINEAR)).transpose(2, 0, 1)
    assert np.abs(decode_poster(content, 32).astype(int) - plain.astype(int)).mean() < 3


def _png_that_claims(width, height):
    content = bytearray(_encoded(Image.new("L", (1, 1)), "PNG"))
    content[16:24] = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
    return bytes(content)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file is empty"),
        (b"<html>not found</html>", "cannot be decoded: it is none of JPEG, PNG, WEBP, GIF, BMP"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", "it is none of JPEG"),
        (_encoded(Image.effect_noise((64, 64), 90), "JPEG")[:-800], "cannot be decoded: image file is truncated"),
        (_encoded(Image.effect_noise((64, 64), 90), "PNG")[:-800], "cannot be decoded"),
        (_png_that_claims(8_000, 8_000), "the picture is 8000 x 8000, more than 50,000,000 pixels"),
        (_png_that_claims(12_000, 12_000), "more than 50,000,000 pixels"),
        (_png_that_claims(60_000, 60_000), "more than 50,000,000 pixels"),
    ],
)
def test_bad_pictures_are_refused_with_the_reason(content, message):
    with pytest.raises(DataError, match=message):
        decode_poster(content, 8)


def test_a_file_that_is_too_large_is_refused_unread(tmp_path, monkeypatch):
    monkeypatch.setattr(posters, "MAX_BYTES", 1000)
    path = tmp_path / "a.bmp"
    path.write_bytes(_encoded(Image.new("RGB", (30, 30)), "BMP"))
    assert why_unreadable(path, 8) == "the file has 1,001 bytes, more than 1,000"


def _files(folder, count):
    folder.mkdir(exist_ok=True)
    paths = [folder / f"{i}.png" for i in range(count)]
    for i, path in enumerate(paths):
        path.write_bytes(_encoded(Image.new("RGB", (5, 7), (i, 2 * i, 3 * i)), "PNG"))
    return paths


def _age(paths):
    for path in paths:
        os.utime(path, (1_700_000_000, 1_700_000_000))


def test_posters_are_decoded_once_and_again_when_a_file_changes(tmp_path, caplog):
    caplog.set_level("INFO", "fedmap.data")
    paths = _files(tmp_path / "img", 4)
    first = load_posters(paths, 6, tmp_path / "cache")
    assert first.images.shape == (4, 3, 6, 6)
    assert [_colour(image).tolist() for image in first.images] == [[i, 2 * i, 3 * i] for i in range(4)]
    assert first.readable.all()
    load_posters(paths, 6, tmp_path / "cache")
    assert caplog.text.count("Decoded 4 posters to 6 x 6") == 1
    load_posters(paths, 8, tmp_path / "cache")
    assert "Decoded 4 posters to 8 x 8" in caplog.text
    paths[2].write_bytes(_encoded(Image.new("RGB", (5, 7), (90, 90, 90)), "PNG"))
    changed = load_posters(paths, 6, tmp_path / "cache")
    assert _colour(changed.images[2]).tolist() == [90, 90, 90]
    assert _colour(first.images[2]).tolist() == [2, 4, 6]


def test_unchanged_files_are_not_read_again_and_a_change_of_the_same_size_is_seen(tmp_path, monkeypatch):
    monkeypatch.setattr(posters, "_FRESH", 0.0)  # as if the files were older than that
    paths = _files(tmp_path / "img", 3)
    _age(paths)
    load_posters(paths, 6, tmp_path / "cache")
    with monkeypatch.context() as patch:
        patch.setattr(posters, "_content", lambda path: pytest.fail(f"{path} was read again"))
        load_posters(paths, 6, tmp_path / "cache")
    content = _encoded(Image.new("RGB", (5, 7), (1, 2, 4)), "PNG")
    assert len(content) == paths[1].stat().st_size
    paths[1].write_bytes(content)
    _age(paths)  # even with the old time: the change itself leaves a trace
    assert _colour(load_posters(paths, 6, tmp_path / "cache").images[1]).tolist() == [1, 2, 4]


def test_unreadable_posters_are_marked_and_explained(tmp_path):
    paths = _files(tmp_path / "img", 3)
    paths[1].write_bytes(b"no picture")
    for _ in range(2):  # the second time from the cache
        store = load_posters(paths, 6, tmp_path / "cache")
        assert store.readable.tolist() == [True, False, True]
    assert "it is none of JPEG" in why_unreadable(paths[1], 6)


def test_no_posters_at_all(tmp_path):
    store = load_posters([], 6, tmp_path / "cache")
    assert store.images.shape == (0, 3, 6, 6)
    assert store.readable.shape == (0,)


def test_a_poster_that_vanished_is_named(tmp_path):
    with pytest.raises(DataError, match=r"gone\.jpg: cannot be read: No such file"):
        load_posters([tmp_path / "gone.jpg"], 6, tmp_path / "cache")


def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path, monkeypatch):
    paths = _files(tmp_path / "img", 2)
    monkeypatch.setattr(posters, "_digests", lambda paths, cache_dir: np.zeros((len(paths), 32), np.uint8))  # of what was there before
    with pytest.raises(DataError, match=r"\.png: the file changed while it was read"):
        load_posters(paths, 6, tmp_path / "cache")
    assert list((tmp_path / "cache").glob("posters-*")) == []
