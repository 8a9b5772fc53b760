"""Data sets of Hugging Face's library: saved here by it, read by `data.name=hf`."""

import json

import numpy as np
import pytest
from datasets import (
    Array2D,
    ClassLabel,
    Dataset,
    DatasetDict,
    Features,
    Image,
    List,
    Value,
    disable_progress_bars,
)
from PIL import Image as Pillow
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from rayfl.data.sources.hf import HuggingFace
from rayfl.errors import ConfigError

disable_progress_bars()
N = 60
RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (N, 5, 4), dtype=np.uint8)
LABELS = RNG.permutation(np.arange(N) % 3)
WRITERS = [f"writer {k}" for k in RNG.permutation(np.arange(N) % 4)]
SCORES = RNG.normal(size=N)
TABLE = Dataset.from_dict(
    {
        "image": [Pillow.fromarray(pixels) for pixels in PIXELS],
        "label": LABELS.tolist(),
        "writer": WRITERS,
        "map": PIXELS.tolist(),
        "both": np.stack([SCORES, LABELS], 1).tolist(),
        "score": SCORES.tolist(),
        "age": (20 + LABELS).tolist(),
    },
    features=Features(
        {
            "image": Image(),
            "label": ClassLabel(names=["x", "y", "z"]),
            "writer": Value("string"),
            "map": Array2D((5, 4), "uint8"),
            "both": List(Value("float64")),
            "score": Value("float64"),
            "age": Value("int32"),
        }
    ),
)
WORDS = ["[PAD]", "[UNK]", "to", "be", "or", "not"]


@pytest.fixture
def saved(tmp_path):
    """Directory of TABLE; all of it are train samples."""
    TABLE.save_to_disk(tmp_path / "table")
    return str(tmp_path / "table")


def test_images_by_writer_are_what_was_saved(saved):
    data = HuggingFace(path=saved, group_column="writer", test_share=0.25).load()
    assert (data.name, data.classes, data.sample_shape) == ("table", ("x", "y", "z"), (1, 5, 4))
    assert len(data.groups) == 4
    x = np.concatenate([data.x_train, data.x_test])[..., 0]
    y = np.concatenate([data.y_train, data.y_test])
    group = np.concatenate([data.group_train, data.group_test])
    place = [int(np.flatnonzero((pixels == PIXELS).all((1, 2)))[0]) for pixels in x]
    assert sorted(place) == list(range(N))
    assert y.tolist() == LABELS[place].tolist()
    assert [data.groups[k] for k in group] == [WRITERS[k] for k in place]


def test_the_share_of_test_samples_is_the_same_for_ever_and_fair(saved):
    source = HuggingFace(path=saved, group_column="writer", test_share=0.2)
    data, again = source.load(), source.load()
    assert data.digest == again.digest
    assert data.y_test.tolist() == again.y_test.tolist()
    assert np.bincount(data.group_test).tolist() == [3, 3, 3, 3]  # of 15 each
    assert np.bincount(data.y_test).min() >= 3


@pytest.mark.parametrize("form", ["directory", "parquet", "csv", "json"])
def test_other_forms_of_the_same_data(tmp_path, saved, form):
    table = TABLE.remove_columns(["image", "map", "both"])
    options = {"feature_columns": ("score", "age"), "label_column": "label"}
    expected = HuggingFace(path=saved, **options).load()
    path = tmp_path / f"table.{form}"
    if form == "directory":
        path.mkdir()
        table.to_parquet(path / "train-00000-of-00001.parquet")
    else:
        getattr(table, f"to_{form}")(path)
    data = HuggingFace(path=str(path), **options).load()
    for part in ("x_train", "y_train", "x_test", "y_test"):
        np.testing.assert_array_equal(getattr(data, part), getattr(expected, part))


def test_a_test_split_and_other_splits(tmp_path):
    parts = {"train": range(30), "test": range(30, 50), "spare": range(50, 60)}
    saved = DatasetDict({name: TABLE.select(rows) for name, rows in parts.items()})
    saved.save_to_disk(tmp_path / "split")
    data = HuggingFace(path=str(tmp_path / "split"), input_column="map").load()
    assert (data.x_train[..., 0] == PIXELS[:30]).all()
    assert (data.x_test[..., 0] == PIXELS[30:50]).all()
    assert data.left_out == ("split spare",)
    other = HuggingFace(path=str(tmp_path / "split"), input_column="map", test_split="spare").load()
    assert (other.x_test[..., 0] == PIXELS[50:]).all()


@pytest.mark.parametrize(
    ("label", "classes"),
    [("age", ("20", "21", "22")), ("writer", tuple(sorted(set(WRITERS)))), ("label", tuple("xyz"))],
)
def test_labels_become_classes(saved, label, classes):
    data = HuggingFace(path=saved, input_column="both", label_column=label).load()
    assert data.classes == classes
    assert data.x_train.dtype == np.float32
    y = {name: k for k, name in enumerate(classes)}
    row = {round(score, 4): k for k, score in enumerate(SCORES)}
    column = TABLE.with_format("numpy")[label]
    for x, target in zip(data.x_train, data.y_train, strict=True):
        named = column[row[round(float(x[0]), 4)]]
        assert target == (named if label == "label" else y[str(named)])


def test_images_of_several_sizes_are_resized(tmp_path):
    pictures = [Pillow.fromarray(np.zeros((4 + k, 5), np.uint8)) for k in range(10)]
    table = Dataset.from_dict({"image": pictures, "label": [0, 1] * 5}).cast_column(
        "image", Image()
    )
    table.save_to_disk(tmp_path / "sizes")
    data = HuggingFace(path=str(tmp_path / "sizes"), size=6).load()
    assert data.sample_shape == (1, 6, 6)
    with pytest.raises(ConfigError, match=r"same size.*data\.size"):
        HuggingFace(path=str(tmp_path / "sizes")).load()


