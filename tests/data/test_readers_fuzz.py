"""Odd arrays, trees of files and Parquet files, made at random, through `rayfl partition` in this process.

Whatever they are: exit code 0 with every sample read or named as left out, or code 2 and one line.
"""

import contextlib
import io
import json
import os
import re
import sys
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from rayfl.cli import main
from rayfl.data.sources import NPZ

CONFIG = {
    "data": {"name": "digits"},
    "partition": {"name": "iid"},
    "federation": {"clients": 1, "cohort": 1, "local_steps": 1},
}
HOSTILE = (
    "a b",
    "50%",
    "what?",
    "#1",
    "ü猫",
    "$x$ $y$",
    "[red]",
    "[bold",
    ":dog:",
    "new\nline",
    "\x1b[31m",
)
NAMES = st.sampled_from(
    [*HOSTILE, "\udcff", "x" * 200, "\\", "'\"", "~", "-", "{}", "a,b", "train"]
)
many = settings(deadline=None, max_examples=400, suppress_health_check=list(HealthCheck))
few = settings(many, max_examples=25, derandomize=True, database=None)


def partition(data: dict) -> tuple[object, str, str]:
    """Exit code, stdout and stderr; what is no UTF-8 cannot be printed."""
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8") for _ in range(2))
    argv, path = sys.argv, sys.path[:]
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder, "c.yaml")
        config.write_text(json.dumps(CONFIG | {"data": data}))
        sys.argv = ["rayfl", "partition", str(config)]
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                with pytest.raises(SystemExit) as ended:
                    main.main()
            finally:
                sys.argv, sys.path[:] = argv, path
    for stream in (out, err):
        stream.seek(0)
    return ended.value.code, out.read(), err.read()


def counts(data: dict) -> tuple[int, int, int] | None:
    """Train and test samples that were read, and how much was left out; None if the data were refused."""
    code, out, err = partition(data)
    if code == 2:
        assert re.fullmatch(r"error: [^\n]+\n", err), err
        return None
    assert (code, err) == (0, "")
    read = re.search(r"^read ([\d,]+) train and ([\d,]+) test samples", out, re.MULTILINE)
    left_out = re.search(r"^left out ([\d,]+): ", out, re.MULTILINE)
    assert read
    numbers = (*read.groups(), left_out[1] if left_out else "0")
    train, test, others = (int(number.replace(",", "")) for number in numbers)
    return train, test, others


# --- arrays

LOSSLESS = ["bool", "u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", ">i4", "f2", "f4", ">f4", "f8"]
REFUSED = ["c8", "U3", "S2", "M8[s]", "m8[s]", "V4", "f4,i4"]
SHAPES = [
    (),
    (0,),
    (4,),
    (9,),
    (1,),
    (6, 6),
    (3, 3),
    (3, 3, 1),
    (5, 5, 3),
    (3, 5, 5),
    (5, 5, 16),
    (2, 2, 2, 2),
]
INTEGERS_OR_NOT = ["i8", "u1", "i4", "u8", ">i2", "u2", "i1", "f8"]
LABELS = [-1, 2**32 - 1, 2**63 - 1, 7, np.nan, "a"]


@st.composite
def arrays(draw) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    dtype = np.dtype(draw(st.sampled_from([*LOSSLESS * 3, *REFUSED])))
    shape = draw(st.sampled_from(SHAPES))
    extreme = draw(st.booleans()) and dtype.kind in "iuf"
    classes, labels = (
        draw(st.sampled_from([1, *[2, 3] * 4])),
        draw(st.sampled_from(INTEGERS_OR_NOT)),
    )
    found = {}
    for split, n in (
        ("train", draw(st.sampled_from([0, *range(3, 12)]))),
        ("test", draw(st.integers(1, 3))),
    ):
        x = rng.integers(0, 5, (n, *shape))
        if extreme:
            x = np.frombuffer(rng.bytes(x.size * dtype.itemsize), dtype).reshape(x.shape)
        found[f"x_{split}"] = x if extreme else x.astype("i8" if dtype.kind == "V" else dtype)
        if dtype.kind == "V":
            found[f"x_{split}"] = np.zeros(x.shape, dtype)
        found[f"y_{split}"] = (np.arange(n) % classes).astype(labels)
    if draw(st.integers(0, 9)) == 0 and len(found["y_train"]):
        stray = np.asarray(draw(st.sampled_from(LABELS)))
        found["y_train"] = np.append(found["y_train"][1:], stray)
    if draw(st.booleans()):
        found["x_val"] = np.zeros(3)
    return found


