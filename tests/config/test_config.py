"""Bad input is one clear line; layers are put on top of each other as `overlays` says."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st

from rayfl.algorithms import ALGORITHMS
from rayfl.config import layers
from rayfl.config.named import NAMED
from rayfl.config.schema import Experiment, load_config
from rayfl.data.schemes import SCHEMES
from rayfl.data.sources import SOURCES
from rayfl.errors import ConfigError
from rayfl.models import MODELS

CONFIGS = ROOT / "configs"
BASE = {
    "data": {"name": "digits"},
    "partition": {"name": "dirichlet", "alpha": 0.1},
    "model": {"name": "mlp", "hidden": [16]},
    "algorithm": {"name": "fedwmsam", "rho": 0.05},
    "federation": {"clients": 10, "cohort": 4, "local_epochs": 1},
}
JARGON = ("Input", "should", "pydantic", "validation", "type=", "None")


def error(source, *overrides) -> str:
    """The message of the ConfigError, which must be one line of plain words."""
    with pytest.raises(ConfigError) as caught:
        load_config(source, overrides)
    message = str(caught.value)
    assert "\n" not in message
    assert not [word for word in JARGON if word in message], message
    return message


@pytest.fixture
def write(tmp_path):
    """Writes config files into a directory of the test's own."""

    def write(name: str, content: str | bytes) -> Path:
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