@pytest.fixture
def texts(tmp_path):
    """File of texts of three roles and two classes."""
    rows = [
        {"role": role, "text": f"to be or not {role} {'to ' * k}be", "mood": "ab"[k % 2]}
        for k in range(12)
        for role in ("ann", "bob", "cy")
    ]
    file = tmp_path / "texts.jsonl"
    file.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return str(file)


@pytest.fixture
def tokenizer(tmp_path):
    """A directory with a tokenizer of six words."""
    words = Tokenizer(models.WordLevel(dict(zip(WORDS, range(6), strict=True)), unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=words, unk_token="[UNK]", pad_token="[PAD]"
    ).save_pretrained(tmp_path / "words")
    return str(tmp_path / "words")


def test_texts_of_a_class(texts, tokenizer):
    options = {"path": texts, "input_column": "text", "label_column": "mood"}
    data = HuggingFace(**options, tokens=tokenizer, length=7).load()
    assert data.classes == ("a", "b")
    assert data.x_train[0].tolist() == [2, 3, 4, 5, 1, 3, 0]  # to be or not [UNK] be [PAD]
    file = f"{tokenizer}/tokenizer.json"
    with pytest.raises(ConfigError, match=r"data\.tokens = .*pad_token"):
        HuggingFace(**options, tokens=file).load()
    letters = HuggingFace(**options, length=20).load()
    assert letters.x_train[0, -1] == 0  # filled up
    assert letters.x_train[letters.x_train > 0].min() == 1


def test_texts_to_their_next_tokens(texts, tokenizer):
    source = HuggingFace(path=texts, input_column="text", group_column="role", length=8)
    data = source.load()
    assert data.groups == ("ann", "bob", "cy")
    assert data.classes == tuple("\\n" if c == "\n" else c for c in sorted("\n abcenorty"))
    for x, y in ((data.x_train, data.y_train), (data.x_test, data.y_test)):
        assert (x[:, 1:] == y[:, :-1]).all()
    spoken = "".join(data.classes[k] for k in data.x_train[data.group_train == 0].ravel()).replace(
        "\\n", "\n"
    )
    whole = "".join(f"to be or not ann {'to ' * k}be\n" for k in range(12))
    assert whole.startswith(spoken)
    assert len(spoken) >= 0.75 * len(whole)
    words = HuggingFace(
        path=texts, input_column="text", group_column="role", length=8, tokens=tokenizer
    ).load()
    assert words.classes == tuple(WORDS)
    in_file = HuggingFace(
        path=texts,
        input_column="text",
        group_column="role",
        length=8,
        tokens=f"{tokenizer}/tokenizer.json",
    ).load()
    assert (in_file.x_train == words.x_train).all()


def test_numbers_to_predict(saved):
    data = HuggingFace(path=saved, feature_columns=("age",), label_column="score").load()
    assert data.classes == ()
    assert data.y_train.shape == (48, 1)
    assert set(np.concatenate([data.y_train, data.y_test])[:, 0]) == set(SCORES.astype(np.float32))


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"path": "/no/where"}, r"data\.path = '/no/where': there is no"),
        ({"test_split": "val"}, r"data\.test_split = 'val': .*\['train'\]"),
        ({"revision": "main"}, r"data\.revision = 'main'"),
        ({"input_column": "pixels"}, r"data\.input_column = 'pixels': .*'image', .*'age'\]"),
        ({"feature_columns": ("writer",)}, r"data\.feature_columns = 'writer': .*'score'"),
        ({"feature_columns": ("age",), "input_column": "map"}, r"give only one of the two"),
        ({"input_column": "map", "label_column": "both"}, r"data\.label_column = 'both'"),
        ({"group_column": "score"}, r"data\.group_column = 'score': .*'writer'"),
        ({"test_share": 0.001}, r"data\.test_share = 0\.001"),
        ({"input_column": "writer", "length": 10**4}, r"data\.length = 10000: .* 0 windows"),
        ({"input_column": "writer", "tokens": "/no/where"}, r"data\.tokens = '/no/where'"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(saved, options, problem):
    with pytest.raises(ConfigError, match=problem) as error:
        HuggingFace(**{"path": saved, **options}).load()
    assert "\n" not in str(error.value)


def test_cells_that_are_empty_or_of_several_shapes(tmp_path):
    file = tmp_path / "bad.jsonl"
    for rows, problem in [
        ([{"x": [1.0], "y": 0}, {"x": None, "y": 1}], r"empty cell in 'x', row 1"),
        ([{"x": [1.0, None], "y": 0}, {"x": [1.0, 2.0], "y": 1}], r"empty cell in 'x'"),
        ([{"x": [1.0], "y": 0}, {"x": [1.0, 2.0], "y": 1}], r"several shapes in 'x'"),
    ]:
        file.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
        with pytest.raises(ConfigError, match=rf"split 'train' has .*{problem}"):
            HuggingFace(path=str(file)).load()


def test_classes_of_the_test_split_must_be_known(tmp_path):
    parts = {"train": ["a", "b"], "test": ["a", "c"]}
    tables = {k: Dataset.from_dict({"x": [[1.0], [2.0]], "y": y}) for k, y in parts.items()}
    DatasetDict(tables).save_to_disk(tmp_path / "unknown")
    with pytest.raises(ConfigError, match=r"split 'test' has classes in 'y' .*\['c'\]"):
        HuggingFace(path=str(tmp_path / "unknown"), label_column="y").load()
