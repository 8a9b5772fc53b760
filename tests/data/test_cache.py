"""Decoded images are kept between runs, and what is kept is never wrong."""

import os
import time
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from rayfl.cli.main import app
from rayfl.data import cache, images
from rayfl.data.sources.folders import ImageFolder


@pytest.fixture
def kept(tmp_path, monkeypatch):
    """A cache of the test's own."""
    monkeypatch.setenv("RAYFL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "images"


@pytest.fixture
def source(tmp_path):
    """Two colours, and an image of two frames."""
    for split in ("train", "test"):
        for label in ("cat", "dog"):
            (tmp_path / "data" / split / label).mkdir(parents=True)
            paint(tmp_path / "data" / split / label / "0.png", 10)
    frames = [Image.new("L", (4, 4), grey) for grey in (50, 100)]
    frames[0].save(tmp_path / "data/train/dog/1.tif", save_all=True, append_images=frames[1:])
    return ImageFolder(path=str(tmp_path / "data"), size=4)


@pytest.fixture
def decoded(monkeypatch):
    """Sizes of what is decoded from now on."""
    sizes, decode = [], images._decoded

    def counted(encoded, refuse, size):
        found = decode(encoded, refuse, size)
        sizes.append(len(found.pixels))
        return found

    monkeypatch.setattr(images, "_decoded", counted)
    return sizes


def paint(file, grey):
    Image.new("L", (4, 4), grey).save(file, compress_level=0)


def same(first, second):
    arrays = ("x_train", "y_train", "x_test", "y_test")
    return (first.digest, first.read) == (second.digest, second.read) and all(
        np.array_equal(getattr(first, name), getattr(second, name)) for name in arrays
    )


def test_the_second_run_decodes_nothing_and_has_the_same_data(source, kept, decoded):
    first = source.load()
    assert decoded == [3, 2]
    again = source.load()
    assert decoded == [3, 2]
    assert same(first, again)
    assert again.left_out == ("train/dog/1.tif (all but its first frame)",)
    again.x_train[0] = 0  # as writable as what was decoded, and nobody else's
    assert same(first, source.load())
    assert sorted(file.suffix for file in kept.iterdir()) == [".npz", ".npz"]


def test_other_content_or_another_size_is_decoded_anew(source, kept, decoded, tmp_path):
    source.load()
    file = tmp_path / "data/test/cat/0.png"
    before = file.stat()
    paint(file, 11)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert file.stat().st_size == before.st_size
    assert source.load().x_test[0, 0, 0, 0] == 11
    assert decoded == [3, 2, 2]
    assert replace(source, size=2).load().sample_shape == (1, 2, 2)
    assert decoded == [3, 2, 2, 3, 2]


def test_a_file_that_changes_meanwhile_is_not_kept(source, kept, monkeypatch, tmp_path):
    decode = images._decoded

    def changed(encoded, refuse, size):
        paint(tmp_path / "data/train/cat/0.png", 12)
        return decode(encoded, refuse, size)

    monkeypatch.setattr(images, "_decoded", changed)
    source.load()
    assert len([*kept.iterdir()]) == 1  # the test images


def test_damaged_entries_are_not_used_and_mended(source, kept, decoded):
    def truncated(whole):
        return whole[: len(whole) // 2]

    def flipped(whole):  # one bit of a pixel
        at = whole.index(bytes([10] * 16))
        return whole[:at] + bytes([11]) + whole[at + 1 :]

    first = source.load()
    for damage in (truncated, flipped, lambda whole: b""):
        decoded.clear()
        for entry in kept.iterdir():
            entry.write_bytes(damage(entry.read_bytes()))
        assert same(first, source.load())
        assert same(first, source.load())
        assert decoded == [3, 2]


def test_a_run_goes_on_without_a_cache(source, kept, decoded, tmp_path, monkeypatch):
    first = source.load()

    def full(file, **arrays):
        file.write(b"begun")
        raise OSError("no space left on device")

    with monkeypatch.context() as disk:
        disk.setattr(np, "savez", full)
        assert replace(source, size=3).load().sample_shape == (1, 3, 3)
    assert len([*kept.iterdir()]) == 2  # nothing half-written is left

    file = tmp_path / "file"
    file.touch()
    for place in (str(file), ""):
        monkeypatch.setenv("RAYFL_CACHE", place)
        decoded.clear()
        assert same(first, source.load())
        assert decoded == [3, 2]
    assert cache.Usage.now() == (None, 0, {})


def test_its_place_is_that_of_the_system(monkeypatch, tmp_path):
    monkeypatch.delenv("RAYFL_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache.folder() == tmp_path / "rayfl/images"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache.folder() == tmp_path / ".cache/rayfl/images"


def test_clean_deletes_what_no_run_has_read_for_a_month(source, kept, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    source.load()
    entries = sorted(kept.iterdir())
    size = sum(entry.stat().st_size for entry in entries)
    month = time.time() - 31 * 24 * 3600
    for entry in entries:
        os.utime(entry, (month, month))
    source.load()  # reads both
    os.utime(entries[0], (month, month))
    old = entries[0].stat().st_size
    listed = CliRunner().invoke(app, ["clean"]).output
    assert f"{old / 1e6:,.1f} MB of {size / 1e6:,.1f} MB of decoded images" in listed
    assert cache.Usage.now().unused == {entries[0]: old}
    assert CliRunner().invoke(app, ["clean", "--delete"]).exit_code == 0
    assert [*kept.iterdir()] == entries[1:]
