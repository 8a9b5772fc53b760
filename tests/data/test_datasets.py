import hashlib
import io
import json
import os
import pickle
import struct
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import rarely
from PIL import Image

from rayfl.config.schema import load_config
from rayfl.data.checks import check
from rayfl.data.datasets import Dataset, Source, from_arrays
from rayfl.data.federated import federate
from rayfl.data.heterogeneity import Heterogeneity
from rayfl.data.picture import heatmap
from rayfl.data.schemes import IID
from rayfl.data.sources import (
    CIFAR10,
    CIFAR100,
    EMNIST,
    MNIST,
    NPZ,
    SOURCES,
    SVHN,
    Digits,
    FashionMNIST,
    ImageFolder,
    Parquet,
)
from rayfl.data.sources.torchvision import TorchvisionSource
from rayfl.errors import ConfigError

RNG = np.random.default_rng(0)
REPOSITORY = Path(__file__).parents[2]


def assert_keeps_its_promises(data: Dataset) -> None:
    for x, y in ((data.x_train, data.y_train), (data.x_test, data.y_test)):
        assert x.ndim in (2, 4)
        assert x.dtype in (np.uint8, np.float32)
        assert y.dtype == np.int64
        assert y.shape == (len(x),)
        assert x.flags.c_contiguous
        assert y.flags.c_contiguous
    assert data.mean.dtype == data.std.dtype == np.float32
    assert data.mean.shape == data.std.shape == (data.x_train.shape[-1],)
    assert set(data.y_train) == set(range(data.num_classes))


# --- digits


def content(data: Dataset) -> str:
    digest = hashlib.sha256()
    for array in (data.x_train, data.y_train, data.x_test, data.y_test, data.mean, data.std):
        digest.update(array.tobytes())
    return digest.hexdigest()


def test_digits_never_change():
    """Recorded, not derived: every published result on digits depends on it."""
    golden = "7c6da819b07cfdf917307a1830e14a17b60a49449a9e63f4c4e129b1fb73aa8f"
    assert content(Digits().load()) == golden


def test_digits_are_stratified_and_fixed():
    data = Digits().load()
    assert_keeps_its_promises(data)
    assert data.sample_shape == (1, 8, 8)
    assert data.num_classes == 10
    assert len(data.x_train) + len(data.x_test) == 1797
    shares = np.bincount(data.y_test) / np.bincount(np.concatenate([data.y_train, data.y_test]))
    assert 0.19 < shares.min() <= shares.max() <= 0.2
    assert (data.x_train.min(), data.x_train.max()) == (0, 255)
    assert (Digits().load().x_train == data.x_train).all()


# --- torchvision: files in their real formats, written here


