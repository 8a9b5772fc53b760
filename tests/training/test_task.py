"""Tasks beyond classes: tokens and numbers, against plain PyTorch; losses of one's own."""

import math

import numpy as np
import pytest
import torch
from conftest import each
from torch import nn
from torch.nn import functional as F

import rayfl
from rayfl.algorithms import ALGORITHMS
from rayfl.errors import ConfigError
from rayfl.training.batches import Minibatch
from rayfl.training.flat import Layout
from rayfl.training.function import Function
from rayfl.training.gradients import PerClientGradient, VmapGradient
from rayfl.training.task import Task

L, V = 6, 5


class TokenNet(nn.Module):
    """A next-token model: an embedding and a running mean, `[n, L] -> [n, L, V]`."""

    def __init__(self, num_classes: int = V, vocabulary: int = V):
        super().__init__()
        self.embedding, self.head = nn.Embedding(vocabulary, 4), nn.Linear(4, num_classes)

    def forward(self, x):
        seen = self.embedding(x).cumsum(-2)
        return self.head(seen / torch.arange(1, x.shape[-1] + 1, dtype=seen.dtype)[:, None])


class Regression(nn.Module):
    def __init__(self, num_classes: int):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, num_classes))

    def forward(self, x):
        return self.layers(x)


def token_data(n=60):
    """Sentences in which each token is the last one plus one or two."""
    rng = np.random.default_rng(0)
    steps = np.cumsum(rng.integers(1, 3, (n, L + 1)), axis=1) % V
    return steps[:, :-1], steps[:, 1:]


def number_data(n=120):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(n, 3)).astype(np.float32)
    y = np.stack([x.sum(1), x[:, 0] * x[:, 1]], axis=1)
    return x, y


@pytest.fixture
def federated(tmp_path, small):
    """Config of a run on samples and targets, written as an .npz file."""

    def make(x, y, **federation):
        cut = len(x) * 2 // 3
        np.savez(
            tmp_path / "d.npz", x_train=x[:cut], y_train=y[:cut], x_test=x[cut:], y_test=y[cut:]
        )
        return small | {
            "data": {"name": "npz", "path": str(tmp_path / "d.npz")},
            "partition": {"name": "iid"},
            "algorithm": {"name": "fedavg"},
            "federation": small["federation"] | {"rounds": 4, "clip_norm": None} | federation,
        }

    return make


def run(config, **options):
    return rayfl.run(rayfl.load_config(config), local=True, **options)


@each(padded=[False, True])
def test_gradients_of_tokens_are_plain_pytorchs(padded):
    """Of two clients, beside each other and alone; the second has a smaller minibatch."""
    torch.manual_seed(0)
    model, task = TokenNet().double(), Task(kind="tokens", shape=(L, V))
    layout = Layout(model)
    function = Function(model, layout, task=task)
    x = torch.stack([layout.flatten(model)[0], 0.5 * layout.flatten(model)[0]]).double()
    tokens, targets = torch.randint(V, (2, 2, 4, L))
    sizes = (4, 3) if padded else (4, 4)
    weights = torch.stack([(torch.arange(4) < size).double() / size for size in sizes])
    stack = Minibatch(tokens, targets, weights if padded else None)
    together, losses = VmapGradient(function)(x, stack)
    for client, size in enumerate(sizes):
        alone = Minibatch(tokens[client, None, :size], targets[client, None, :size], None)
        mine, loss = PerClientGradient(function)(x[client, None], alone)
        parameters = function.parameters(x[client])
        for leaf in parameters.values():
            leaf.requires_grad_()
        outputs = torch.func.functional_call(model, parameters, tokens[client, :size])
        plain = F.cross_entropy(outputs.movedim(-1, 1), targets[client, :size])
        gradient = torch.autograd.grad(plain, list(parameters.values()))
        expected = torch.cat([g.flatten() for g in gradient])
        for found, of in ((mine[0], loss[0]), (together[client], losses[client])):
            torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)
            torch.testing.assert_close(of, plain.detach(), rtol=1e-12, atol=0)


