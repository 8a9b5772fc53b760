"""Models that start from the weights of a run or of a file, and what does not fit them."""

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import rayfl
from rayfl.config.schema import load_config
from rayfl.errors import ConfigError
from rayfl.finished import export
from rayfl.prepare import prepare
from tuning.config import load_sweep
from tuning.plan import resolve


def own_net(num_classes, width=4):
    """A factory of one's own, with buffers."""
    return nn.Sequential(
        nn.Flatten(), nn.Linear(64, width), nn.BatchNorm1d(width), nn.Linear(width, num_classes)
    )


OWN = {"name": f"{__name__}:own_net", "width": 6}


@pytest.fixture(scope="module")
def started(tmp_path_factory):
    """For each of two models, the folder of a run's checkpoints, and the run's result."""
    from conftest import small_config

    root = tmp_path_factory.mktemp("started")
    found = {}
    for name, model in (("mlp", {"name": "mlp", "hidden": [16]}), ("own", OWN)):
        base = small_config()
        # Batch normalisation takes no minibatch of one sample.
        kept = {"partition": {"name": "iid"}, "federation": base["federation"] | {"batch_size": 20}}
        kept |= {"checkpoint": {"dir": str(root / name)}, "model": model}
        config = load_config(base | kept, ["federation.rounds=1"])
        result = rayfl.run(config, local=True)
        (run,) = (root / name / config.hash).iterdir()
        export(str(run), run / "model.safetensors")
        export(str(run), run / "model.pt")
        found[name] = kept, run, result
    return found


@pytest.mark.parametrize("name", ["mlp", "own"])
def test_all_weights_are_those_of_the_run_or_the_file(name, started, small):
    kept, run, result = started[name]
    places = (
        f"runs:/{run.name}",
        str(run),
        str(run / "checkpoint-00000001.json"),
        str(run / "model.pt"),
        str(run / "model.safetensors"),
    )
    fresh = load_config(small | kept)
    hashes = set()
    for init in places:
        config = load_config(small | kept, [f"model.init={init}"])
        model = prepare(config).model
        names = (
            dict(model.named_parameters()).keys() | {"2.running_mean"} & model.state_dict().keys()
        )
        assert all(torch.equal(model.state_dict()[n], result.state_dict[n]) for n in names)
        hashes.add(config.hash)
    assert fresh.hash not in hashes
    assert len(hashes) == 3  # a checkpoint, and the two files
    assert load_config(small | kept, ["model.init=null"]).hash == fresh.hash


def test_the_content_is_the_identity_and_not_the_path(started, small, tmp_path):
    kept, run, _ = started["mlp"]
    moved = tmp_path / "elsewhere.safetensors"
    moved.write_bytes((run / "model.safetensors").read_bytes())

    def hash_of(path):
        return load_config(small | kept, [f"model.init={path}"]).hash

    before = hash_of(moved)
    assert before == hash_of(run / "model.safetensors")
    save_file({"w": torch.zeros(1)}, moved)
    assert hash_of(moved) != before


def test_training_begins_there(started, small):
    kept, run, _ = started["mlp"]
    config = load_config(small | kept, ["federation.rounds=1", f"model.init={run}"])
    warm = rayfl.run(config, local=True)
    cold = rayfl.run(load_config(small | kept, ["federation.rounds=1"]), local=True)
    assert warm.history["train/loss"][1] < cold.history["train/loss"][1]


@pytest.mark.parametrize(
    ("init", "override", "message"),
    [
        ("{run}/model.pt", "model.hidden=[8]", "has another shape of 1.bias, 1.weight, 3.weight"),
        (
            "{run}/model.pt",
            "model.hidden=[]",
            "it has, but the model has not, 3.bias, .*; it has another",
        ),
        ("{run}", "model.hidden=[8]", r"model\.hidden = \[16\] there, \[8\] here"),
        ("runs:/nobody", "seed=1", "model.init = 'runs:/nobody': no weights .* no such checkpoint"),
        ("nothing.pt", "seed=1", "model.init = 'nothing.pt': no such file"),
    ],
)
def test_what_does_not_fit_is_named(init, override, message, started, small):
    kept, run, _ = started["mlp"]
    config = load_config(small | kept, [f"model.init={init.format(run=run)}", override])
    with pytest.raises(ConfigError, match=message):
        prepare(config)


def test_a_file_does_not_go_under_adapters(started, small, tmp_path):
    adapted = {"name": "vit_tiny", "image_size": 8, "lora": {"r": 2}}
    (tmp_path / "w.pt").write_bytes(b"")
    config = load_config(small | {"model": adapted | {"init": str(tmp_path / "w.pt")}})
    with pytest.raises(ConfigError, match=r"has adapters; give it as model\.pretrained"):
        prepare(config)


def test_it_may_be_an_axis_of_a_sweep(started, sweep_file):
    run = started["mlp"][1]
    axis = {"model.init": {"grid": [None, str(run / "model.pt")]}}
    sweep = load_sweep(sweep_file(space=axis))
    cold, warm = (resolve(sweep, {"model.init": value}, 0) for value in axis["model.init"]["grid"])
    assert cold.problem is None
    assert warm.problem is None
    assert cold.hash != warm.hash
