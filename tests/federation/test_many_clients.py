"""Hundreds of thousands of clients: what is done for each of them is done in arrays, or not at all."""

import json
import pickle
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from mlflow.artifacts import download_artifacts

from rayfl import load_config, run
from rayfl.data.datasets import Source, from_arrays
from rayfl.data.picture import MOST_CLIENTS
from rayfl.prepare import prepare


@dataclass(frozen=True, kw_only=True)
class Pairs(Source):
    """Two samples of each group."""

    groups: int = 100

    def read(self):
        rng = np.random.default_rng(0)
        x = rng.standard_normal((2 * self.groups, 4), dtype=np.float32)
        y = (x[:, 0] > 0) + 2 * (x[:, 1] > 0)
        group = np.arange(len(y)) // 2
        return from_arrays("pairs", (x, y), (x[:100], y[:100]), groups=(group, group[:100]))


def config(clients, partition="dirichlet", **sections):
    return load_config(
        {
            "data": {"name": f"{__name__}:Pairs", "groups": clients},
            "partition": {"name": partition},
            "model": {"name": "mlp", "hidden": []},
            "algorithm": {"name": "scaffold"},
            "federation": {
                "clients": clients,
                "cohort": 10,
                "rounds": 3,
                "local_steps": 2,
                "batch_size": 2,
            },
            "tracking": {"enabled": False},
            "checkpoint": {"every": None},
            **sections,
        }
    )


def in_objects(clients):
    """Bytes of what server and clients are sent, but for what is in arrays."""
    server, client = prepare(config(clients)).specs()
    sent = server, client._replace(dataset=None)  # it names its groups
    arrays: list[pickle.PickleBuffer] = []
    return len(pickle.dumps(sent, protocol=5, buffer_callback=arrays.append))


def test_server_and_clients_are_sent_no_object_for_each_client():
    assert abs(in_objects(50_000) - in_objects(100)) < 1000


@pytest.mark.slow
def test_a_run_of_200_000_clients_and_what_it_leaves(store_here, tmp_path):
    clients = 200_000
    result = run(config(clients, tracking={}), local=True)
    assert len(result.history) == 3
    assert result.clients is not None
    assert (result.clients["samples"] == 2).all()
    assert result.clients["accuracy"].mean() == pytest.approx(
        result.history["client/accuracy_mean"].iloc[-1]
    )

    folder = Path(
        download_artifacts(run_id=result.run_id, tracking_uri=f"sqlite:///{tmp_path}/mlflow.db")
    )
    kept = pd.read_parquet(folder / "evaluation/clients.parquet")
    pd.testing.assert_frame_equal(kept, result.clients)
    assert not (folder / "evaluation/clients.csv").exists()
    shown = json.loads((folder / "partition/histogram.json").read_text())
    assert len(shown["clients"]) == len(shown["ids"]) == MOST_CLIENTS
    assert (shown["ids"][0], shown["ids"][-1]) == (0, clients - 1)
    assert np.sum(shown["clients"]) == 2 * MOST_CLIENTS
    assert (folder / "partition/histogram.png").stat().st_size < 200_000


@pytest.mark.slow
def test_a_million_writers():
    """Each is a client; of those that the test set knows nothing of, no accuracy is told."""
    result = run(config(10**6, "by_group"), local=True)
    assert result.clients is not None
    assert result.clients["accuracy"].notna().sum() == 50
    assert result.history["test/domain_mean"].notna().all()