NUMBER = "must be a number of at least 0"
COUNT = "must be an integer greater than 0"
AUTO_COUNT = "must be 'auto' or an integer greater than 0"
FLOAT32 = "must be 0, or from 1e-45 to 3.4e38; parameters are float32, which holds no other numbers"
COHORT = "an integer greater than 0 or a number greater than 0 and at most 1"
HIDDEN = "must be a list, each item an integer of at least 1"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        # Wrong types and values: the key, the value, and everything that is allowed.
        ("algorithm.rho=true", f"algorithm.rho = true: {NUMBER}"),
        ("algorithm.rho=big", f"algorithm.rho = 'big': {NUMBER}"),
        ("algorithm.rho=0,05", f"algorithm.rho = '0,05': {NUMBER}"),
        ("algorithm.rho=null", f"algorithm.rho = null: {NUMBER}"),
        ("algorithm.rho=", f"algorithm.rho = null: {NUMBER}"),
        ("algorithm.rho=[1]", f"algorithm.rho = [1]: {NUMBER}"),
        ("algorithm.rho=-1", f"algorithm.rho = -1: {NUMBER}"),
        ("algorithm.rho=nan", f"algorithm.rho = 'nan': {NUMBER}"),
        ("algorithm.rho=.nan", "algorithm.rho = NaN: must be a finite number"),
        ("algorithm.rho=-.inf", "algorithm.rho = -Infinity: must be a finite number"),
        ("algorithm.rho=1e999", "algorithm.rho = Infinity: must be a finite number"),
        ("algorithm.rho=*a", f"algorithm.rho = '*a': {NUMBER}"),
        ("algorithm.adaptive=1", "algorithm.adaptive = 1: must be true or false"),
        ("algorithm.adaptive=yes", "algorithm.adaptive = 'yes': must be true or false"),
        (
            "algorithm={name: fedwmsam_released, perturb_towards: up}",
            "algorithm.perturb_towards = 'up': must be 'predicted', 'uphill' or 'released'",
        ),
        (
            "algorithm.lookahead_scale=lt",
            "algorithm.lookahead_scale = 'lt': must be 'lr' or 'auto' or a number of at least 0",
        ),
        ("algorithm.alpha_min=0.95", "algorithm: alpha_min = 0.95 exceeds alpha_max = 0.9"),
        ("federation.clients=0", f"federation.clients = 0: {COUNT}"),
        ("federation.clients=1.5", f"federation.clients = 1.5: {COUNT}"),
        ("federation.clients=1e1", f"federation.clients = 10.0: {COUNT}"),
        ('federation.clients="10"', f"federation.clients = '10': {COUNT}"),
        ("federation.clients=true", f"federation.clients = true: {COUNT}"),
        (f"federation.clients={10**30}", f"federation.clients = {10**30}: must be less than 2^63"),
        ("federation.lr=0", "federation.lr = 0: must be a number greater than 0"),
        ("federation.lr==0.1", "federation.lr = '=0.1': must be a number greater than 0"),
        (
            "federation.clip_norm=none",
            "federation.clip_norm = 'none': must be null or a number greater than 0",
        ),
        (
            "federation.cohort=1.5",
            f"federation.cohort = 1.5: must be {COHORT}",
        ),
        (
            "federation.lr_schedule=cos",
            "federation.lr_schedule = 'cos': unknown name (did you mean 'cosine'?); allowed: constant, "
            "exponential, linear, cosine, or an import path 'package.module:factory'",
        ),
        (
            "federation.rounds=10000000000",
            "federation.rounds = 10000000000: must be an integer greater than 0 and at most 1000000",
        ),
        (
            "federation.sampling=poisson",
            "federation.sampling = 'poisson': must be 'uniform', 'bernoulli' or 'weighted', "
            "or an import path 'package.module:function'",
        ),
        (
            "federation.client_dropout=1",
            "federation.client_dropout = 1: must be a number of at least 0 and less than 1",
        ),
        (
            "federation={cohort: 1, client_dropout: 0.5}",
            "federation.client_dropout = 0.5: must be 0 in cohorts of one client, for one always comes back; "
            "raise federation.cohort",
        ),
        (
            "federation.straggler_prob=2",
            "federation.straggler_prob = 2: must be a number of at least 0 and at most 1",
        ),
        ("evaluation.per_class=all", "evaluation.per_class = 'all': must be true or false"),
        ("resources.num_actors=0", f"resources.num_actors = 0: {AUTO_COUNT}"),
        ("resources.num_actors=many", f"resources.num_actors = 'many': {AUTO_COUNT}"),
        ("resources.num_actors=null", f"resources.num_actors = null: {AUTO_COUNT}"),
        (
            "resources.autoscale_timeout_s=-1",
            "resources.autoscale_timeout_s = -1: must be a number of at least 0",
        ),
        (
            "resources.autoscale_timeout_s=60",
            "resources.autoscale_timeout_s = 60.0: the Ray that is started for this run gets no new "
            "nodes; name a cluster by ray.address, or leave it at 0",
        ),
        (
            "resources.cpus_per_actor=0.33333",
            "resources.cpus_per_actor = 0.33333: must have at most 4 decimals; Ray counts no finer",
        ),
        (
            "resources.gpus_per_actor=2",
            "resources.gpus_per_actor = 2.0: must be at most 1: a client actor uses one GPU; for more "
            "GPUs raise resources.num_actors, with federation.clients_per_unit so small that each has a unit",
        ),
        ("seed=-1", "seed = -1: must be an integer of at least 0"),
        ("seed=1.0", "seed = 1.0: must be an integer of at least 0"),
        ("model.hidden=64", f"model.hidden = 64: {HIDDEN}"),
        ("model.hidden=[64, a]", "model.hidden.1 = 'a': must be an integer of at least 1"),
        ("model.hidden=[[1]]", "model.hidden.0 = [1]: must be an integer of at least 1"),
        (
            "tracking.targets=[.5, 2]",
            "tracking.targets.1 = 2: must be a number greater than 0 and at most 1",
        ),
        ("ray.address=6379", "ray.address = 6379: must be null or text (in quotes: '\"6379\"')"),
        ("tracking.experiment=''", "tracking.experiment = '': must be text that is not empty"),
        ("ray=null", "ray = null: must be a section with the keys address, object_store_gb"),
        # Numbers that float32 cannot hold, and those that take all memory.
        ("federation.lr=1e39", f"federation.lr = 1e+39: {FLOAT32}"),
        ("federation.lr=1e-60", f"federation.lr = 1e-60: {FLOAT32}"),
        ("federation.weight_decay=1e300", f"federation.weight_decay = 1e+300: {FLOAT32}"),
        ("federation.clip_norm=1e39", f"federation.clip_norm = 1e+39: {FLOAT32}"),
        ("algorithm.rho=1e39", f"algorithm.rho = 1e+39: {FLOAT32}"),
        (
            "algorithm={name: fedadagrad, tau: 1e30}",
            'algorithm = {"name": "fedadagrad", "server_lr": 0.1, "beta1": 0.0, "tau": 1e+30}: with these '
            "options the first round has numbers too large for float32, which goes up to 3.4e38 (value "
            "cannot be converted to type float without overflow); make them smaller",
        ),
        (
            "federation.local_steps=9000000000000000000",
            "federation.local_steps = 9000000000000000000: must be null or an integer greater than 0 and "
            "at most 1000000",
        ),
        (
            "federation.local_epochs=9000000000000000000",
            "federation.local_epochs = 9000000000000000000: must be null or an integer greater than 0 and "
            "at most 10000",
        ),
        (
            "heterogeneity.noise=1e39",
            "heterogeneity.noise = 1e+39: must be a number of at least 0 and at most 1e+30",
        ),
        # Names that MLflow does not take, and bytes that are no text.
        (
            f"tracking.run_name={'x' * 7000}",
            f"tracking.run_name = '{'x' * 299}...: must have at most 250 characters, MLflow's limit; this "
            "has 7000",
        ),
        (
            f"tracking.experiment={'x' * 501}",
            f"tracking.experiment = '{'x' * 299}...: must have at most 500 characters, MLflow's limit; this "
            "has 501",
        ),
        (
            "data.path=caf\udce9",
            "data.path = 'caf\\udce9': must be text in UTF-8; does the shell's locale (LC_ALL) say so?",
        ),
        # Keys that are not there, at every level, with the nearest that is.
        (
            "sed=1",
            "sed = 1: unknown key (did you mean 'seed'?); allowed: algorithm, callbacks, checkpoint, data, "
            "diagnostics, evaluation, federation, heterogeneity, model, partition, privacy, ray, resources, "
            "seed, tracking",
        ),
        (
            "ray.adress=auto",
            "ray.adress = 'auto': unknown key (did you mean 'ray.address'?); "
            "allowed in ray: address, object_store_gb",
        ),
        (
            "model.hiden=[3]",
            "model.hiden = [3]: unknown key (did you mean 'model.hidden'?); "
            "allowed in model: hidden, init, name",
        ),
        ("seed.x=1", "seed.x = 1: unknown key; seed has no keys, it must be an integer of at least 0"),
        ("model.hidden.0=3", f"model.hidden.0 = 3: unknown key; model.hidden has no keys, it {HIDDEN}"),
        (
            "data={name: image_folder, path: a, size: 20000}",
            "data.size = 20000: must be an integer of at least 1 and at most 4096",
        ),
        # Impossible combinations.
        (
            "federation.cohort=11",
            "federation.cohort = 11: must be at most federation.clients = 10",
        ),
        (
            "federation={local_epochs: 2, local_steps: 5}",
            "federation.local_epochs = 2: federation.local_steps = 5 is given too; "
            "give only one of the two",
        ),
        ("federation.cohort=null", f"federation.cohort = null: must be {COHORT}"),
        ("federation.cohort=10.0", f"federation.cohort = 10.0: must be {COHORT}"),
        ("federation.cohort=0", f"federation.cohort = 0: must be {COHORT}"),
        (
            "federation.local_epochs=null",
            "federation.local_epochs: is missing, and so is federation.local_steps; "
            "add one of the two",
        ),
        # Texts that are no overrides.
        ("seed", "override 'seed': must look like algorithm.rho=0.05"),
        ("seed: 1", "override 'seed: 1': must look like algorithm.rho=0.05"),
        ("=1", "override '=1': must look like algorithm.rho=0.05"),
        ("federation..lr=1", "override 'federation..lr=1': must look like algorithm.rho=0.05"),
        (
            "model.hidden=[64,",
            "override 'model.hidden=[64,': is not valid YAML "
            "(expected the node content, but found '<stream end>', line 1)",
        ),
        ("algorithm={1: 2}", "algorithm: has the key 1; keys must be text"),
        # Sections with a name.
        (
            "data.name=npz",
            "data.path: is missing; add it: text "
            "(the .npz file; x: uint8 or float, [n, F] or images; or integer tokens, [n, L])",
        ),
    ],
)  # fmt: skip
def test_bad_overrides(override, message):
    assert error(BASE, override) == message


