"""Sources that read trees of image files, written here in the layouts that are published."""

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_datasets import assert_keeps_its_promises, encode, write_parquet

from rayfl.data.images import Encoded, decode
from rayfl.data.sources import NPZ, DomainFolder, ImageFolder, Parquet, TinyImageNet
from rayfl.data.trees import name_of
from rayfl.errors import ConfigError
from rayfl.text import absolute


def jpeg(file: Path, colour: tuple[int, int, int] | int, size: int = 64) -> None:
    """One plain colour survives JPEG almost unchanged; an integer is a grey image."""
    file.parent.mkdir(parents=True, exist_ok=True)
    shape = (size, size, 3) if isinstance(colour, tuple) else (size, size)
    buffer = io.BytesIO()
    Image.fromarray(np.full(shape, colour, np.uint8)).save(buffer, "JPEG", quality=95)
    file.write_bytes(buffer.getvalue())


# --- Tiny ImageNet


@pytest.fixture
def tiny(tmp_path) -> Path:
    """The published tree with 3 classes instead of 200; colour = (class, number, split)."""
    root = tmp_path / "tiny-imagenet-200"
    ids = ["n02124075", "n01443537", "n04067472"]  # not sorted in the archive either
    for k, id in enumerate(ids):
        for i in range(4):
            jpeg(root / "train" / id / "images" / f"{id}_{i}.JPEG", (80 * k, 20 * i, 0))
        (root / "train" / id / f"{id}_boxes.txt").write_text(f"{id}_0.JPEG\t0\t10\t63\t58\n")
    jpeg(root / "train" / ids[0] / "images" / "n02124075_9.JPEG", 200)  # some of them are grey
    lines = []
    for i, id in enumerate([ids[1], ids[2], ids[0], ids[1], ids[0]]):
        jpeg(root / "val" / "images" / f"val_{i}.JPEG", (80 * ids.index(id), 20 * i, 255))
        lines.append(f"val_{i}.JPEG\t{id}\t0\t32\t44\t62\n")
    (root / "val" / "val_annotations.txt").write_text("".join(lines))
    (root / "test" / "images").mkdir(parents=True)
    (root / "wnids.txt").write_text("\n".join(ids))
    (root / "words.txt").write_text(
        "n00001740\tentity\nn01443537\tgoldfish, Carassius auratus\n"
        "n02124075\tEgyptian cat\nn04067472\treel\n"
    )
    return tmp_path


def test_tiny_imagenet_as_published(tiny):
    data = TinyImageNet(root=str(tiny)).load()

    assert_keeps_its_promises(data)
    assert data.x_train.dtype == np.uint8
    assert data.x_train.shape == (13, 64, 64, 3)
    assert data.classes == ("goldfish", "Egyptian cat", "reel")  # sorted by id
    assert data.y_train.tolist() == [0] * 4 + [1] * 5 + [2] * 4
    assert data.y_test.tolist() == [0, 2, 1, 0, 1]  # as val_annotations.txt lists them
    # By their colours: every image has its own label, in the order of the files' names.
    middle = data.x_train[:, 32, 32].astype(int)
    assert middle[:, 0] == pytest.approx([80] * 4 + [0] * 4 + [200] + [160] * 4, abs=4)
    assert middle[:4, 1] == pytest.approx([0, 20, 40, 60], abs=4)
    assert np.ptp(middle[8]) <= 4  # the grey one, in all three channels
    test = data.x_test[:, 32, 32].astype(int)
    assert test[:, 0] == pytest.approx([80, 160, 0, 80, 0], abs=4)
    assert test[:, 1] == pytest.approx([0, 20, 40, 60, 80], abs=4)


def test_tiny_imagenet_says_what_is_wrong(tiny, monkeypatch):
    monkeypatch.chdir(tiny)
    with pytest.raises(ConfigError) as error:
        TinyImageNet(root="no").load()
    assert str(error.value).startswith(
        f"data.root = 'no': no Tiny ImageNet in {tiny}/no/tiny-imagenet-200: wnids.txt cannot be read ("
    )
    root, source = tiny / "tiny-imagenet-200", TinyImageNet(root=".")
    for file, text, message in (
        ("val/val_annotations.txt", "val_0.JPEG n01443537", "lines of 2 or more columns"),
        ("val/val_annotations.txt", "val_0.JPEG\tn9\n", r"ids that wnids\.txt lacks: \['n9'\]"),
        ("val/val_annotations.txt", "gone.JPEG\tn01443537\n", r"decoded .*gone\.JPEG"),
        ("wnids.txt", "n01443537\nn7\n", "'n7' of wnids.txt has no images in train/n7/images"),
    ):
        kept = (root / file).read_text()
        (root / file).write_text(text)
        with pytest.raises(ConfigError, match=rf"data\.root = '\.': .*{message}"):
            source.load()
        (root / file).write_text(kept)


