"""Decoding, the store, its resumption, and how pixels become bytes."""

from __future__ import annotations

import io
import json
import os
from contextlib import suppress

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from PIL import Image

from autopeft.errors import UserError
from autopeft.training import images
from autopeft.training.images import (
    Rule,
    build_store,
    decode,
    digest,
    marks,
    normalize,
    open_store,
)


def save(array, path, **options):
    Image.fromarray(np.asarray(array)).save(path, **options)
    return path


def ramp(dtype=np.uint8, top=255, shape=(8, 8)):
    return np.linspace(0, top, shape[0] * shape[1]).reshape(shape).astype(dtype)


def folder_of(tmp_path, count=5, size=8):
    rng = np.random.default_rng(0)
    for i in range(count):
        save(rng.integers(0, 256, (size, size), np.uint8), tmp_path / f"{i}.png")
    return [f"{i}.png" for i in range(count)]


# ---- one image ----------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif"])
def test_gray_stays_one_channel_and_color_three(tmp_path, suffix):
    gray = ramp()
    assert np.array_equal(decode(save(gray, tmp_path / f"g.{suffix}"), 8)[:, :, 0], gray)
    color = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    assert np.array_equal(decode(save(color, tmp_path / f"c.{suffix}"), 8), color)
    assert decode(tmp_path / f"c.{suffix}", 8, rule=Rule(1)).shape == (8, 8, 1)
    three = decode(tmp_path / f"g.{suffix}", 8, rule=Rule(3))
    assert np.array_equal(three, np.repeat(gray[:, :, None], 3, 2))


def test_palette_and_bits(tmp_path):
    color = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    Image.fromarray(color).quantize(64).save(tmp_path / "p.png")
    assert decode(tmp_path / "p.png", 8).shape == (8, 8, 3)
    Image.fromarray(ramp() > 100).save(tmp_path / "b.png")
    bits = decode(tmp_path / "b.png", 8)
    assert bits.shape == (8, 8, 1)
    assert set(np.unique(bits)) == {0, 255}


@pytest.mark.parametrize(("top", "white"), [(200, 255), (4095, 4095), (4096, 65535)])
def test_16_bit_is_scaled_by_a_nominal_range_not_clipped(tmp_path, top, white):
    deep = ramp(np.uint16, top)
    got = decode(save(deep, tmp_path / "d.png"), 8)[:, :, 0]
    want = np.round(deep / white * 255)
    assert np.abs(got.astype(float) - want).max() <= 1
    assert (got == 255).mean() < 0.1  # Pillow's own convert clips: 94% of a 12-bit ramp


def test_a_rule_decides_for_a_dark_image_of_a_bright_data_set(tmp_path):
    deep = ramp(np.uint16, 3000)
    file = save(deep, tmp_path / "d.png")
    got = decode(file, 8, rule=Rule(1, 65535))[:, :, 0]
    assert np.abs(got - deep / 65535 * 255).max() <= 0.5
    assert np.array_equal(decode(file, 8, rule=Rule(1, 0)), decode(file, 8))
    assert decode(file, 8, rule=Rule(1, 255)).max() == 255  # clipped, never wrapped around


def test_exif_orientation_is_applied(tmp_path):
    array = np.zeros((8, 8), np.uint8)
    array[:4] = 250  # upper half bright
    image = Image.fromarray(array)
    exif = image.getexif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    image.save(tmp_path / "e.png", exif=exif)
    assert np.array_equal(decode(tmp_path / "e.png", 8)[:, :, 0], np.rot90(array, -1))


def test_transparency_lies_on_black(tmp_path):
    rgba = np.full((8, 8, 4), 200, np.uint8)
    rgba[:, :4, 3] = 0
    rgba[:, 4:, 3] = 255
    got = decode(save(rgba, tmp_path / "a.png"), 8)
    assert (got[:, :4] == 0).all()
    assert (got[:, 4:] == 200).all()
    Image.fromarray(rgba).convert("LA").save(tmp_path / "la.png")
    got = decode(tmp_path / "la.png", 8)
    assert got.shape == (8, 8, 1)
    assert (got[:, :4] == 0).all()