@pytest.mark.parametrize(
    ("override", "beginning"),
    [
        ("federation=3", "federation = 3: must be a section with the keys clients, rounds, "),
        (
            "federation.cohorts=3",
            "federation.cohorts = 3: unknown key (did you mean 'federation.coh",
        ),
        (
            "federation.seed=3",
            "federation.seed = 3: unknown key (did you mean 'seed'?); allowed in",
        ),
        ("rounds=3", "rounds = 3: unknown key (did you mean 'federation.rounds'?); allowed: algo"),
        (
            "algorithm.roh=3",
            "algorithm.roh = 3: unknown key (did you mean 'algorithm.rho'?); allow",
        ),
        (
            "algorithm.name=fedwmsm",
            "algorithm.name = 'fedwmsm': unknown name (did you mean 'fedwms",
        ),
        ("algorithm.name=null", "algorithm.name = null: must be one of asyncsam, centralised, "),
        ("algorithm.name=[a]", 'algorithm.name = ["a"]: must be one of asyncsam, centralised, '),
        ("algorithm.name.x=1", 'algorithm.name = {"x": 1}: must be one of asyncsam, centralised, '),
        ("algorithm=fedavg", "algorithm = 'fedavg': must be a section; set algorithm.name to one "),
        ("algorithm=null", "algorithm = null: must be a section; set algorithm.name to one of "),
        (
            "extends=x.yaml",
            "extends = 'x.yaml': unknown key; allowed: algorithm, callbacks, checkpoint, data, diagnostics, ",
        ),
        ("algorithm={name: a, name: b}", "override 'algorithm={name: a, name: b}': is not valid "),
    ],
)
def test_bad_overrides_with_a_long_list_of_what_is_allowed(override, beginning):
    assert error(BASE, override).startswith(beginning)


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("algorithm.rho=1e-3", "algorithm.rho", 0.001),
        ("algorithm.rho=2", "algorithm.rho", 2.0),
        (" algorithm.rho = 0.2 ", "algorithm.rho", 0.2),
        ("federation.clip_norm=null", "federation.clip_norm", None),
        ("model.hidden=[]", "model.hidden", []),
        ("tracking.run_name=2026-01-01", "tracking.run_name", "2026-01-01"),
        ("tracking.run_name='3'", "tracking.run_name", "3"),
        ("tracking.run_name=a: b: c", "tracking.run_name", "a: b: c"),
        ("ray.address=localhost:6379", "ray.address", "localhost:6379"),
        ("resources.gpus_per_actor=0.3333", "resources.gpus_per_actor", 0.3333),
    ],
)
def test_good_overrides(override, key, value):
    assert load_config(BASE, [override]).flat()[key] == value