def test_a_token_model_learns_and_is_measured(federated):
    config = federated(*token_data(), lr=1.0, rounds=25)
    config["model"] = {"name": f"{__name__}:TokenNet"}
    result = run(config)
    last = result.history.iloc[-1]
    assert last["test/perplexity"] == pytest.approx(math.exp(last["test/loss"]))
    assert last["test/perplexity"] < 4 < V  # two tokens may follow: at best 2
    model = TokenNet()
    model.load_state_dict(result.state_dict)
    x, y = (torch.tensor(part[40:]) for part in token_data())
    with torch.no_grad():
        outputs = model(x)
    assert last["test/loss"] == pytest.approx(
        float(F.cross_entropy(outputs.flatten(0, 1), y.flatten())), rel=1e-5
    )
    right = (outputs.argmax(-1) == y).float().mean()
    assert last["test/accuracy"] == pytest.approx(float(right))
    assert result.summary["perplexity_final"] == last["test/perplexity"]
    assert result.clients is None  # nothing is known of them without groups


def test_numbers_are_learnt_and_measured(federated):
    x, y = number_data()
    config = federated(x, y, rounds=30, lr=0.1)
    config |= {"model": {"name": f"{__name__}:Regression"}, "evaluation": {"average": {"last": 2}}}
    config["data"]["validation"] = 0.2
    result = run(config)
    model = Regression(2)
    model.load_state_dict(result.state_dict)
    seen = (x - x[:80].mean(0)) / x[:80].std(0)
    with torch.no_grad():
        errors = (model(torch.tensor(seen[80:])) - torch.tensor(y[80:])).double().square()
    last, spread = result.history.iloc[-1], np.square(y[80:] - y[80:].mean(0)).sum()
    assert last["test/loss"] == pytest.approx(float(errors.mean()), rel=1e-5)
    assert last["test/r2"] == pytest.approx(1 - float(errors.sum()) / spread, rel=1e-5)
    assert result.summary["r2_final"] == last["test/r2"] > 0.3
    assert {"validation/r2", "average/r2"} <= set(result.history)
    assert not any("accuracy" in name for name in (*result.history, *result.summary))


def test_stacked_clients_of_numbers_are_those_one_by_one(federated):
    config = federated(*number_data(), clients_per_unit=5)
    config["model"] = {"name": f"{__name__}:Regression"}
    alone = run(config)
    config["federation"]["stack"] = 5
    stacked = run(config)
    for name, tensor in alone.state_dict.items():
        torch.testing.assert_close(stacked.state_dict[name], tensor, rtol=1e-4, atol=1e-6)


OF_LOGITS = [name for name, method in ALGORITHMS.items() if method.compares_outputs]


def test_methods_that_compare_logits_work_on_tokens_and_refuse_numbers(federated):
    assert OF_LOGITS == ["fedgmt", "fedsol", "moon"]
    for name in OF_LOGITS:
        config = federated(*token_data(), lr=0.5)
        config |= {"model": {"name": f"{__name__}:TokenNet"}, "algorithm": {"name": name}}
        assert run(config).summary["loss_final"] < math.log(V)
        config = federated(*number_data()) | {"algorithm": {"name": name}}
        with pytest.raises(ConfigError, match=r"algorithm.name.*compares logits"):
            run(config)


def test_a_loss_of_ones_own(small):
    """The usual loss by another way is the same but for rounding; a smoothed one is its own."""
    usual = run(small)
    own, smoothed = (
        run(small | {"federation": small["federation"] | {"loss": f"own_losses:{name}"}})
        for name in ("cross_entropy", "smoothed")
    )
    assert own.summary["loss_final"] == pytest.approx(usual.summary["loss_final"], rel=1e-3)
    assert smoothed.summary["loss_final"] != pytest.approx(usual.summary["loss_final"], rel=1e-3)
    configs = [
        rayfl.load_config(small | {"federation": small["federation"] | extra})
        for extra in ({}, {"loss": None}, {"loss": "own_losses:smoothed"})
    ]
    assert configs[0].hash == configs[1].hash != configs[2].hash
    assert "own_losses" in configs[2].code()