def write_idx(path: Path, array: np.ndarray) -> None:
    """The format of the MNIST files: 0, 0, 8 = uint8, number of axes, sizes, bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    header = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
    path.write_bytes(header + array.astype(np.uint8).tobytes())


def write_mnist(folder: Path, prefixes: tuple[str, str], labels: np.ndarray) -> np.ndarray:
    images = RNG.integers(0, 256, (len(labels), 28, 28), dtype=np.uint8)
    for prefix in prefixes:
        write_idx(folder / f"{prefix}-images-idx3-ubyte", images)
        write_idx(folder / f"{prefix}-labels-idx1-ubyte", labels)
    return images


@pytest.mark.parametrize(
    ("source", "folder", "mean"), [(MNIST, "MNIST", 0.1307), (FashionMNIST, "FashionMNIST", 0.2860)]
)
def test_mnist_files(tmp_path, source, folder, mean):
    labels = np.tile(np.arange(10), 3)
    images = write_mnist(tmp_path / folder / "raw", ("train", "t10k"), labels)
    data = source(root=str(tmp_path)).load()

    assert_keeps_its_promises(data)
    assert (data.x_train[..., 0] == images).all()
    assert (data.y_test == labels).all()
    assert data.sample_shape == (1, 28, 28)
    assert data.mean == pytest.approx(mean)
    assert len(data.classes) == 10


@pytest.mark.parametrize(
    ("split", "first_label", "classes", "names"),
    [("letters", 1, 26, "abc"), ("balanced", 0, 47, "012"), ("byclass", 0, 62, "012")],
)
def test_emnist_is_upright_and_numbered_from_zero(tmp_path, split, first_label, classes, names):
    labels = np.arange(classes) + first_label
    prefixes = (f"emnist-{split}-train", f"emnist-{split}-test")
    images = write_mnist(tmp_path / "EMNIST" / "raw", prefixes, labels)
    data = EMNIST(root=str(tmp_path), split=split).load()

    assert_keeps_its_promises(data)
    assert (data.x_train[..., 0] == images.transpose(0, 2, 1)).all()
    assert (data.y_train == np.arange(classes)).all()
    assert data.classes[:3] == tuple(names)
    assert data.mean == pytest.approx(images.mean() / 255, rel=1e-5)


@pytest.mark.parametrize(
    ("source", "folder"),
    [
        (MNIST, "MNIST/raw"),
        (FashionMNIST, "FashionMNIST/raw"),
        (EMNIST, "EMNIST/raw"),
        (CIFAR10, "cifar-10-batches-py"),
        (CIFAR100, "cifar-100-python"),
        (SVHN, ""),
    ],
)
def test_missing_files_are_asked_for(tmp_path, monkeypatch, source, folder):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as error:
        source(root="here").load()
    message = str(error.value)
    assert message.startswith("data.root = 'here': ")
    assert f"{tmp_path / 'here' / folder} (" in message
    assert "data.download=true" in message
    assert "\n" not in message


def test_cifar_files_of_wrong_content_are_refused(tmp_path):
    """torchvision compares checksums."""
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    batch = {"data": np.zeros((10, 3072), np.uint8), "labels": list(range(10))}
    for name in [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch", "batches.meta"]:
        (folder / name).write_bytes(pickle.dumps(batch))
    with pytest.raises(ConfigError, match="not found or corrupted"):
        CIFAR10(root=str(tmp_path)).load()


def test_damaged_mnist_file_is_a_config_error(tmp_path):
    write_mnist(tmp_path / "MNIST" / "raw", ("train", "t10k"), np.arange(10))
    (tmp_path / "MNIST" / "raw" / "train-images-idx3-ubyte").write_bytes(b"\0\0\x08\x03")
    with pytest.raises(ConfigError, match=r"cannot read MNIST in .*MNIST/raw"):
        MNIST(root=str(tmp_path)).load()


def test_failed_download_is_one_clear_error(tmp_path, monkeypatch):
    """A proxy that refuses connections makes every download fail, with or without a network."""
    for variable in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(variable, "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "")
    with pytest.raises(ConfigError) as error:
        MNIST(root=str(tmp_path), download=True).load()
    message = str(error.value)
    assert message.startswith("data.download = true: MNIST could not be downloaded to ")
    assert str(tmp_path / "MNIST" / "raw") in message
    assert "\n" not in message


# --- parquet


def encode(pixels: np.ndarray, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def pictures(n: int, *shape: int) -> np.ndarray:
    return RNG.integers(0, 256, (n, *shape), dtype=np.uint8)


def write_parquet(file: Path, columns: dict, names: list[str] | None = None) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table(columns)
    if names is not None:
        features = {"label": {"names": names, "_type": "ClassLabel"}}
        info = json.dumps({"info": {"features": features}})
        table = table.replace_schema_metadata({"huggingface": info})
    pq.write_table(table, file)


def structs(images: np.ndarray, kind: str = "PNG") -> pa.Array:
    cells = [{"bytes": encode(image, kind), "path": None} for image in images]
    return pa.array(cells, pa.struct([("bytes", pa.binary()), ("path", pa.string())]))


@pytest.mark.parametrize("layout", ["{}-00000-of-00001.parquet", "{}/0.parquet"])
def test_parquet_as_published(tmp_path, layout):
    images, labels = pictures(6, 4, 5, 3), np.arange(6) % 3
    for split in ("train", "test"):
        columns = {"img": structs(images), "label": labels}
        write_parquet(tmp_path / layout.format(split), columns, ["cat", "dog", "emu"])
    data = Parquet(path=str(tmp_path)).load()

    assert_keeps_its_promises(data)
    assert (data.x_train == images).all()
    assert (data.y_test == labels).all()
    assert data.classes == ("cat", "dog", "emu")
    assert data.sample_shape == (3, 4, 5)
    scaled = images.reshape(-1, 3) / 255
    assert data.mean == pytest.approx(scaled.mean(axis=0), rel=1e-5)
    assert data.std == pytest.approx(scaled.std(axis=0), rel=1e-5)


@pytest.mark.parametrize(("other", "message"), [
    (["dog", "cat"], "names label 0 of 'label' 'dog', but {} names it 'cat'"),
    (["cat", "dog", "emu"], "names label 2 of 'label' 'emu', but {} names it null"),
    (["cat"], "names label 1 of 'label' null, but {} names it 'dog'"),
])  # fmt: skip
@pytest.mark.parametrize("file", ["test-0.parquet", "train-1.parquet"])
def test_parquet_files_that_name_the_classes_differently(tmp_path, file, other, message):
    for name in ("train-0.parquet", "train-1.parquet", "test-0.parquet"):
        write_parquet(tmp_path / name, labelled(), other if name == file else ["cat", "dog"])
    with pytest.raises(ConfigError) as error:
        Parquet(path=str(tmp_path)).load()
    expected = message.format(tmp_path / "train-0.parquet")
    assert str(error.value).startswith(
        f"data.path = '{tmp_path}': {tmp_path / file} {expected}; write the files again"
    )


def test_parquet_of_several_files_and_plain_bytes_in_grey(tmp_path):
    images = pictures(4, 3, 3)
    for i in range(4):
        columns = {"image": [encode(images[i])], "label": pa.array([i % 2], pa.uint8())}
        write_parquet(tmp_path / f"train-{i}.parquet", columns)
    write_parquet(tmp_path / "test.parquet", {"image": [encode(images[0])], "label": [0]})
    data = Parquet(path=str(tmp_path)).load()

    assert_keeps_its_promises(data)
    assert (data.x_train[..., 0] == images).all()
    assert data.classes == ("0", "1")


def test_parquet_columns_must_be_chosen_when_in_doubt(tmp_path):
    images, coarse, fine = pictures(4, 3, 3), [0, 0, 1, 1], [0, 1, 2, 3]
    for split in ("train", "test"):
        columns = {"img": structs(images, "JPEG"), "fine": fine, "coarse": coarse}
        write_parquet(tmp_path / f"{split}.parquet", columns)
    source = Parquet(path=str(tmp_path))
    with pytest.raises(ConfigError, match=r"data\.label_column = null: .*\['fine', 'coarse'\]"):
        source.load()
    assert replace(source, label_column="coarse").load().num_classes == 2
    with pytest.raises(ConfigError, match=r"data\.image_column = 'image': .*\['img'\]"):
        replace(source, label_column="fine", image_column="image").load()


def test_parquet_with_images_of_several_sizes_or_none_at_all(tmp_path):
    for cells, message in (
        ([encode(pictures(1, 3, 3)[0]), encode(pictures(1, 3, 4)[0])], "2 sizes"),
        ([encode(pictures(1, 3, 3)[0]), b"no image"], "cannot be decoded"),
        ([encode(pictures(1, 3, 3)[0]), None], "empty cell in .image., row 1"),
        ([encode(RNG.integers(0, 2**16, (3, 3), dtype=np.uint16))] * 2, "8 bits"),
    ):
        for split in ("train", "test"):
            columns = {"image": pa.array(cells, pa.binary()), "label": [0, 1]}
            write_parquet(tmp_path / f"{split}.parquet", columns)
        with pytest.raises(ConfigError, match=message):
            Parquet(path=str(tmp_path)).load()


def both(tmp_path: Path, columns: dict, names: tuple[str, ...] = ("{}.parquet",)) -> Parquet:
    """The same table under these names, for train and test."""
    for split in ("train", "test"):
        for name in names:
            write_parquet(tmp_path / name.format(split), columns)
    return Parquet(path=str(tmp_path))


def labelled(n: int = 4) -> dict:
    return {"img": structs(pictures(n, 3, 3)), "label": np.arange(n) % 2}


@pytest.mark.parametrize("used", [
    ("{}.parquet",), ("{}-00000-of-00001.parquet",), ("{}_0.parquet", "{}_1.parquet"),
    ("{}-00000-of-00001-a09b74b3ef9c3b56.parquet",), ("{}.00000.parquet",), ("{}-0001.parquet",),
    ("{}/0000.parquet", "{}/any name.parquet"), ("{}.parquet/part-0.snappy.parquet",),
    ("{}/a.parquet", "{}/more/b.parquet", "{}/even/more/c.parquet"), ("{}.parquet/more/part-0.parquet",),
    ("{}-1.parquet", "{}-2.PARQUET"), ("{}/a.Parquet",),
])  # fmt: skip
def test_parquet_files_of_a_split_and_no_others(tmp_path, used):
    others = ("{}_noisy-00000-of-00001.parquet", "{}ing.parquet", "._{}.parquet")
    data = both(tmp_path, labelled(), used + others).load()
    assert len(data.x_train) == len(data.x_test) == 4 * len(used)
    assert data.files == 2 * len(used)
    assert sorted(data.left_out) == sorted(n.format(s) for n in others for s in ("train", "test"))
    assert data.left_out[-1].startswith("._")  # hidden ones come last


def test_parquet_that_is_hidden_in_the_folder_of_a_split_is_left_out(tmp_path):
    hidden = ("{}/.a.parquet", "{}/.cache/a.parquet", "{}/more/_SUCCESS")
    data = both(tmp_path, labelled(), ("{}/a.parquet", "{}/more/b.parquet", *hidden)).load()
    assert data.files == 4
    names = ("{}/more/_SUCCESS", "{}/.a.parquet", "{}/.cache/")
    assert data.left_out == tuple(name.format(s) for s in ("train", "test") for name in names)


@pytest.mark.parametrize(("names", "message"), [
    (("{}_noisy.parquet", "{}-a.parquet"), r"no train files.* do not pass: \['train-a\.parquet', "),
    (("{}.parquet/a.txt",), r"the folder train\.parquet/ has no \.parquet files in it; put some there"),
    (("{}/label=0/x.parquet",), "train/label=0/ is named as a partition, key=value, whose column is not in"),
    (("{}.parquet/label=0/x.parquet",), r"train\.parquet/label=0/ is named as a partition"),
    (("{}.parquet", "{}/0.parquet"), r"train\.parquet and the folder train/ are both there"),
    (("{}.parquet", "{}-00000-of-00001.parquet"), "more than one version of the split train"),
    (("{}-00000-of-00001.parquet", "{}-00000-of-00002.parquet"), "more than one version"),
    (("{}-00000-of-00001-aa.parquet", "{}-00000-of-00001-bb.parquet"), "more than one version"),
])  # fmt: skip
def test_parquet_files_that_may_or_may_not_be_a_split(tmp_path, names, message):
    with pytest.raises(ConfigError, match=message) as error:
        both(tmp_path, labelled(), names).load()
    assert "\n" not in str(error.value)


def test_parquet_shards_that_are_missing_are_counted(tmp_path):
    names = ("{}-00000-of-00005.parquet", "{}-00003-of-00005.parquet")
    data = both(tmp_path, labelled(), names).load()
    assert data.left_out[0] == "3 of the 5 files of train, which are not there"


@pytest.mark.parametrize("metadata", [
    b"", b"{", b"\xff", b"null", b"[]", b'{"info": null}', b'{"info": {"features": null}}', b"[" * 9999,
    b'{"info": {"features": {"label": {"names": 3}}}}', b'{"info": {"features": {"label": {"names": [1]}}}}',
])  # fmt: skip
def test_parquet_metadata_without_features(tmp_path, metadata):
    source = both(tmp_path, labelled())
    table = pq.read_table(tmp_path / "train.parquet")
    pq.write_table(
        table.replace_schema_metadata({b"huggingface": metadata}), tmp_path / "train.parquet"
    )
    assert source.load().classes == ("0", "1")


@pytest.mark.parametrize(("cell", "message"), [
    ({"bytes": None, "path": "/data/0.png"}, "has the path '/data/0.png' without an image in 'img', row 1"),
    ({"bytes": None, "path": None}, "an empty cell in 'img', row 1"),
    (None, "an empty cell in 'img', row 1"),
    ({"bytes": b"", "path": None}, "train.parquet, row 1 cannot be decoded .no image that Pillow knows"),
    ({"bytes": encode(pictures(1, 9, 9)[0])[:60], "path": None}, "row 1 cannot be decoded .OSError"),
])  # fmt: skip
def test_parquet_cells_without_an_image_are_named(tmp_path, cell, message):
    good = {"bytes": encode(pictures(1, 3, 3)[0]), "path": None}
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    columns = {"img": pa.array([good, cell, good], kind), "label": [0, 1, 0]}
    with pytest.raises(ConfigError, match=message) as error:
        both(tmp_path, columns).load()
    assert "\n" not in str(error.value)


def test_parquet_in_folders_that_look_like_partitions(tmp_path):
    """Arrow's datasets make a column of a folder `key=value`, or refuse it for the type of such a column."""
    data = both(tmp_path / "label=a" / "50%?", labelled()).load()
    assert data.name == "50%?"
    assert data.classes == ("0", "1")