@settings(max_examples=100, deadline=None, derandomize=True, database=None)
@given(
    key=st.sampled_from(sorted(load_config(BASE).flat())) | st.text(max_size=10),
    value=st.text(max_size=12) | st.sampled_from(["~", "[", "{a: 1}", "&a [*a]", "!!set {a}", "|"]),
)
def test_any_override_is_taken_or_refused_in_one_line(key, value):
    refusal = ""
    try:
        load_config(BASE, [f"{key}={value}"])
    except ConfigError as caught:
        refusal = str(caught)
    assert "\n" not in refusal


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "must hold sections such as 'federation:', but it is empty"),
        ("# nothing\n", "must hold sections such as 'federation:', but it is empty"),
        ("hello", "must hold sections such as 'federation:', but it holds 'hello'"),
        ("- a\n", "must hold sections such as 'federation:', but it holds [\"a\"]"),
        ("a: [1\nb: 2", "is not valid YAML (expected ',' or ']', but got ':', line 2)"),
        ("a:\n\tb: 1", "is not valid YAML (found character '\\t' that cannot start any token, line 2)"),
        ("a: 1\n---\nb: 1", "is not valid YAML (but found another document, line 2)"),
        ("a: *x", "is not valid YAML (found undefined alias 'x', line 1)"),
        pytest.param(
            "a: " + "[" * 1000, "is not valid YAML (maximum recursion depth exceeded)", id="deep"
        ),
        (
            "seed: 1\nseed: 2",
            'is not valid YAML (found duplicate key "seed" with value "2" (original value: "1"), '
            "line 2)",
        ),
        (
            b"caf\xe9: 1",
            "must be UTF-8 text ('utf-8' codec can't decode byte 0xe9 in position 3: "
            "invalid continuation byte)",
        ),
    ],
)  # fmt: skip
def test_files_that_are_no_configs(write, content, message):
    path = write("a.yaml", content)
    assert error(path) == f"config file '{path}': {message}"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a: &x {b: *x}", "a: sections and lists are nested too deeply"),
        ("? [a, b]\n: 3", "config: has the key ('a', 'b'); keys must be text"),
        ("seed: !!binary aGk=", "seed = \"b'hi'\": must be a number, text, true, false, null, a list "
         "or a section"),
        ("seed: 1\nfederation: {cohort: 1, local_steps: 1}\nalgorithm: {rho: 0.1}",
         "algorithm.name: is missing; add one of"),
        ("seed: 1", "federation: is missing; add it: a section with the keys clients, rounds, "),
    ],
)  # fmt: skip
def test_files_with_odd_content(write, content, message):
    assert error(write("a.yaml", content)).startswith(message)


def test_files_that_cannot_be_read(write, tmp_path):
    write("quickstart.yaml", "")
    path = tmp_path / "quikstart.yaml"
    assert error(path) == (
        f"config file '{path}': there is no such file (did you mean 'quickstart.yaml'?)"
    )
    assert error(tmp_path) == f"config file '{tmp_path}': cannot be read (Is a directory)"
    path = tmp_path / "quickstart.yaml" / "x"
    assert error(path) == f"config file '{path}': cannot be read (Not a directory)"