def check_arrays(found: dict[str, np.ndarray], layout: str | None) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = f"{folder}/50% of it?.npz"
        np.savez(file, **found)
        result = counts({"name": "npz", "path": file, "layout": layout})
        if result is None:
            return
        x, y = found["x_train"], found["y_train"]
        assert result == (len(x), len(found["x_test"]), "x_val" in found)
        data = NPZ(path=file, layout=layout).load()
    assert x.dtype.kind in "biuf"
    moved = np.moveaxis(x, 1, -1) if layout == "channels_first" and x.ndim == 4 else x
    with np.errstate(over="ignore"):
        rounded = moved.astype(np.float32) if moved.dtype.kind == "f" else moved
    assert np.array_equal(data.x_train.reshape(rounded.shape), rounded)
    assert np.array_equal(data.y_train, y)


LAYOUTS = st.sampled_from([None, "channels_last", "channels_first"])


@pytest.mark.slow
@few
@given(arrays(), LAYOUTS)
def test_any_arrays(found, layout):
    check_arrays(found, layout)


@pytest.mark.long
@many
@given(arrays(), LAYOUTS)
def test_very_many_arrays(found, layout):
    check_arrays(found, layout)


# --- trees of files


def picture(mode: str, kind: str, size: tuple[int, int], frames: int = 1) -> bytes:
    stream = io.BytesIO()
    first, *more = (Image.new(mode, size, 70 * i) for i in range(frames))
    first.save(stream, kind, **({"save_all": True, "append_images": more} if more else {}))
    return stream.getvalue()


MODES = {
    **{
        "PNG": ("1", "L", "LA", "P", "RGB", "RGBA"),
        "JPEG": ("L", "RGB", "CMYK"),
        "GIF": ("L", "P"),
    },
    **{"PPM": ("1", "L", "RGB"), "BMP": ("1", "L", "RGB"), "TIFF": ("L", "RGB", "CMYK")},
    **{"WEBP": ("RGB", "RGBA"), "TGA": ("L", "RGB")},
}
SUFFIXES = {
    **{
        "PNG": (".png", ".PNG", ".apng"),
        "JPEG": (".jpg", ".JPEG", ".jfif", ".jpe"),
        "GIF": (".gif",),
    },
    **{"PPM": (".pgm", ".ppm", ".pnm", ".pbm"), "BMP": (".bmp", ".dib"), "TIFF": (".tif", ".tiff")},
    **{"WEBP": (".webp",), "TGA": (".tga",)},
}
OTHERS = (
    "README.txt",
    "noext",
    "Thumbs.db",
    "data.h5",
    ".DS_Store",
    "._a.png",
    "a.png.bak",
    "film.mpg",
)
HIDDEN = (".ipynb_checkpoints", "__MACOSX", "@eaDir", ".git")
SPOILT = ("truncated", "empty", "16 bit", "dangling", "no image", "nothing there")