def test_parquet_of_several_row_groups_is_read_in_order(tmp_path):
    """More images than are decoded at once, in files of their own sizes."""
    images = pictures(901, 2, 2)
    for split in ("train", "test"):
        table = pa.table(
            {"image": [encode(image) for image in images], "label": np.arange(901) % 7}
        )
        pq.write_table(table[:450], tmp_path / f"{split}-0.parquet", row_group_size=7)
        pq.write_table(table[450:], tmp_path / f"{split}-1.parquet")
    data = Parquet(path=str(tmp_path)).load()
    assert (data.x_train[..., 0] == images).all()
    assert (data.y_test == np.arange(901) % 7).all()


def test_parquet_in_the_wrong_place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=rf"data\.path = 'no': {tmp_path}/no is not a directory"):
        Parquet(path="no").load()
    with pytest.raises(ConfigError, match=rf"{tmp_path} has no train files.*train/\*\.parquet"):
        Parquet(path=".").load()


@pytest.mark.slow
def test_real_cifar10():
    default = REPOSITORY.parent / "shared" / "data" / "cifar10"
    path = Path(os.environ.get("RAYFL_CIFAR10_PARQUET", default))
    if not path.is_dir():
        pytest.skip("no CIFAR-10: set RAYFL_CIFAR10_PARQUET to the directory of its Parquet files")
    data = Parquet(path=str(path), augment="flip_crop").load()

    assert_keeps_its_promises(data)
    assert data.x_train.shape == (50_000, 32, 32, 3)
    assert (np.bincount(data.y_train) == 5000).all()
    assert (np.bincount(data.y_test) == 1000).all()
    assert data.classes[:3] == ("airplane", "automobile", "bird")
    # The published constants; the files are JPEG, hence not to the last digit.
    assert data.mean == pytest.approx([0.4914, 0.4822, 0.4465], abs=2e-3)
    assert data.std == pytest.approx([0.2470, 0.2435, 0.2616], abs=3e-3)


