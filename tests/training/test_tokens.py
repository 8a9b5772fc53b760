"""Integers that are no images, through the whole way: a model with an embedding sees them as they are."""

import numpy as np
import pytest
import torch
from local_pool import a_server
from torch import nn
from torch.nn import functional as F

from rayfl.config.schema import load_config
from rayfl.errors import ConfigError
from rayfl.prepare import prepare
from rayfl.training.batches import batch_schedule
from rayfl.training.flat import Layout

WORDS, LENGTH, CLASSES = 50, 7, 3


class Text(nn.Module):
    def __init__(self, num_classes: int, words: int = WORDS):
        super().__init__()
        self.words = nn.Embedding(words, 8)
        self.out = nn.Linear(8, num_classes)

    def forward(self, tokens):
        return self.out(self.words(tokens).mean(1))


def config(tmp_path, *overrides: str, **model):
    rng = np.random.default_rng(0)
    x = rng.integers(0, WORDS, (60, LENGTH)).astype(np.uint16)
    y = x.sum(1) % CLASSES
    np.savez(tmp_path / "text.npz", x_train=x, y_train=y, x_test=x[:9], y_test=y[:9])
    content = {
        "data": {"name": "npz", "path": str(tmp_path / "text.npz")},
        "partition": {"name": "iid"},
        "model": {"name": f"{__name__}:Text", **model},
        "algorithm": {"name": "fedavg"},
        "federation": {
            "clients": 4,
            "cohort": 4,
            "local_epochs": 2,
            "rounds": 1,
            "batch_size": 8,
        }
        | {"lr": 0.5, "clients_per_unit": 4},
        "tracking": {"enabled": False},
        "checkpoint": {"every": None},
    }
    return load_config(content, overrides)


@pytest.mark.parametrize(
    "overrides", [(), ("federation.stack=4",), ("federation.precision=bfloat16",)]
)
def test_tokens_train_as_in_plain_pytorch(tmp_path, overrides):
    prepared = prepare(config(tmp_path, *overrides))
    data, model = prepared.data, prepared.model
    start = {name: value.clone() for name, value in model.state_dict().items()}
    server = a_server(prepared)
    (_, metrics), *_ = [record for record in server.run() if "test/accuracy" in record[1]]

    trained = []
    for client in range(4):
        model.load_state_dict(start)
        descent = torch.optim.SGD(model.parameters(), 0.5)
        p = batch_schedule(
            prepared.partition.client(client), 8, 4, prepared.config.seed, 1, client, "none", 1
        )
        for indices, size in zip(p.indices, p.sizes, strict=True):
            chosen = indices[:size]
            x, y = torch.from_numpy(data.x_train[chosen]), torch.from_numpy(data.y_train[chosen])
            descent.zero_grad()
            F.cross_entropy(model(x), y).backward()
            descent.step()
        trained.append(Layout(model).flatten(model)[0])
    mean = torch.stack(trained).mean(0)
    low = "bfloat16" in "".join(overrides)
    torch.testing.assert_close(
        torch.from_numpy(server.final().w), mean, rtol=0, atol=0.02 if low else 1e-6
    )
    if not low:
        Layout(model).load(model, mean, torch.empty(0))
        right = model(torch.from_numpy(data.x_test)).argmax(1) == torch.from_numpy(data.y_test)
        assert metrics["test/accuracy"] == pytest.approx(right.float().mean().item())


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (
            {"name": f"{__name__}:Text", "words": WORDS - 1},
            "IndexError: index out of range in self",
        ),
        ({"name": "mlp"}, "RuntimeError"),
    ],
)
def test_a_model_that_takes_no_such_integers_is_refused(tmp_path, options, problem):
    """One token more than there are words would end a run, and on a GPU the process."""
    with pytest.raises(
        ConfigError, match=rf"{problem}.*; they are integers from 0 to 49, as"
    ) as error:
        prepare(config(tmp_path, **options))
    assert "\n" not in str(error.value)