@st.composite
def images(draw) -> tuple[str, bytes, int]:
    """Suffix, content, and how many names of it are left out: frames after the first are."""
    kind = draw(st.sampled_from(sorted(MODES)))
    mode, suffix = draw(st.sampled_from(MODES[kind])), draw(st.sampled_from(SUFFIXES[kind]))
    frames = draw(st.sampled_from([1, 1, 3])) if kind in ("GIF", "TIFF") else 1
    size = draw(st.sampled_from([(1, 1), (4, 4), (9, 5)]))
    content = picture(mode, kind, size, frames)
    with Image.open(io.BytesIO(content)) as written:  # Pillow writes frames that are equal as one
        return suffix, content, int(getattr(written, "n_frames", 1) > 1)


@st.composite
def folders(draw) -> list[tuple[str, bytes | None, int, int]]:
    """Files of a class: name below it, content (None: a link to the folder above), samples, left out."""
    found: list[tuple[str, bytes | None, int, int]] = []
    for i in range(draw(st.integers(1, 4))):
        inside = "".join(f"{name}/" for name in draw(st.lists(NAMES, max_size=2)))
        suffix, content, left_out = draw(images())
        found.append((f"{inside}{i}{draw(NAMES)}{suffix}", content, 1, left_out))
    for other in draw(st.lists(st.sampled_from(OTHERS), max_size=2, unique=True)):
        found.append((f"sub/{other}", b"x", 0, 1))
    for hidden in draw(st.lists(st.sampled_from(HIDDEN), max_size=1)):
        found.append((f"{hidden}/0.png", picture("L", "PNG", (4, 4)), 0, 1))
    if draw(st.booleans()):
        found.append(("loop", None, 0, 1))
    return found