# --- npz


def npz(path: Path, **arrays: np.ndarray) -> NPZ:
    np.savez(path / "data.npz", **arrays)
    return NPZ(path=str(path / "data.npz"))


def four_arrays(x: np.ndarray, y: np.ndarray) -> dict[str, np.ndarray]:
    return {"x_train": x, "y_train": y, "x_test": x[:4], "y_test": y[:4]}


@pytest.mark.parametrize(
    ("x", "sample_shape"),
    [
        (RNG.normal(size=(8, 5)), (5,)),
        (RNG.normal(size=(8, 6, 7)).astype(np.float32), (1, 6, 7)),
        (pictures(8, 6, 7), (1, 6, 7)),
        (np.asfortranarray(pictures(8, 6, 7, 3)), (3, 6, 7)),
        (pictures(8, 5), (5,)),
        (pictures(8, 5) > 99, (5,)),
        (RNG.normal(size=(8, 6, 7)).astype(np.float16), (1, 6, 7)),
    ],
)
@pytest.mark.parametrize("label_type", [np.uint8, np.int32, np.int64])
def test_npz_types_and_shapes(tmp_path, x, sample_shape, label_type):
    labels = np.arange(8, dtype=label_type) % 3
    data = npz(tmp_path, **four_arrays(x, labels)).load()
    assert_keeps_its_promises(data)
    assert data.sample_shape == sample_shape
    assert data.num_classes == 3
    assert data.name == "data"