def test_geometry_of_pad_crop_squash(tmp_path):
    wide = np.zeros((10, 20), np.uint8)
    wide[:, :5], wide[:, 5:15], wide[:, 15:] = 60, 120, 240
    file = save(wide, tmp_path / "w.png")
    pad, crop, squash = (decode(file, 20, fit)[:, :, 0] for fit in ("pad", "crop", "squash"))
    assert (pad[:5] == 0).all()
    assert (pad[15:] == 0).all()
    assert np.array_equal(pad[5:15], wide)  # nothing lost, nothing stretched
    assert np.abs(crop.astype(int)[:, 2:-2] - 120).max() <= 3  # the middle alone
    assert abs(int(squash[10, 2]) - 60) <= 1
    assert abs(int(squash[10, 17]) - 240) <= 1
    assert (squash > 0).all()


def test_float_pixels_are_refused(tmp_path):
    save(np.linspace(0, 1, 64).reshape(8, 8).astype(np.float32), tmp_path / "f.tif")
    with pytest.raises(ValueError, match="nominal white"):
        decode(tmp_path / "f.tif", 8)


@pytest.mark.filterwarnings("ignore")
@given(st.data())
@hypothesis_settings(max_examples=60, deadline=None)
def test_broken_bytes_raise_only_what_is_promised(tmp_path_factory, data):
    stream = io.BytesIO()
    kind = data.draw(st.sampled_from(["PNG", "JPEG", "TIFF", "GIF"]))
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16), np.uint8)).save(
        stream, kind
    )
    whole = bytearray(stream.getvalue())
    cut = data.draw(st.integers(0, len(whole)))
    for place in data.draw(st.lists(st.integers(0, len(whole) - 1), max_size=4)):
        whole[place] ^= data.draw(st.integers(1, 255))
    file = tmp_path_factory.getbasetemp() / "broken"
    file.write_bytes(bytes(whole[:cut]))
    with suppress(OSError, ValueError):
        assert decode(file, 8).shape[:2] == (8, 8)


# ---- the store ----------------------------------------------------------------------------------


def test_rows_are_the_files_in_order_and_the_store_is_reused(tmp_path, monkeypatch):
    paths = folder_of(tmp_path)
    steps = []
    store = build_store(
        tmp_path, paths, 8, "pad", tmp_path / "cache", lambda *step: steps.append(step)
    )
    assert store.array.shape == (5, 8, 8, 1)
    assert steps[-1] == (5, 5)
    for i, path in enumerate(paths):
        assert np.array_equal(store.array[i], decode(tmp_path / path, 8))
    assert np.array_equal(store.batch(np.array([3, 3, 0])), store.array[[3, 3, 0]])
    monkeypatch.setattr(images, "_read", lambda path: pytest.fail("decoded twice"))
    again = build_store(tmp_path, paths, 8, "pad", tmp_path / "cache")
    assert again.folder == store.folder
    assert np.array_equal(open_store(again.folder).array, store.array)


def test_a_replaced_file_makes_a_new_store(tmp_path):
    paths = [p.replace("png", "bmp") for p in folder_of(tmp_path)]
    for path in paths:  # bitmaps of one size: only their time of change tells them apart
        save(ramp(), tmp_path / path)
    first = build_store(tmp_path, paths, 8, "pad", tmp_path / "cache")
    size = (tmp_path / paths[2]).stat().st_size
    save(255 - ramp(), tmp_path / paths[2])
    os.utime(tmp_path / paths[2], ns=(1, 1))
    assert (tmp_path / paths[2]).stat().st_size == size
    second = build_store(tmp_path, paths, 8, "pad", tmp_path / "cache")
    assert second.folder != first.folder
    assert np.array_equal(second.array[2, :, :, 0], 255 - ramp())
    folders = {second.folder}
    for size, fit in ((16, "pad"), (8, "crop")):
        folders.add(build_store(tmp_path, paths, size, fit, tmp_path / "cache").folder)
    folders.add(build_store(tmp_path, paths[::-1], 8, "pad", tmp_path / "cache").folder)
    assert len(folders) == 4