def spoil(directory: Path, how: str) -> None:
    good = picture("RGB", "PNG", (9, 5))
    file = directory / "spoilt.png"
    match how:
        case "truncated":
            file.write_bytes(good[: len(good) // 2])
        case "empty":
            file.touch()
        case "16 bit":
            file.write_bytes(picture("I;16", "PNG", (4, 4)))
        case "dangling":
            file.symlink_to("nowhere.png")
        case "no image":
            file.write_bytes(b"no image")
        case "nothing there":
            (directory.parent / "empty class" / "empty").mkdir(parents=True)


def check_tree(tree: dict[str, list], domains: bool, spoilt: str | None) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary, "a $b$ [red] 50%?")
        samples = left_out = 0
        for split in ("train", "test"):
            for label, files in tree.items():
                directory = root / split / ("photo" if domains else "") / label
                for name, content, is_sample, is_left_out in files:
                    file = directory / name
                    file.parent.mkdir(parents=True, exist_ok=True)
                    if content is None:
                        file.symlink_to("..")
                    else:
                        file.write_bytes(content)
                    samples, left_out = samples + is_sample, left_out + is_left_out
            (root / split / "beside.png").touch()
            left_out += 1
        if spoilt:
            spoil(directory, spoilt)
        name = "domain_folder" if domains else "image_folder"
        result = counts({"name": name, "path": str(root), "size": 3})
    expected = None if spoilt else (samples // 2, samples // 2, left_out)
    assert result == expected


TREES = st.dictionaries(NAMES, folders(), min_size=2, max_size=3)
MAYBE_SPOILT = st.none() | st.none() | st.sampled_from(SPOILT)


@pytest.mark.slow
@few
@given(TREES, st.booleans(), MAYBE_SPOILT)
def test_any_tree(tree, domains, spoilt):
    check_tree(tree, domains, spoilt)


@pytest.mark.long
@many
@given(TREES, st.booleans(), MAYBE_SPOILT)
def test_very_many_trees(tree, domains, spoilt):
    check_tree(tree, domains, spoilt)


# --- Parquet files

STRUCT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
LARGE = pa.struct([("path", pa.string()), ("bytes", pa.large_binary())])
OF_IMAGES = [
    *[STRUCT, LARGE, pa.binary(), pa.large_binary()] * 3,
    pa.string(),
    pa.list_(pa.int64()),
]
INTEGERS = [getattr(pa, f"{sign}int{bits}")() for sign in ("", "u") for bits in (8, 16, 32, 64)]
OF_LABELS = [*INTEGERS * 3, pa.dictionary(pa.int8(), pa.int64()), pa.float32(), pa.null()]
METADATA = [
    None,
    *(b"", b"{", b"\xff", b"null", b"[]", b"3", b'{"info": null}', b'{"info": {"features": null}}'),
    *(b'{"info": {"features": {"label": []}}}', b'{"info": {"features": {"label": {"names": 3}}}}'),
    *(b'{"info": {"features": {"label": {"names": [1, null]}}}}', b"[" * 5000),
    *(
        json.dumps({"info": {"features": {"label": {"names": [name, "[/]", name]}}}}).encode()
        for name in HOSTILE
    ),
]
USED = [
    "{}.parquet",
    "{}-00000-of-00001.parquet",
    "{}_0.parquet",
    "{}/part-0.parquet",
    "{}.parquet/0.parquet",
]
UNUSED = ["{}_noisy-00000-of-00001.parquet", "{}ing.parquet", "._{}.parquet", "validation.parquet"]


@st.composite
def tables(draw) -> pa.Table:
    n = draw(st.integers(3, 7))
    kind, label = draw(st.sampled_from(OF_IMAGES)), draw(st.sampled_from(OF_LABELS))
    mode = draw(st.sampled_from(["RGB", "RGBA", "P", "LA", "L"]))
    cells: list = [picture(mode, "PNG", (3, 3))] * n
    if draw(st.integers(0, 9)) == 0:
        cells[draw(st.integers(0, n - 1))] = draw(st.sampled_from([None, b"", b"no image"]))
    path = draw(st.none() | st.just("a.png"))
    if pa.types.is_struct(kind):
        cells = [{"bytes": cell, "path": path} for cell in cells]
    elif pa.types.is_string(kind):
        cells = ["text"] * n
    elif pa.types.is_list(kind):
        cells = [[1]] * n
    labels = [None if pa.types.is_null(label) else i % 3 for i in range(n)]
    if draw(st.integers(0, 9)) == 0:
        labels[0] = None
    table = pa.table({"image": pa.array(cells, kind), "label": pa.array(labels, label)})
    metadata = draw(st.sampled_from(METADATA))
    return table if metadata is None else table.replace_schema_metadata({b"huggingface": metadata})


def check_parquet(
    train: pa.Table, test: pa.Table, layout: str, unused: list[str], cut: bool
) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary, "alpha=0.1 50%?")  # `key=value`: Arrow would take it for a column
        for split, table in (("train", train), ("test", test)):
            for name in [layout, *unused]:
                file = root / name.format(split)
                file.parent.mkdir(parents=True, exist_ok=True)
                pq.write_table(table, file, row_group_size=2)
        if cut:
            content = file.read_bytes()
            used = root / layout.format("test")
            used.write_bytes(used.read_bytes()[: len(content) // 2])
        result = counts({"name": "parquet", "path": str(root)})
        left_out = sum(name.endswith(".parquet") for name in os.listdir(root))
    if "/" not in layout or ".parquet/" in layout:
        left_out -= 2  # those that are used
    assert result is None or (result == (len(train), len(test), left_out) and not cut)
    for table in (train, test):
        kind = table.field("label").type
        assert result is None or kind in INTEGERS or pa.types.is_dictionary(kind)
        assert result is None or table["label"].null_count == 0


PARQUET = (
    *(tables(), tables(), st.sampled_from(USED)),
    *(
        st.lists(st.sampled_from(UNUSED), max_size=2, unique=True),
        st.integers(0, 9).map(lambda i: i == 0),
    ),
)


@pytest.mark.slow
@few
@given(*PARQUET)
def test_any_parquet_files(train, test, layout, unused, cut):
    check_parquet(train, test, layout, unused, cut)


@pytest.mark.long
@many
@given(*PARQUET)
def test_very_many_parquet_files(train, test, layout, unused, cut):
    check_parquet(train, test, layout, unused, cut)