def test_npz_constant_feature_has_std_one(tmp_path):
    x = np.tile([[1.0, 7.0], [3.0, 7.0]], (4, 1))
    data = npz(tmp_path, **four_arrays(x, np.arange(8) % 2)).load()
    assert data.mean.tolist() == [2.0, 7.0]
    assert data.std.tolist() == [1.0, 1.0]


def test_npz_constant_channel_of_bytes_has_std_one(tmp_path):
    """48 times 11 / 255, divided by 48, is not 11 / 255."""
    x = np.stack([np.full((8, 2, 3), 11, np.uint8), pictures(8, 2, 3)], axis=-1)
    source = npz(tmp_path, **four_arrays(x, np.arange(8) % 2))
    std = replace(source, layout="channels_last").load().std
    assert std[0] == 1
    assert std[1] == pytest.approx((x[..., 1] / 255).std())


def test_npz_feature_for_which_float32_is_too_coarse_is_named(tmp_path):
    """Times in seconds: in float32 they would all be one."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(80, 3))
    x[:, 1] = 1.7e9 + rng.uniform(0, 50, 80)
    x[:, 2] = 1.7e9 + 0.1  # constant: nothing to lose
    with pytest.raises(ConfigError) as error:
        npz(tmp_path, **four_arrays(x, np.arange(80) % 2)).load()
    std = x[:, 1].std()
    assert str(error.value).startswith(
        "data.name: feature 1 of the train data of 'data' has mean 1.7e+09 and standard deviation "
        f"{std:.6g}, for which float32 is too coarse (off by "
    )
    x[:, 1] -= 1.7e9
    data = npz(tmp_path, **four_arrays(x, np.arange(80) % 2)).load()
    assert data.std[1] == pytest.approx(std)


GOOD = four_arrays(RNG.normal(size=(8, 5)), np.arange(8) % 2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"y_train": np.arange(8) % 2 * 2}, r"without samples: \[1\]; number the labels"),
        ({"y_train": np.zeros(8, int), "y_test": np.zeros(4, int)}, "2 or more classes"),
        ({"y_train": np.arange(8) % 2 - 1}, "train data of 'data' have labels from -1 to 0"),
        ({"y_test": np.full(4, 2)}, "test data of 'data' have labels from 2 to 2; .* from 0 to 1"),
        ({"y_train": np.arange(7)}, r"labels int64 \[7\]; must be integers \[8\]"),
        ({"y_train": np.arange(8) / 2}, r"labels float64 \[8\]"),
        (
            {"x_train": np.full((8, 5), np.nan)},
            "train data of 'data' have values that are not finite",
        ),
        (
            {"x_test": np.full((4, 5), np.inf)},
            "test data of 'data' have values that are not finite",
        ),
        ({"x_train": np.zeros((8, 2, 2), np.int64)}, r"are int64 \[8, 2, 2, 1\]; must be uint8"),
        ({"x_train": np.zeros(8)}, r"\[8\]; must be uint8 or float, \[n, F\]"),
        ({"x_test": np.zeros((4, 6))}, r"differ: \(5,\) float32 and \(6,\) float32"),
        ({"x_test": np.zeros((0, 5)), "y_test": np.zeros(0, int)}, "test data of 'data' are empty"),
        ({"x_train": np.zeros((8, 0)), "x_test": np.zeros((4, 0))}, r"are empty: \[8, 0\]"),
        ({"y_train": np.array(list("abababab"))}, r"labels <U1 \[8\]; must be integers"),
        ({"y_train": np.array([np.nan, 1] * 4)}, r"labels float64 \[8\]"),
        ({"y_train": np.array([0, 1] * 4, "m8[s]")}, r"labels timedelta64\[s\] \[8\]"),
        ({"x_train": np.full((8, 5), "a")}, r"are <U1 \[8, 5\]; must be"),
        ({"x_train": np.zeros(8, "f4,i4")}, r"are \[\('f0', '<f4'\).* \[8\]; must be"),
        ({"x_train": np.ones((8, 5)) * 1j}, r"are complex128 \[8, 5\]; must be"),
        ({"x_train": np.full((8, 5), 2**64 - 1, np.uint64)}, r"are uint64 \[8, 5\]; must be"),
        ({"x_train": np.full((8, 5), 1e39)}, "not finite in float32"),
        ({"x_train": np.array(3)}, r"are int64 \[1\]; must be"),
        (
            {"y_train": np.array([0, 1] * 3 + [0, 2**32 - 1], np.uint32)},
            "labels up to 4294967295, but 8 samples; number the labels",
        ),
        ({"y_train": np.full(8, 2**64 - 1, np.uint64)}, r"labels uint64 \[8\]"),
    ],
)
def test_bad_arrays_are_named(tmp_path, change, message):
    with pytest.raises(ConfigError, match=message) as error:
        npz(tmp_path, **{**GOOD, **change}).load()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("shape", [(3, 16, 16), (16, 16, 16), (3, 5, 3), (16, 16, 2)])
def test_npz_images_say_where_their_channels_are(tmp_path, shape):
    images, labels = pictures(8, *shape), np.arange(8) % 2
    source = npz(tmp_path, **four_arrays(images, labels))
    with pytest.raises(ConfigError, match=r"data\.layout = null: .*'channels_last' or 'channels_f"):
        source.load()
    last = replace(source, layout="channels_last").load()
    assert (last.x_train == images).all()
    assert last.sample_shape == (shape[2], *shape[:2])
    first = replace(source, layout="channels_first").load()
    assert_keeps_its_promises(first)
    assert (first.x_train.transpose(0, 3, 1, 2) == images).all()
    assert first.sample_shape == shape


def test_npz_layout_is_no_part_of_what_older_configs_are():
    def identity(**data):
        config = {"data": {"name": "npz", "path": "a.npz"} | data, "federation": TINY}
        return load_config(config).flat_identity()

    assert not any("layout" in key for key in identity())
    assert identity(layout="channels_first")["data.layout"] == "channels_first"


TINY = {"clients": 2, "cohort": 2, "local_steps": 2, "rounds": 1}


@pytest.mark.parametrize("kind", [np.int64, np.int32, np.uint16, np.int8])
def test_npz_integers_that_are_no_images_stay_as_they_are(tmp_path, kind):
    tokens = RNG.integers(0, 100, (8, 6)).astype(kind)
    source = npz(tmp_path, **four_arrays(tokens, np.arange(8) % 2))
    data = source.load()
    assert data.x_train.dtype == np.int64
    assert (data.x_train == tokens).all()
    assert not data.mean.any()
    assert (data.std == 1).all()
    assert data.trial().tolist() == [[tokens.min()] * 6, [tokens.max()] * 6]
    assert "int64 6 (integer tokens)" in data.read[0]
    with pytest.raises(ConfigError, match=r"heterogeneity\.noise = 0\.1: .* integer tokens"):
        federate(source.load(), IID(), Heterogeneity(noise=0.1), 2, seed=0)


def test_tokens_may_not_be_normalised():
    y = np.arange(8) % 2
    tokens = from_arrays("x", (np.zeros((8, 2), int), y), (np.zeros((8, 2), int), y))
    with pytest.raises(ConfigError, match="integer tokens, which are not normalised"):
        check(replace(tokens, mean=np.ones(2, np.float32)))


def test_what_was_read_is_said(tmp_path):
    arrays = four_arrays(np.linspace(0, 8, 40).reshape(8, 5), np.arange(8) % 4)
    data = npz(tmp_path, **arrays, x_val=np.zeros(1), y_val=np.zeros(1)).load()
    assert data.read == (
        "read 8 train and 4 test samples from 1 file: 4 classes (0, 1, 2, ...), float32 5 (features), "
        "values 0 to 8, test 0 to 3.89744",
        "left out 2: x_val, y_val",
    )


def test_npz_with_groups(tmp_path):
    arrays = four_arrays(np.linspace(0, 8, 40).reshape(8, 5), np.arange(8) % 4)
    train, test = (len(arrays[f"y_{split}"]) for split in ("train", "test"))
    clinics = np.array(["south", "north"])
    data = npz(
        tmp_path,
        **arrays,
        group_train=clinics[np.arange(train) % 2],
        group_test=clinics[[0] * test],
    ).load()
    assert data.groups == ("north", "south")
    assert data.group_train is not None
    assert data.group_train.tolist() == [(i + 1) % 2 for i in range(train)]
    assert data.group_test is not None
    assert data.group_test.tolist() == [1] * test
    assert not data.left_out
    numbered = npz(tmp_path, **arrays, group_train=10 * np.arange(train)).load()
    assert numbered.groups == tuple(str(10 * i) for i in range(train))
    assert numbered.group_test is None


@pytest.mark.parametrize(
    ("groups", "words"),
    [
        ({"group_train": np.arange(3)}, r"group_train is int64 \[3\]; it must have .*, \[8\]"),
        ({"group_train": np.linspace(0, 1, 8)}, r"group_train is float64 \[8\]"),
        ({"group_train": np.arange(8), "group_test": np.arange(8)}, r"group_test is int64 \[8\]"),
        ({"group_test": np.arange(4)}, "group_test is there without group_train"),
    ],
)
def test_npz_with_groups_that_are_none(tmp_path, groups, words):
    arrays = four_arrays(np.linspace(0, 8, 40).reshape(8, 5), np.arange(8) % 4)
    with pytest.raises(ConfigError, match=rf"data\.path = .*: {words}"):
        npz(tmp_path, **arrays, **groups).load()


def test_npz_that_cannot_be_read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        ConfigError, match=rf"data\.path = 'no\.npz': cannot read {tmp_path}/no.npz"
    ):
        NPZ(path="no.npz").load()
    without = {name: array for name, array in GOOD.items() if name != "x_test"}
    with pytest.raises(ConfigError, match=r"x_test.*expected .*x_train, y_train, x_test, y_test"):
        npz(tmp_path, **without).load()
    with pytest.raises(ConfigError, match="allow_pickle"):
        npz(tmp_path, **{**GOOD, "x_train": np.array([{}, []], dtype=object)}).load()


# --- image_folder


def write_folder(root: Path, split: str, classes: dict[str, list[np.ndarray]]) -> None:
    for name, images in classes.items():
        (root / split / name).mkdir(parents=True)
        for i, image in enumerate(images):
            (root / split / name / f"{i}.png").write_bytes(encode(image))


def test_image_folder_resizes_and_sorts(tmp_path):
    for split in ("train", "test"):
        dogs, cats = [pictures(1, 9, 7, 3)[0]], [pictures(1, 4, 4)[0], np.full((8, 8), 9, np.uint8)]
        write_folder(tmp_path, split, {"dog": dogs, "cat": cats})
        (tmp_path / split / "cat" / "notes.txt").write_text("no image")
    data = ImageFolder(path=str(tmp_path), size=8, augment="flip").load()

    assert_keeps_its_promises(data)
    assert data.classes == ("cat", "dog")
    assert data.y_train.tolist() == [0, 0, 1]
    assert data.sample_shape == (3, 8, 8)
    assert (data.x_train[1] == 9).all()  # grey among coloured: all three channels


def test_image_folder_errors(tmp_path):
    source = ImageFolder(path=str(tmp_path), size=8)
    with pytest.raises(ConfigError, match=rf"{tmp_path}/train; expected the layout train/<class>"):
        source.load()
    write_folder(tmp_path, "train", {"a": [pictures(1, 4, 4)[0]], "b": [pictures(1, 4, 4)[0]]})
    write_folder(tmp_path, "test", {"a": [pictures(1, 4, 4)[0]], "c": [pictures(1, 4, 4)[0]]})
    with pytest.raises(ConfigError, match=r"same classes; only in one of them: \['b', 'c'\]"):
        source.load()
    with pytest.raises(
        ConfigError, match=r"data\.path = '/no/where': /no/where is not a directory"
    ):
        ImageFolder(path="/no/where", size=8).load()


# --- all sources


@pytest.mark.parametrize("augment", ["flip", "flip_crop"])
def test_features_cannot_be_augmented(tmp_path, augment):
    source = replace(npz(tmp_path, **GOOD), augment=augment)
    with pytest.raises(ConfigError, match=rf"data\.augment = '{augment}': works on images"):
        source.load()


@dataclass(frozen=True, kw_only=True)
class Careless(Source):
    """A user's source that does not use from_arrays."""

    order: str = "F"

    def read(self) -> Dataset:
        x, y = np.ones((4, 2, 2, 1), np.float32, order=self.order), np.arange(4) % 2
        return Dataset("careless", x, y, x, y, np.zeros(3), np.ones(3), ("a", "b"))