def test_one_color_file_makes_a_store_of_three_channels(tmp_path):
    paths = folder_of(tmp_path, 6)
    color = np.random.default_rng(1).integers(0, 256, (8, 8, 3), np.uint8)
    save(color, tmp_path / "5.png")
    store = build_store(tmp_path, paths, 8, "pad", tmp_path / "cache")
    assert store.array.shape == (6, 8, 8, 3)
    assert np.array_equal(store.array[5], color)
    assert np.array_equal(store.array[0], np.repeat(decode(tmp_path / "0.png", 8), 3, 2))


@pytest.mark.parametrize("bright_at", [0, 5])
def test_16_bit_white_is_one_for_the_whole_store(tmp_path, monkeypatch, bright_at):
    monkeypatch.setattr(images, "_CHUNK", 2)
    tops = [900] * 6
    tops[bright_at] = 60000
    for i, top in enumerate(tops):
        save(ramp(np.uint16, top), tmp_path / f"{i}.png")
    store = build_store(tmp_path, [f"{i}.png" for i in range(6)], 8, "pad", tmp_path / "cache")
    assert store.rule == Rule(1, 65535)
    assert open_store(store.folder).rule == store.rule
    for i, top in enumerate(tops):
        want = ramp(np.uint16, top) / 65535 * 255
        assert np.abs(store.array[i, :, :, 0] - want).max() <= 0.5
        # What predicts on a new file later gives the same bytes.
        again = decode(tmp_path / f"{i}.png", 8, rule=store.rule)
        assert np.array_equal(again, store.array[i])


