"""Digests of the data and of the user's own code, which runs and checkpoints record."""

import sys

import numpy as np
import pytest
from conftest import stopped

from rayfl import load_config, run
from rayfl.errors import ConfigError
from rayfl.prepare import prepare
from rayfl.provenance import Provenance, code_of

METHOD = """
from dataclasses import dataclass
from rayfl.algorithms.base import Algorithm
from {package} import helper

@dataclass(frozen=True, kw_only=True)
class Scaled(Algorithm):
    def server_step(self, w, server, mean, ctx):
        return w + helper.scale() * mean["delta"], server

def later():
    from {package}.late import anything
"""
HELPER = "def scale():\n    return 1.0\n"


@pytest.fixture
def package(tmp_path, monkeypatch, request):
    """A package of a method in two modules, new for each test: its name."""
    name = f"own_{abs(hash(request.node.nodeid))}"
    folder = tmp_path / name
    folder.mkdir()
    files = {"__init__": "", "method": METHOD.format(package=name), "helper": HELPER, "late": ""}
    for module, text in files.items():
        (folder / f"{module}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    yield folder
    for module in [module for module in sys.modules if module.startswith(name)]:
        del sys.modules[module]


def digests(folder):
    from rayfl import provenance

    provenance._read.cache_clear()  # as in another process
    return code_of([f"{folder.name}.method"])


def test_code_is_the_modules_of_the_user_s_own(package):
    found = digests(package)
    own = ("", ".method", ".helper", ".late")
    assert found.keys() == {f"{package.name}{module}" for module in own}
    assert code_of(["rayfl.algorithms.fedavgm", "torchvision.models", "json", "nowhere"]) == {}
    assert f"{package.name}.late" not in sys.modules  # nothing is imported to be read


@pytest.mark.parametrize(
    ("text", "is_other"),
    [
        ("def scale():\n    return 2.0\n", True),
        ("def scale():\n    return -1.0\n", True),
        ("def scale(): return 1.0  # unchanged\n", False),
        ("'''Helper.'''\ndef scale():\n\n    '''One.'''\n    return 1.0\n", True),
        ("def scale(:", True),
    ],
)
def test_what_the_code_does_changes_its_digest(package, text, is_other):
    before = digests(package)
    (package / "helper.py").write_text(text)
    changed = {name for name, digest in digests(package).items() if digest != before[name]}
    assert changed == ({f"{package.name}.helper"} if is_other else set())


def test_a_docstring_that_changes_is_the_same_code(package):
    (package / "helper.py").write_text("def scale():\n    '''One.'''\n    return 1.0\n")
    before = digests(package)
    (package / "helper.py").write_text("def scale():\n    '''1.'''\n    return 1.0\n")
    assert digests(package) == before


def test_a_difference_is_named():
    one = Provenance("a", {"method": "1", "helper": "2"})
    assert one.difference(one) == ""
    assert one.difference(one._replace(data="b")) == "other data (digest a, here b)"
    other = Provenance("a", {"method": "1", "more": "3"})
    assert one.difference(other) == "other code (helper, more)"


def written(path, seed=0, shift=0):
    x = np.random.default_rng(seed).integers(0, 256, (200, 8, 8), dtype=np.uint8)
    y = (np.arange(200) + shift) % 4
    np.savez(path, x_train=x, y_train=y, x_test=x[:50], y_test=y[:50])
    return {"name": "npz", "path": str(path)}


def test_the_data_s_digest_is_that_of_what_is_read(small, tmp_path):
    def digest(**options):
        return prepare(load_config(small | {"data": written(tmp_path / "d.npz", **options)}))

    first = digest().provenance.data
    assert len(first) == 16
    assert digest().provenance.data == first
    assert digest(seed=1).provenance.data != first
    assert digest(shift=1).provenance.data != first
    elsewhere = load_config(small | {"data": written(tmp_path / "other.npz")}, ["seed=2"])
    assert prepare(elsewhere).provenance.data == first


@pytest.fixture
def checkpointed(small, tmp_path):
    small["checkpoint"] = {"every": 1, "dir": str(tmp_path / "checkpoints")}
    small["federation"]["rounds"] = 4
    return small


def test_a_run_does_not_go_on_with_other_data(checkpointed, tmp_path):
    path = tmp_path / "d.npz"
    config = load_config(checkpointed | {"data": written(path)})
    stopped(config)
    written(path, shift=1)
    with pytest.raises(
        ConfigError, match=r"was made with other data .digest \w+, here \w+.; bring"
    ):
        run(config, resume="latest", local=True)
    written(path)
    assert run(config, resume="latest", local=True).summary["rounds"] == 4


def test_a_run_does_not_go_on_with_other_code(checkpointed, package):
    config = load_config(checkpointed | {"algorithm": {"name": f"{package.name}.method:Scaled"}})
    stopped(config)
    (package / "helper.py").write_text(HELPER.replace("1.0", "2.0"))
    digests(package)
    with pytest.raises(ConfigError, match=rf"made with other code .{package.name}.helper.; bring"):
        run(config, resume="latest", local=True)