@pytest.mark.parametrize(("order", "message"), [("F", "not C-contiguous"), ("C", "mean and std")])
def test_a_source_of_the_user_is_checked_too(order, message):
    with pytest.raises(ConfigError, match=message):
        Careless(order=order).load()


def test_registry_holds_every_source():
    assert all(issubclass(source, Source) for source in SOURCES.values())
    assert {source for source in SOURCES.values() if issubclass(source, TorchvisionSource)} == set(
        TorchvisionSource.__subclasses__()
    )


def test_importing_the_sources_is_cheap():
    code = (
        "import sys, rayfl.data.sources, rayfl.data.schemes, rayfl.data.picture;"
        "slow = {'torch', 'torchvision', 'sklearn', 'pyarrow', 'PIL', 'matplotlib'};"
        "print(slow & {*sys.modules})"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.strip() == "set()"


@pytest.mark.parametrize(("clients", "classes"), [(1, 2), (10, 10), (300, 47)])
@pytest.mark.parametrize("suffix", ["png", *rarely(["svg"])])
def test_heatmap_is_written(tmp_path, clients, classes, suffix):
    file = tmp_path / f"partition.{suffix}"
    heatmap(RNG.integers(0, 9, (clients, classes)), tuple(map(str, range(classes))), file)
    if suffix == "png":
        with Image.open(file) as picture:
            assert picture.width == 1500
    else:
        assert "<svg" in file.read_text()


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_heatmap_of_hostile_names(tmp_path, suffix):
    """Two dollar signs are mathematics to matplotlib, and this is none."""
    names = ("$\\frac$", "$x$ $y$", "new\nline", "\x1b[31m", "x" * 10_000)
    file = tmp_path / f"a.{suffix}"
    heatmap(RNG.integers(0, 9, (3, 5)), names, file)
    if suffix == "svg":
        assert all(name in file.read_text() for name in ("$\\frac$", "$x$ $y$", "new\\nline"))


def test_from_arrays_makes_names_printable():
    data = from_arrays("x", *[(np.zeros((2, 1)), np.arange(2))] * 2, classes=["a\nb", "\udcff"])
    assert data.classes == ("a\\nb", "\\udcff")


def test_from_arrays_numbers_the_classes():
    data = from_arrays("x", (GOOD["x_train"], GOOD["y_train"]), (GOOD["x_test"], GOOD["y_test"]))
    assert data.classes == ("0", "1")


def test_from_arrays_numbers_the_groups():
    train, test = (GOOD["x_train"], GOOD["y_train"]), (GOOD["x_test"], GOOD["y_test"])
    writers = np.array(["eve", "bob", "eve", "eve", "bob", "bob", "eve", "bob"], dtype=object)
    data = from_arrays("x", train, test, groups=(writers, np.array(["bob", "ada"] * 2, object)))
    assert data.groups == ("ada", "bob", "eve")
    assert data.group_train is not None
    assert data.group_test is not None
    assert data.group_train.dtype == data.group_test.dtype == np.int64
    assert data.group_train.tolist() == [2, 1, 2, 2, 1, 1, 2, 1]
    assert data.group_test.tolist() == [1, 0, 1, 0]

    data = from_arrays("x", train, test, groups=(np.arange(8) % 3 * 5, None))
    assert data.groups == ("0", "5", "10")
    assert data.group_test is None

    data = from_arrays("x", train, test)
    assert (data.groups, data.group_train, data.group_test) == ((), None, None)


@dataclass(frozen=True, kw_only=True)
class Grouped(Source):
    """A user's source that fills the groups itself."""

    group: np.ndarray

    def read(self) -> Dataset:
        data = from_arrays(
            "x", (GOOD["x_train"], GOOD["y_train"]), (GOOD["x_test"], GOOD["y_test"])
        )
        return replace(data, groups=("a", "b"), group_train=self.group)


@pytest.mark.parametrize(
    ("group", "message"),
    [
        (np.arange(8), "train data of 'x' have groups from 0 to 7; must be from 0 to 1"),
        (np.zeros(7, np.int64), r"train data of 'x' have groups int64 \[7\]; must be int64 \[8\]"),
        (np.zeros(8), r"groups float64 \[8\]; must be int64 \[8\]"),
    ],
)
def test_bad_groups_are_named(group, message):
    with pytest.raises(ConfigError, match=message):
        Grouped(group=group).load()
