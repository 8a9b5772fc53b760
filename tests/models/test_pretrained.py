"""Weights that a model starts from: files, torchvision's cache, and what is refused."""

import hashlib
import os
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from rayfl.config.schema import load_config
from rayfl.errors import ConfigError
from rayfl.models import build
from rayfl.models.lora import LoRA
from rayfl.models.resnet import ResNet18
from rayfl.models.transformer import ViTTiny

SPEC, IMAGES = ViTTiny(image_size=8), (3, 8, 8)
HEAD = ("heads.head.weight", "heads.head.bias")


@pytest.fixture
def weights():
    """Weights of a model with another seed, whose head is not zero."""
    model = build(SPEC, IMAGES, 5, seed=9)
    torch.nn.init.normal_(model.get_parameter("heads.head.weight"))
    return model.state_dict()


def saved(weights, path):
    (save_file if path.suffix == ".safetensors" else torch.save)(weights, path)
    return replace(SPEC, pretrained=str(path))


@pytest.mark.parametrize("name", ["w.pt", "w.safetensors"])
def test_a_file_gives_all_weights(weights, tmp_path, name):
    spec = saved(weights, tmp_path / name)
    loaded = build(spec, IMAGES, 5, seed=0).state_dict()
    assert all(torch.equal(loaded[key], weights[key]) for key in weights)
    assert loaded.keys() == weights.keys()


def test_a_head_for_another_number_of_classes_starts_afresh(weights, tmp_path):
    spec = saved(weights, tmp_path / "w.pt")
    loaded = build(spec, IMAGES, 7, seed=0).state_dict()
    fresh = build(SPEC, IMAGES, 7, seed=0).state_dict()
    for key in weights:
        assert torch.equal(loaded[key], (fresh if key in HEAD else weights)[key])


def test_adapters_go_on_top_of_the_given_weights(weights, tmp_path):
    spec = replace(saved(weights, tmp_path / "w.pt"), lora=LoRA(r=2))
    # In float64: how float32 rounds depends on where a tensor lies in memory.
    x = torch.randn(2, *IMAGES, dtype=torch.float64)
    plain = build(SPEC, IMAGES, 5, seed=0)
    plain.load_state_dict(weights)
    plain, adapted = plain.double(), build(spec, IMAGES, 5, seed=0).double()
    torch.testing.assert_close(adapted.eval()(x), plain.eval()(x))


def test_the_identity_holds_what_is_in_the_file_and_not_where_it_lies(small, weights, tmp_path):
    def config(name):
        small["model"] = {"name": "vit_tiny", "image_size": 8, "pretrained": str(tmp_path / name)}
        return load_config(small)

    for name in ("a.pt", "b.pt"):
        torch.save(weights, tmp_path / name)
    digest = hashlib.sha256((tmp_path / "a.pt").read_bytes()).hexdigest()
    first = config("a.pt")
    assert first.flat_identity()["model.pretrained"] == f"sha256:{digest}"
    assert first.flat()["model.pretrained"] == str(tmp_path / "a.pt")
    content, before = (tmp_path / "a.pt").read_bytes(), first.hash
    (tmp_path / "c.pt").write_bytes(content)
    assert config("c.pt").hash == before

    (tmp_path / "a.pt").write_bytes(content[:-1] + bytes([content[-1] ^ 1]))  # of the same size
    os.utime(tmp_path / "a.pt", (0, 0))
    assert config("a.pt").hash != before
    assert config("~nobody/no.pt").hash != config("no\0.pt").hash  # to be refused by `build`


class Command:
    """Function that a malicious file would call."""

    def __reduce__(self):
        return os.mkdir, ("ran",)


def test_nothing_is_unpickled(weights, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save(weights | {"more": Command()}, tmp_path / "w.pt")
    with pytest.raises(ConfigError, match=r"w\.pt': cannot be read as tensors alone"):
        build(replace(SPEC, pretrained="w.pt"), IMAGES, 5, seed=0)
    assert not (tmp_path / "ran").exists()


def changed(weights, case):
    match case:
        case "lacks":
            del weights["class_token"]
        case "more":
            weights |= {f"extra.{i}": torch.zeros(1) for i in range(5)}
        case "shape":
            weights["class_token"] = torch.zeros(1, 1, 3)
        case "wrapped":
            return {"epoch": 3, "state_dict": weights}
        case "none":
            return [1.0]
    return weights


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("lacks", r"'vit_tiny'.*it lacks class_token; change"),
        ("more", r"the model has not, extra\.0, extra\.1, extra\.2 and 2 more;"),
        ("shape", r"another shape of class_token;"),
        ("wrapped", r"nothing around it"),
        ("none", r"must hold a state dict"),
    ],
)
def test_weights_of_another_model_are_one_error_that_names_them(weights, tmp_path, case, message):
    spec = saved(changed(weights, case), tmp_path / "w.pt")
    with pytest.raises(ConfigError, match=rf"^model\.pretrained = '.*w\.pt'.*{message}") as error:
        build(spec, IMAGES, 5, seed=0)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", [b"", b"no tensors"])
@pytest.mark.parametrize("name", ["w.pt", "w.safetensors"])
def test_a_damaged_file_is_one_error(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    spec = replace(SPEC, pretrained=str(tmp_path / name))
    with pytest.raises(ConfigError, match=r"cannot be read as tensors alone"):
        build(spec, IMAGES, 5, seed=0)


def test_a_missing_file_and_a_model_that_torchvision_has_not():
    with pytest.raises(ConfigError, match=r"model\.pretrained = 'nowhere\.pt': no such file"):
        build(replace(SPEC, pretrained="nowhere.pt"), IMAGES, 5, seed=0)
    with pytest.raises(ConfigError, match=r"torchvision has no weights for .* 'vit_tiny'"):
        build(replace(SPEC, pretrained="torchvision"), IMAGES, 5, seed=0)


def test_torchvisions_weights_come_from_its_cache(tmp_path, monkeypatch):
    """From a file of the published name; without it nothing is downloaded unless the config says so."""
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))
    spec = ResNet18(norm="batch", pretrained="torchvision")
    with pytest.raises(ConfigError, match=r"resnet18-f37072fd\.pth is not there; .*download=true"):
        build(spec, (3, 32, 32), 10, seed=0)

    (tmp_path / "checkpoints").mkdir()
    published = build(ResNet18(norm="batch"), (3, 32, 32), 1000, seed=5).state_dict()
    torch.save(published, tmp_path / "checkpoints/resnet18-f37072fd.pth")
    loaded = build(spec, (3, 32, 32), 10, seed=0).state_dict()
    for name, tensor in loaded.items():
        assert name.startswith("fc.") or torch.equal(tensor, published[name])
    with pytest.raises(ConfigError, match=r"lacks|has not"):
        build(replace(spec, norm="group"), (3, 32, 32), 10, seed=0)