def test_a_byte_order_mark_is_no_error(write):
    path = write("a.yaml", b"\xef\xbb\xbf" + json.dumps(BASE).encode())
    assert load_config(path) == load_config(BASE)


# Layers


def test_files_extend_each_other_relative_to_themselves(write, tmp_path, monkeypatch):
    (tmp_path / "sub").mkdir()
    write("base.yaml", json.dumps(BASE))
    write("sub/middle.yaml", "extends: ../base.yaml\nseed: 1\nfederation: {lr: 0.5}")
    top = write("sub/top.yaml", "extends: middle.yaml\nseed: 2")
    monkeypatch.chdir("/")
    flat = load_config(top, ["federation.rounds=7"]).flat()
    expected = {"seed": 2, "federation.lr": 0.5, "federation.rounds": 7, "algorithm.rho": 0.05}
    assert expected.items() <= flat.items()


def test_extends_that_leads_nowhere(write, tmp_path):
    path = write("a.yaml", "extends: nope.yaml")
    assert error(path) == (
        f"config file '{tmp_path / 'nope.yaml'}', which '{path}' extends: there is no such file"
    )
    assert error(write("b.yaml", "extends: 3")) == (
        "extends = 3: must be the path of a config file, relative to 'b.yaml'"
    )
    write("c.yaml", "extends: ./d.yaml")
    assert error(write("d.yaml", "extends: c.yaml")) == (
        "extends = 'd.yaml': the files extend each other: d.yaml -> c.yaml -> d.yaml"
    )


@pytest.fixture
def said(caplog):
    """Calls it to get what `load_config` has said since the last call."""
    layers.say_once.cache_clear()

    def said() -> list[str]:
        lines = [record.message for record in caplog.records]
        caplog.clear()
        return lines

    return said


def test_another_name_keeps_the_options_that_it_has_too_and_says_what_goes(said):
    cifar = CONFIGS / "cifar10_lenet5.yaml"
    config = load_config(cifar, ["data.name=parquet", "data.path=x"])
    assert config.data == SOURCES["parquet"](path="x", augment="flip_crop")
    skewed = BASE | {"partition": {"name": "dirichlet", "alpha": 0.6}}
    config = load_config(skewed, ["partition.name=dirichlet_per_class"])
    assert config.partition == SCHEMES["dirichlet_per_class"](alpha=0.6)
    assert said() == [
        "data.name = 'parquet', not 'cifar10': keeps augment = 'flip_crop'",
        "partition.name = 'dirichlet_per_class', not 'dirichlet': keeps alpha = 0.6",
    ]
    config = load_config(BASE, ["partition.name=pathological"])
    assert config.partition == SCHEMES["pathological"]()
    assert said() == ["partition.name = 'pathological', not 'dirichlet': drops alpha = 0.1"]


def test_every_option_stays_or_is_said_to_go_whatever_the_names(said):
    """From each algorithm, with all its options given, to each other one."""
    for old in ALGORITHMS:
        given = {"name": old, **{key: 0.125 for key in fields_of(ALGORITHMS[old])}}
        for new in set(ALGORITHMS) - {old}:
            merged = layers.merge({"algorithm": given}, {"algorithm": {"name": new}}, NAMED)[
                "algorithm"
            ]
            shared = fields_of(ALGORITHMS[old]) & fields_of(ALGORITHMS[new])
            assert merged == {"name": new, **dict.fromkeys(shared, 0.125)}
            lines = said()
            assert len(lines) == (given.keys() != {"name"})
            words = lines[0].partition("drops ")[2] if lines else ""
            gone = {word.partition(" = ")[0] for word in words.split(", ") if word}
            assert gone == fields_of(ALGORITHMS[old]) - shared


def fields_of(cls) -> set[str]:
    return {field.name for field in dataclasses.fields(cls)}


def test_another_name_in_a_file_that_extends_one(write, said):
    base = write(
        "base.yaml", json.dumps(BASE | {"algorithm": {"name": "fedwmsam", "rho": 0.3, "ema": 1}})
    )
    top = write("top.yaml", f"extends: {base.name}\nalgorithm: {{name: fedsam}}")
    assert load_config(top).algorithm == ALGORITHMS["fedsam"](rho=0.3)
    assert said() == ["algorithm.name = 'fedsam', not 'fedwmsam': keeps rho = 0.3; drops ema = 1"]
    # What the layer itself gives is its own, and an own option that the name lacks is an error.
    assert load_config(top, ["algorithm={name: fednsam, rho: 0.2}"]).algorithm.rho == 0.2
    assert said() == []
    wrong = error(top, "algorithm={name: fedavg, gamma: 0.2}")
    assert wrong.startswith("algorithm.gamma = 0.2: unknown key")