@each(
    case={
        "mean": "gives \\[\\] for 3 rows",
        "constant": "no finite loss and gradient|fails on outputs",
        "infinite": "no finite loss and gradient",
        "in_place": "changes what it was given",
        "raising": "fails on outputs .*KeyError: 'no such loss'",
        "nothing": "own_losses has no 'nothing'",
    }.items()
)
def test_what_cannot_be_a_loss_is_refused(case):
    from conftest import small_config

    name, message = case
    config = small_config()
    config["federation"]["loss"] = f"own_losses:{name}"
    with pytest.raises(ConfigError, match=message) as error:
        run(config)
    assert "federation.loss" in str(error.value)


@each(
    case={
        "partition": ({"partition": {"name": "dirichlet"}}, "partition.name: goes by classes"),
        "inner": (
            {"partition": {"name": "by_group", "inner": "dirichlet"}},
            "partition.name: goes by classes",
        ),
        "long tail": (
            {"heterogeneity": {"imbalance_factor": 2.0}},
            "imbalance_factor = 2.0: works on",
        ),
        "labels": ({"heterogeneity": {"label_noise": 0.5}}, "label_noise = 0.5: works on classes"),
        "per class": ({"evaluation": {"per_class": True}}, "evaluation.per_class = true"),
    }
)
def test_what_needs_classes_says_so(case, tmp_path, small):
    change, message = case
    x, y = number_data()
    np.savez(tmp_path / "d.npz", x_train=x[:80], y_train=y[:80], x_test=x[80:], y_test=y[80:])
    data = {"data": {"name": "npz", "path": str(tmp_path / "d.npz")}, "partition": {"name": "iid"}}
    with pytest.raises(ConfigError, match=message):
        run(small | data | {"algorithm": {"name": "fedavg"}} | change)


@each(
    case={
        "floats": (np.zeros(120), "labels float64 .*floats \\[80, D\\]"),
        "one-hot": (np.eye(4, dtype=np.int64)[np.arange(120) % 4], "labels int64 \\[80, 4\\]"),
        "infinite": (np.full((120, 1), np.inf), "targets that are not finite"),
    }
)
def test_targets_that_are_no_targets(case, tmp_path, small):
    y, message = case
    x, _ = number_data()
    np.savez(tmp_path / "d.npz", x_train=x[:80], y_train=y[:80], x_test=x[80:], y_test=y[80:])
    with pytest.raises(ConfigError, match=message):
        run(small | {"data": {"name": "npz", "path": str(tmp_path / "d.npz")}})


def test_the_mean_predicts_nothing(federated):
    """R squared of a constant that is the test set's mean is 0, and there is none without spread."""
    from rayfl.federation.scores import Scoring

    y = np.array([[1.0], [2.0], [4.0]], np.float32)
    scoring = Scoring("numbers", False, {"test": float(np.square(y - y.mean()).sum())})
    errors = np.square(y - y.mean()).sum(1).astype(np.float32)
    assert scoring.metrics("test", 1.5, errors)["r2"] == pytest.approx(0, abs=1e-6)
    assert Scoring("numbers", False, {"test": 0.0}).metrics("test", 1.5, errors) == {"loss": 1.5}


def test_a_plan_asks_for_each_method(federated):
    """What one method can do says nothing of another, in whichever order they come."""
    from rayfl.inputs import Inputs

    inputs = Inputs()
    config = federated(*number_data()) | {"model": {"name": f"{__name__}:Regression"}}
    assert inputs.units(rayfl.load_config(config)).on_cpus > 1
    central = rayfl.load_config(config | {"algorithm": {"name": "centralised"}})
    assert inputs.units(central).on_cpus == 1
    with pytest.raises(ConfigError, match="compares logits"):
        inputs.units(rayfl.load_config(config | {"algorithm": {"name": "moon"}}))