def test_unreadable_images_are_named_and_counted_and_nothing_stays(tmp_path):
    paths = folder_of(tmp_path)
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "1.png").write_bytes(b"no image at all")
    whole = (tmp_path / "3.png").read_bytes()
    (tmp_path / "3.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"2 images cannot be read: 3\.png, sub/1\.png") as error:
        build_store(tmp_path, [*paths, "sub/1.png"], 8, "pad", tmp_path / "cache")
    assert str(tmp_path) in str(error.value)
    assert list((tmp_path / "cache").iterdir()) == []
    with pytest.raises(UserError, match=r"1 image cannot be read: gone\.png"):
        build_store(tmp_path, [*paths, "gone.png"], 8, "pad", tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_many_bad_images_are_counted_not_all_listed(tmp_path):
    for i in range(9):
        (tmp_path / f"{i}.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"9 images .*4\.png \.\.\."):
        build_store(tmp_path, [f"{i}.png" for i in range(9)], 8, "pad", tmp_path / "cache")


@pytest.mark.parametrize("color_last", [False, True])
def test_a_killed_build_goes_on(tmp_path, monkeypatch, color_last):
    """Killed after each number of decoded files, also while a gray start is redone in color."""
    paths = folder_of(tmp_path, 8)
    if color_last:
        save(np.full((8, 8, 3), 7, np.uint8) * np.uint8([1, 2, 3]), tmp_path / "7.png")
    monkeypatch.setattr(images, "_CHUNK", 2)
    read, calls = images._read, []
    whole = build_store(tmp_path, paths, 8, "pad", tmp_path / "whole", threads=1).array

    def dying(path, left):
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        calls.append(path)
        return read(path)

    for after in range(1, 16 if color_last else 8):
        cache, left = tmp_path / f"cache{after}", [after]
        monkeypatch.setattr(images, "_read", lambda path, left=left: dying(path, left))
        with pytest.raises(KeyboardInterrupt):
            build_store(tmp_path, paths, 8, "pad", cache, threads=1)
        with pytest.raises(OSError, match=r"store\.json"):
            open_store(next(f for f in cache.iterdir() if f.is_dir()))
        calls.clear()
        left[0] = 1000
        store = build_store(tmp_path, paths, 8, "pad", cache, threads=1)
        assert np.array_equal(store.array, whole)
        if not color_last:
            assert len(calls) == 8 - after // 2 * 2  # finished chunks are not decoded again


def test_a_path_that_leaves_the_root_is_refused(tmp_path):
    root = tmp_path / "root"
    root.mkdir()
    save(ramp(), tmp_path / "outside.png")
    for path in ("../outside.png", str(tmp_path / "outside.png")):
        with pytest.raises(UserError, match="leaves the data folder"):
            build_store(root, [path], 8, "pad", tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_store_json_holds_no_path(tmp_path):
    store = build_store(tmp_path, folder_of(tmp_path), 8, "pad", tmp_path / "cache")
    kept = json.loads((store.folder / "store.json").read_text())
    assert kept == {"channels": 1, "white": 0}


def test_normalize():
    batch = np.random.default_rng(0).integers(0, 256, (2, 4, 4, 1), np.uint8)
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)
    got = normalize(batch, mean, std)
    assert got.shape == (2, 3, 4, 4)
    for c in range(3):
        want = (torch.from_numpy(batch[:, :, :, 0]).double() / 255 - mean[c]) / std[c]
        torch.testing.assert_close(got[:, c].double(), want, rtol=1e-5, atol=1e-6)


def test_the_digest_is_of_the_pixels_alone(tmp_path):
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for i in range(3):
            pixels = rng.integers(0, 255, (8, 8), np.uint8) if name == "a" else None
            if pixels is not None:
                Image.fromarray(pixels).save(tmp_path / name / f"{i}.png")
            else:
                copied = (tmp_path / "a" / f"{i}.png").read_bytes()
                (tmp_path / name / f"{i}.png").write_bytes(copied)
    paths = [f"{i}.png" for i in range(3)]
    one, two = (build_store(tmp_path / n, paths, 8, "pad", tmp_path / "cache") for n in "ab")
    assert one.folder != two.folder
    assert digest(one) == digest(two) == digest(one)
    Image.new("L", (8, 8)).save(tmp_path / "b" / "1.png")
    other = build_store(tmp_path / "b", paths, 8, "pad", tmp_path / "cache")
    assert digest(other) != digest(one)


def test_a_store_for_an_adapter_follows_the_adapter_s_rule(tmp_path):
    """Color files under a gray rule, gray ones under a color rule; a given white stays."""
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (9, 9, 3)).astype(np.uint8)).save(tmp_path / "c.png")
    Image.fromarray(rng.integers(0, 255, (9, 9)).astype(np.uint8)).save(tmp_path / "g.png")
    Image.fromarray(rng.integers(0, 4000, (9, 9)).astype(np.uint16)).save(tmp_path / "d.png")
    names = ["c.png", "d.png", "g.png"]
    for fixed in (Rule(1, 65535), Rule(3, 4095), Rule(1, 0)):
        store = build_store(tmp_path, names, 9, "pad", tmp_path / "cache", fixed=fixed)
        assert store.rule == Rule(fixed.channels, fixed.white or 4095)
        assert store.array.shape == (3, 9, 9, fixed.channels)
        for i, name in enumerate(names):
            assert np.array_equal(store.array[i], decode(tmp_path / name, 9, "pad", store.rule))
    assert build_store(tmp_path, names, 9, "pad", tmp_path / "cache").rule == Rule(3, 4095)


def test_equal_pixels_have_equal_marks(tmp_path):
    rng = np.random.default_rng(0)
    one, other = (rng.integers(0, 255, (8, 8), dtype=np.uint8) for _ in range(2))
    for name, pixels in (("a.png", one), ("b.png", other), ("c.png", one)):
        save(pixels, tmp_path / name)
    names = ["a.png", "b.png", "c.png"]
    store = build_store(tmp_path, names, 8, "pad", tmp_path / "cache")
    found = marks(store)
    assert found[0] == found[2] != found[1]
    assert (marks(store) == found).all()  # from the file, the second time