def test_the_same_name_or_none_keeps_everything(said):
    changed = load_config(BASE, ["algorithm.rho=0.3"]).model_dump(mode="json")
    assert load_config(changed, ["algorithm.name=fedwmsam"]).algorithm.rho == 0.3
    assert load_config(changed, ["algorithm={name: fedwmsam, ema: 0.5}"]).algorithm.rho == 0.3
    nameless = BASE | {"partition": {"alpha": 0.4}}
    assert load_config(nameless, ["partition.name=dirichlet"]).partition.alpha == 0.4
    assert said() == []


def test_an_option_that_the_new_name_does_not_allow_is_refused(said):
    base = BASE | {"algorithm": {"name": "fedavgm", "gamma": 0.5}}
    base["data"] = {"name": "parquet", "path": "x", "augment": "flip"}
    assert load_config(base, ["data.name=npz"]).data == SOURCES["npz"](path="x", augment="flip")
    assert error(BASE, "partition.alpha=-1").startswith("partition.alpha = -1: must be")
    source = BASE | {"partition": {"name": "by_group", "alpha": -1}}
    assert error(source, "partition.name=dirichlet").startswith("partition.alpha = -1: must be")
    said()


def test_names_that_are_import_paths_keep_what_they_share(tmp_path, monkeypatch, said):
    (tmp_path / "mine_and_shared.py").write_text(
        "from dataclasses import dataclass\nfrom rayfl.algorithms import Algorithm\n"
        "@dataclass(frozen=True, kw_only=True)\nclass Mine(Algorithm):\n    rho: float = 0.5\n"
        "def net(num_classes, width=1): ...\ndef any_net(num_classes, **options): ...\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    base = BASE | {"model": {"name": "mine_and_shared:net", "width": 3}}
    base["algorithm"] = {"name": "fedwmsam", "rho": 0.3, "ema": 0.5}
    config = load_config(base, ["algorithm.name=mine_and_shared:Mine"])
    assert config.flat()["algorithm.rho"] == 0.3
    assert load_config(base, ["model.name=mine_and_shared:any_net"]).model.options == {"width": 3}
    assert load_config(base, ["model.name=mlp"]).model == MODELS["mlp"]()
    back = BASE | {"model": {"name": "mlp", "hidden": [3]}}
    assert load_config(back, ["model.name=mine_and_shared:net"]).model.options == {}
    assert [line.partition(": ")[2] for line in said()] == [
        "keeps rho = 0.3; drops ema = 0.5",
        "keeps width = 3",
        "drops width = 3",
        "drops hidden = [3]",
    ]
    for name in (
        "mine_and_shared:Nobody",
        "nowhere_at_all:X",
        "unknown",
        "[a]",
        "mine_and_shared:net",
    ):
        assert error(base, f"algorithm.name={name}").startswith("algorithm.name = ")
    assert said() == []


@pytest.mark.parametrize("order", [1, -1])
def test_no_override_drops_what_another_one_gives(order):
    overrides = ["algorithm.rho=0.3", "algorithm.name=fedsam"][::order]
    assert load_config(BASE, overrides).algorithm.rho == 0.3
    both = ["federation.local_epochs=5", "federation.local_steps=3"][::order]
    assert error(BASE, *both).endswith("give only one of the two")


def test_a_later_layer_replaces_an_alternative():
    other = load_config(BASE, ["federation.local_steps=3"])
    assert (other.federation.local_epochs, other.federation.local_steps) == (None, 3)
    back = load_config(other.model_dump(mode="json"), ["federation.local_epochs=2"])
    assert (back.federation.local_epochs, back.federation.local_steps) == (2, None)
    # null takes nothing back
    assert load_config(BASE, ["federation.local_steps=null"]) == load_config(BASE)


@pytest.mark.parametrize(
    ("given", "size", "participation"),
    [
        ("1", 1, 0.1),  # an integer: clients
        ("10", 10, 1.0),
        ("1.0", 10, 1.0),  # a number with a decimal point: of all clients
        ("0.5", 5, 0.5),
        (".5", 5, 0.5),
        ("0.001", 1, 0.001),  # at least one client
    ],
)
def test_the_cohort_is_a_number_of_clients_or_a_fraction_of_them(given, size, participation):
    federation = load_config(BASE, [f"federation.cohort={given}"]).federation
    assert (federation.cohort_size, federation.participation) == (size, participation)
    again = load_config(load_config(BASE, [f"federation.cohort={given}"]).model_dump(mode="json"))
    assert again.federation == federation


OLD_KEYS = [
    ("federation.dropout", 0.2, "federation.client_dropout=0.2"),
    ("federation.stragglers", 0.2, "federation.straggler_prob=0.2"),
    ("federation.max_norm", None, "federation.clip_norm=null"),
    ("federation.cohort_size", 5, "federation.cohort=5"),
    ("federation.participation", 0.1, "federation.cohort=0.1"),
    ("federation.participation", 1, "federation.cohort=1.0"),
    ("resources.wait_s", 60, "resources.autoscale_timeout_s=60"),
]


@pytest.mark.parametrize(("key", "value", "now"), OLD_KEYS)
def test_an_old_key_is_refused_with_its_new_name_and_value(key, value, now, tmp_path):
    section, name = key.split(".")
    text = json.dumps(value)
    without = {"federation": {"clients": 10, "local_epochs": 1}}  # not even a cohort
    mapping = {**without, section: {**without.get(section, {}), name: value}}
    file = tmp_path / "old.yaml"
    file.write_text(json.dumps(mapping))
    for found in (error(mapping), error(file), error(BASE, f"{key}={text}")):
        assert found.startswith(f"{key} = {text}: is now called {now.partition('=')[0]}")
        assert found.endswith(f"; write {now}")
        assert "\n" not in found


def test_a_resolved_config_of_before_says_to_leave_out_the_key_that_is_null():
    found = error(BASE, "federation.participation=null")
    assert found.startswith("federation.participation = null: is now called federation.cohort")
    assert found.endswith("; leave it out")


def test_learning_rates_follow_the_schedule():
    given = ["federation.lr=0.2", "federation.rounds=3", "federation.lr_decay=0.5"]
    lrs = {
        schedule: load_config(BASE, [*given, f"federation.lr_schedule={schedule}"]).federation.lrs
        for schedule in ("constant", "exponential", "cosine", "linear", "own_schedules:halves")
    }
    assert lrs["constant"] == (0.2, 0.2, 0.2)
    assert lrs["exponential"] == pytest.approx((0.2, 0.1, 0.05))
    assert lrs["cosine"] == pytest.approx((0.2, 0.15, 0.05))
    assert lrs["linear"] == pytest.approx((0.2, 0.2 * 2 / 3, 0.2 / 3))
    assert lrs["own_schedules:halves"] == pytest.approx((0.2, 0.1, 0.05))


def test_a_warmup_raises_the_schedules_learning_rates():
    given = ["federation.lr=0.2", "federation.rounds=4", "federation.lr_decay=0.5"]
    warm = load_config(BASE, [*given, "federation.lr_warmup=2"]).federation
    assert warm.lrs == pytest.approx((0.1, 0.2, 0.2, 0.2))
    both = ["federation.lr_warmup=2", "federation.lr_schedule=exponential"]
    assert load_config(BASE, [*given, *both]).federation.lrs == pytest.approx(
        (0.1, 0.1, 0.05, 0.025)
    )


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "too_few",
            "returns 1 factors for 3 rounds; return one finite number above 0 for each round",
        ),
        (
            "zero",
            "returns the factor 0.0 for 3 rounds; return one finite number above 0 for each round",
        ),
        ("fails", "fails when it is called with 3 rounds (ZeroDivisionError: division by zero)"),
    ],
)
def test_a_schedule_of_ones_own_that_is_none_is_one_line(name, message):
    given = f"federation.lr_schedule=own_schedules:{name}"
    found = error(BASE, "federation.rounds=3", given)
    assert found == f"federation.lr_schedule = 'own_schedules:{name}': {message}"