def test_tiny_imagenet_says_what_it_left_out(tiny):
    root = tiny / "tiny-imagenet-200"
    jpeg(root / "train" / "n99" / "images" / "0.JPEG", 0)
    jpeg(root / "train" / "n01443537" / "images" / "more" / "x.png", 0)
    jpeg(root / "val" / "images" / "val_77.JPEG", 0)
    (root / "train" / "n01443537" / "images" / "notes.txt").touch()
    data = TinyImageNet(root=str(tiny)).load()
    assert data.files == 13 + 1 + 5
    assert data.left_out == (
        "train/n01443537/images/notes.txt", "train/n99/", "val/images/val_77.JPEG",
    )  # fmt: skip


# --- image folders


@pytest.fixture
def animals(tmp_path) -> ImageFolder:
    """train/ and test/ with one image in each of two classes; the last digit of a colour is the class."""
    for split in ("train", "test"):
        for k, label in enumerate(("cat", "dog")):
            save(tmp_path / split / label / "0.png", 10 + k)
    return ImageFolder(path=str(tmp_path), size=4)


def save(file: Path, grey: int, kind: str = "PNG") -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (4, 4), grey).save(file, kind)


def test_images_of_all_types_are_read_at_any_depth(animals, tmp_path):
    kinds = {
        ".PGM": "PPM",
        ".pnm": "PPM",
        ".bmp": "BMP",
        ".TIF": "TIFF",
        ".apng": "PNG",
    }
    for i, (suffix, kind) in enumerate(kinds.items()):
        save(tmp_path / "train" / "dog" / "a b" / f"{i}" / f"x{suffix}", 20 + i, kind)
    jpeg(tmp_path / "train" / "dog" / "z.jfif", 200)
    data = animals.load()
    greys = [10, 11, 20, 21, 22, 23, 24, 200]  # sorted by path
    assert data.x_train[:, 0, 0, 0].tolist() == greys
    assert data.y_train.tolist() == [0] + [1] * 7
    assert (data.files, data.left_out) == (10, ())


def test_what_is_left_out_of_a_folder_is_named(animals, tmp_path):
    names = [
        "train/cat/README.txt",
        "train/cat/x/data.h5",
        "train/beside.png",
        "test/notes",
        "val/cat/0.png",
    ]
    hidden = [
        "train/.ipynb_checkpoints/0.png",
        "train/dog/__MACOSX/0.png",
        "test/cat/.x.png",
        ".DS_Store",
    ]
    for name in (*names, *hidden):
        save(tmp_path / name, 99)
    (tmp_path / "train/cat/up").symlink_to("../..")
    (tmp_path / "train/dog/again").symlink_to("../dog")
    data = animals.load()
    assert data.classes == ("cat", "dog")
    assert data.x_train[:, 0, 0, 0].tolist() == data.x_test[:, 0, 0, 0].tolist() == [10, 11]
    assert data.left_out == (
        *("test/notes", "train/beside.png", "train/cat/README.txt", "train/cat/up/"),
        *("train/cat/x/data.h5", "train/dog/again/", "val/"),
        *(".DS_Store", "test/cat/.x.png", "train/.ipynb_checkpoints/", "train/dog/__MACOSX/"),
    )
    assert data.read[1] == (
        "left out 11: test/notes, train/beside.png, train/cat/README.txt and 8 more"
    )


def test_only_the_first_frame_counts_and_that_is_said(animals, tmp_path):
    frames = [Image.new("L", (4, 4), grey) for grey in (50, 100, 150)]
    frames[0].save(tmp_path / "train/cat/1.tif", save_all=True, append_images=frames[1:])
    data = animals.load()
    assert data.x_train[1, 0, 0, 0] == 50
    assert data.left_out == ("train/cat/1.tif (all but its first frame)",)


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_class_without_images_is_named(animals, tmp_path, split):
    (tmp_path / split / "cat" / "0.png").unlink()
    (tmp_path / split / "cat" / "README.txt").touch()
    with pytest.raises(
        ConfigError, match=rf"no images in the folder of a class, {split}/cat/; put"
    ):
        animals.load()