def test_the_file_of_a_schedule_of_ones_own_is_part_of_the_code():
    config = load_config(BASE, ["federation.lr_schedule=own_schedules:halves"])
    assert "own_schedules" in config.code()


def test_options_that_came_later_leave_the_hash_alone():
    """At the value that means what held before; at another the experiment is another."""
    before = load_config(BASE).hash
    for key, same, other in (
        ("weighting", "uniform", "samples"),
        ("momentum", 0.0, 0.9),
        ("lr_warmup", 0, 3),
    ):
        assert load_config(BASE, [f"federation.{key}={same}"]).hash == before
        assert load_config(BASE, [f"federation.{key}={other}"]).hash != before
    added = {"weighting", "momentum", "nesterov", "lr_warmup"}
    assert not added & {key.partition(".")[2] for key in load_config(BASE).flat_identity()}


def test_nesterov_needs_a_momentum():
    assert error(BASE, "federation.nesterov=true") == (
        "federation.nesterov = true: must be false without federation.momentum; "
        "set federation.momentum=0.9, say"
    )


def test_numbers_of_numpy_are_numbers():
    import numpy as np

    federation = BASE["federation"] | {"clients": np.int64(10), "lr": np.float32(0.5)}
    config = load_config({**BASE, "federation": federation})
    assert (config.federation.clients, config.federation.lr) == (10, 0.5)


# Identity


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.name)
def test_every_config_loads_and_comes_back(path, write):
    config = load_config(path)
    again = load_config(write("resolved.yaml", config.to_yaml()))
    assert again == config
    assert again.hash == config.hash


@settings(max_examples=40, deadline=None, derandomize=True, database=None)
@given(
    name=st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"])),
    rho=st.floats(0, 2.0**127, width=32),
    seed=st.integers(0, 2**63 - 1),
)
def test_any_value_survives_yaml(tmp_path_factory, name, rho, seed):
    source = BASE | {
        "tracking": {"run_name": name},
        "algorithm": {"name": "fedsam", "rho": rho},
        "seed": seed,
    }
    config = load_config(source)
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_text(config.to_yaml(), encoding="utf-8")
    assert load_config(path) == config


@pytest.mark.slow
def test_the_hash_is_of_the_content_alone():
    config = load_config(BASE)
    assert load_config(dict(reversed(BASE.items()))).hash == config.hash
    assert load_config(config.model_dump(mode="json")).hash == config.hash  # explicit defaults
    code = f"from rayfl.config.schema import load_config; print(load_config({BASE!r}).hash)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONHASHSEED": "77"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == config.hash


@pytest.mark.parametrize(
    "override",
    [
        "seed=1",
        "data.augment=flip",
        "data={name: npz, path: x.npz}",
        "partition.alpha=0.2",
        "partition.name=iid",
        "model.hidden=[17]",
        "model.name=lenet5",
        "algorithm.rho=0.06",
        "algorithm.adaptive=false",
        "algorithm.name=fedavg",
        "federation.clients=11",
        "federation.rounds=51",
        "federation.cohort=5",
        "federation.local_epochs=2",
        "federation.local_steps=2",
        "federation.batch_size=51",
        "federation.lr=0.2",
        "federation.lr_schedule=cosine",
        "federation.weight_decay=0.1",
        "federation.clip_norm=1",
        "federation.eval_every=2",
        "federation.clients_per_unit=2",
    ],
)
def test_the_hash_changes_with_the_result(override):
    assert load_config(BASE, [override]).hash != load_config(BASE).hash


@pytest.mark.parametrize(
    "override",
    [
        "resources.num_actors=2",
        "ray.address=auto",
        "tracking.enabled=false",
        "tracking.targets=[0.1]",
        "data.root=/somewhere/else",
        "data.download=true",
    ],
)
def test_the_hash_does_not_change_with_the_place(override):
    source = BASE | {"data": {"name": "mnist"}}
    assert load_config(source, [override]).hash == load_config(source).hash


def test_a_config_cannot_be_changed():
    config = load_config(BASE)
    with pytest.raises(ValueError, match="frozen"):
        config.seed = 3
    assert isinstance(config, Experiment)


# What only the data can tell


def test_more_clients_than_samples():
    from rayfl.prepare import prepare

    with pytest.raises(ConfigError) as caught:
        prepare(load_config(BASE, ["federation.clients=5000"]))
    assert str(caught.value) == (
        "federation.clients = 5000: must be from 1 to the number of training samples, 1442; "
        "each client needs a sample of its own: lower it, or take more data"
    )


def test_a_model_that_does_not_fit_the_data():
    from rayfl.prepare import prepare

    with pytest.raises(ConfigError, match=r"^model.name = 'lenet5': .*; .*$") as caught:
        prepare(load_config(BASE, ["model.name=lenet5"]))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "override", ["federation.lr=3e38", "federation.lr=1e-44", "algorithm.rho=0"]
)
def test_numbers_that_float32_holds_are_taken(override):
    load_config(BASE, [override])


def test_the_first_numbers_of_an_own_method_are_no_matter_of_its_options(tmp_path, monkeypatch):
    (tmp_path / "needs_more.py").write_text(
        "from dataclasses import dataclass\nfrom rayfl.algorithms import Algorithm\n"
        "@dataclass(frozen=True, kw_only=True)\nclass Mine(Algorithm):\n    size: float = 1.0\n"
        "    def init_server(self, w): return {'m': w[[7]], 'n': w + self.size}\n"
        "@dataclass(frozen=True, kw_only=True)\nclass Least(Mine):\n"
        "    def init_server(self, w): return {'best': w + float('inf')}\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    load_config(BASE, ["algorithm.name=needs_more:Mine"])
    load_config(BASE, ["algorithm.name=needs_more:Least"])