@pytest.mark.parametrize("content", [b"", b"no image", b"half"])
def test_an_image_that_is_broken_is_named(animals, tmp_path, content):
    file = tmp_path / "test" / "dog" / "in" / "1\n.png"
    save(file, 3)
    file.write_bytes(file.read_bytes()[:50] if content == b"half" else content)
    with pytest.raises(ConfigError, match=r"test/dog/in/1\\n\.png cannot be decoded \(") as error:
        animals.load()
    assert "\n" not in str(error.value)
    file.unlink()
    file.symlink_to("nowhere")
    with pytest.raises(ConfigError, match=r"cannot be decoded .FileNotFoundError"):
        animals.load()


def test_a_palette_with_transparency_is_read_without_a_warning(recwarn):
    rng = np.random.default_rng(0)
    picture = Image.fromarray(rng.integers(0, 256, (8, 8), dtype=np.uint8)).convert("P")
    picture.putpalette(rng.integers(0, 256, 768, dtype=np.uint8).tobytes())
    stream = io.BytesIO()
    picture.save(stream, "PNG", transparency=bytes(range(256)))
    decoded = decode(lambda: [Encoded("a", stream.getvalue())], ConfigError)
    assert (decoded.pixels[0] == np.asarray(picture.convert("RGB"))).all()
    assert not recwarn.list


@pytest.mark.parametrize("path", [".", "../.."])
def test_a_relative_path_has_a_name(animals, tmp_path, monkeypatch, path):
    inside = tmp_path if path == "." else tmp_path / "train" / "cat"
    monkeypatch.chdir(inside)
    assert replace(animals, path=path).load().name == tmp_path.name


@pytest.mark.parametrize(
    ("path", "name"),
    [
        (".", "birds"),
        ("./", "birds"),
        ("../birds", "birds"),
        ("sub/..", "birds"),
        ("sub", "sub"),
        ("/", "data"),
    ],
)
def test_a_directory_has_a_name_however_it_is_given(path, name, tmp_path, monkeypatch):
    (tmp_path / "birds/sub").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "birds")
    assert name_of(absolute(path)) == name


@pytest.mark.parametrize("path", ["~nobody/x", "x" * 5000, "a\0b"])
def test_a_path_that_cannot_be(animals, path):
    for source in (ImageFolder(path=path, size=4), TinyImageNet(root=path), NPZ(path=path)):
        with pytest.raises(ConfigError) as error:
            source.load()
        assert "\n" not in str(error.value)
        assert "\0" not in str(error.value)


# --- domains


@pytest.fixture
def office(tmp_path) -> Path:
    """<domain>/<class>/*.jpg; colour = (domain, class, number)."""
    for d, domain in enumerate(["Art", "Real World"]):
        for k, label in enumerate(["Bed", "Mug"]):
            for i in range(10 - 3 * d):
                jpeg(tmp_path / domain / label / f"{i:05}.jpg", (100 * d, 100 * k, 20 * i), 8 + i)
    return tmp_path


def test_domain_folder_knows_its_domains(office):
    data = DomainFolder(path=str(office), size=8).load()

    assert_keeps_its_promises(data)
    assert data.groups == ("Art", "Real World")
    assert data.classes == ("Bed", "Mug")
    assert data.sample_shape == (3, 8, 8)
    for x, y, group in (
        (data.x_train, data.y_train, data.group_train),
        (data.x_test, data.y_test, data.group_test),
    ):
        assert group is not None
        colours = x[:, 4, 4].astype(int)
        assert colours[:, 0] == pytest.approx(100 * group, abs=5)
        assert colours[:, 1] == pytest.approx(100 * y, abs=5)
    # Every fifth of each domain and class: two of 10, one of 7.
    assert np.bincount(data.group_test).tolist() == [4, 2]
    assert np.bincount(data.group_train).tolist() == [16, 12]
    assert data.x_test[:2, 4, 4, 2] == pytest.approx([80, 180], abs=5)


@pytest.mark.parametrize(
    ("fraction", "of_ten", "of_seven"), [(0.1, 1, 0), (0.5, 5, 3), (0.9, 9, 6)]
)
def test_domain_folder_test_fraction(office, fraction, of_ten, of_seven):
    data = DomainFolder(path=str(office), size=8, test_fraction=fraction).load()
    assert np.bincount(data.group_test, minlength=2).tolist() == [2 * of_ten, 2 * of_seven]
    assert len(data.y_train) + len(data.y_test) == 34
    again = DomainFolder(path=str(office), size=8, test_fraction=fraction).load()
    assert (again.x_test == data.x_test).all()


def test_domain_folder_with_published_splits(office, tmp_path):
    for split, domains in (("train", ["sketch", "photo"]), ("test", ["photo"])):
        for domain in domains:
            for label in ("a", "b"):
                jpeg(tmp_path / "split" / split / domain / label / "0.png", (9, 9, 9))
    data = DomainFolder(path=str(tmp_path / "split"), size=4).load()
    assert data.groups == ("photo", "sketch")
    assert data.group_train.tolist() == [0, 0, 1, 1]
    assert data.group_test.tolist() == [0, 0]

    jpeg(tmp_path / "split" / "test" / "photo" / "c" / "0.png", (9, 9, 9))
    with pytest.raises(ConfigError, match=r"test/ has classes without train images: \['c'\]"):
        DomainFolder(path=str(tmp_path / "split"), size=4).load()


def test_domain_folder_at_any_depth_and_what_it_leaves_out(office):
    jpeg(office / "Art" / "Bed" / "more" / "deep" / "x.jfif", (0, 0, 250), 8)
    for name in (
        "README.md",
        "Art/beside.jpg",
        ".git/Bed/0.jpg",
        "Art/.cache/0.jpg",
        "Art/Bed/a.txt",
    ):
        jpeg(office / name, 0, 8)
    data = DomainFolder(path=str(office), size=8).load()
    assert data.files == len(data.x_train) + len(data.x_test) == 35
    assert data.groups == ("Art", "Real World")
    assert data.classes == ("Bed", "Mug")
    assert data.left_out == (
        *("Art/Bed/a.txt", "Art/beside.jpg", "README.md"), *(".git/", "Art/.cache/")
    )  # fmt: skip


def test_domain_folder_with_half_a_split(office):
    (office / "Art").rename(office / "train")
    with pytest.raises(ConfigError, match="a train/ without its other half"):
        DomainFolder(path=str(office), size=8).load()


def test_a_class_of_a_domain_without_images_is_named(office):
    (office / "Art" / "Cup").mkdir()
    with pytest.raises(ConfigError, match="no images in the folder of a class, Art/Cup/"):
        DomainFolder(path=str(office), size=8).load()


def test_domain_folder_of_another_layout(office):
    with pytest.raises(
        ConfigError, match=r"no images in .*Art; expected the layout <domain>/<class>/"
    ):
        DomainFolder(path=str(office / "Art"), size=8).load()


# --- the writers of Parquet files


def test_parquet_group_column(tmp_path):
    images = [encode(np.full((3, 3), i, np.uint8)) for i in range(4)]
    columns = {"image": images, "character": [0, 1, 0, 1], "writer_id": ["f2", "f1", "f2", "f9"]}
    write_parquet(tmp_path / "train.parquet", columns)
    write_parquet(tmp_path / "test.parquet", columns)
    source = Parquet(path=str(tmp_path), group_column="writer_id")
    data = source.load()
    assert data.groups == ("f1", "f2", "f9")
    assert data.group_train.tolist() == data.group_test.tolist() == [1, 0, 1, 2]
    assert replace(source, group_column=None).load().groups == ()

    # An integer id is no candidate for the labels; the test files need not have it.
    write_parquet(tmp_path / "train.parquet", {**columns, "writer_id": [70, 8, 70, 9]})
    write_parquet(tmp_path / "test.parquet", {k: columns[k] for k in ("image", "character")})
    data = source.load()
    assert data.groups == ("8", "9", "70")
    assert data.group_train.tolist() == [2, 0, 2, 1]
    assert data.group_test is None

    with pytest.raises(
        ConfigError, match=r"data\.group_column = 'who': .*\['character', 'writer_id'\]"
    ):
        replace(source, label_column="character", group_column="who").load()
    write_parquet(tmp_path / "test.parquet", columns)
    with pytest.raises(ConfigError, match=r"data\.group_column = 'writer_id': must have one type"):
        source.load()
