"""Evaluate the model of a run again: on its own test set, or on the test set of other data."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import pandas as pd
import torch

from rayfl.config.identity import is_identity
from rayfl.config.schema import load_config
from rayfl.data.datasets import Dataset
from rayfl.diagnostics.subjects import LAST, find
from rayfl.errors import ConfigError
from rayfl.federation.evaluation import evaluation, together
from rayfl.launch import in_this_process
from rayfl.prepare import prepare
from rayfl.prepared import client_accuracies
from rayfl.storage.checkpoint import before_the_run
from rayfl.text import shown
from rayfl.training.flat import sha256
from rayfl.training.units import Broadcast

ASKED = ("data.", "partition.", "evaluation.")
"""Beginnings of the keys that make another question; others that change a result belong to the training."""


@dataclass(frozen=True)
class Evaluated:
    """Answer about one model on one test set."""

    data: str
    """Name of the data whose test set it is."""
    samples: int
    metrics: dict[str, float]
    """Named as those of a round: `test/loss`, `test/accuracy`, `test/class/...`, `client/accuracy_...`."""
    clients: pd.DataFrame | None
    """Samples and accuracy of each client; None without `evaluation.per_client`."""
    round: int
    run_id: str | None
    config_hash: str
    model_sha256: str
    notes: tuple[str, ...]


def evaluate(what: str, overrides: Sequence[str] = (), *, uri: str | None = None) -> Evaluated:
    """Evaluate the last model of a run in this process, without Ray.

    `what`, `uri`: as `rayfl.diagnostics.flatness` has them. `overrides`: of data.*, whose test set is then
    taken, normalised as the run's own samples were; of partition.*, for the accuracy on other clients'
    distributions of the run's training samples; of evaluation.*; and of where things are. Raises ConfigError
    if the model does not fit the data.
    """
    asked = [text for text in overrides if text.strip().startswith(ASKED)]
    of_data = [text for text in asked if text.strip().startswith("data.")]
    if not any(is_identity(text.partition("=")[0].strip()) for text in of_data):
        asked = [text for text in asked if text not in of_data]
        of_data = []  # the run's own data, at another place
    subject = find(what, [LAST], [text for text in overrides if text not in asked], uri)
    saved, own = subject.checkpoints[-1], subject.trained.model_dump(mode="json")
    prepared = prepare(load_config(own, [text for text in asked if text not in of_data]))
    prepared.check_provenance(saved)
    notes: list[str] = []
    if of_data:
        other = load_config(own, of_data).data.load()
        prepared = prepared.on_test_set(_on(prepared.data, other, notes))
    with before_the_run():
        tensors = saved.snapshot().tensors
    data, federation = prepared.data, prepared.federation
    broadcast = Broadcast(tensors["w"], {}, tensors["buffers"])
    with in_this_process(prepared) as place, place.pool() as pool:
        handle, n = pool.put(broadcast), len(data.y_test)
        futures = evaluation(pool, saved.round, handle, "test", n)
        parts = [pool.wait(future) for future in futures]
    loss, scores = together(parts)
    asked = federation.evaluation
    scored = asked.of_split("test", loss, scores, parts)
    return Evaluated(
        data.name,
        n,
        {f"test/{name}": v for name, v in scored.items()} | asked.breakdown.metrics(scores),
        client_accuracies(prepared, scores),
        saved.round,
        saved.run_id,
        subject.config.hash,
        sha256(torch.tensor(tensors["w"])),
        tuple(notes),
    )


def _on(own: Dataset, other: Dataset, notes: list[str]) -> Dataset:
    """The run's own data with the test set of others; ConfigError if the model does not fit them."""
    for what, here, there in (
        ("samples", list(own.sample_shape), list(other.sample_shape)),
        ("classes", own.num_classes, other.num_classes),
        ("targets", own.kind, other.kind),
        ("outputs", list(own.output_shape), list(other.output_shape)),
    ):
        if here != there:
            raise ConfigError(
                f"the model was trained on {what} {shown(here)}, and {other.name!r} has {shown(there)}; give "
                "data of the same shape and classes",
                key="data.name",
                value=other.name,
            )
    if own.kind == "tokens" and other.classes != own.classes:
        raise ConfigError(
            f"the model predicts the tokens of {own.name!r}, and {other.name!r} has others under the same "
            "numbers; give data of the same vocabulary",
            key="data.name",
            value=other.name,
        )
    if own.has_tokens and other.vocabulary > own.vocabulary:
        raise ConfigError(
            f"the model knows {own.vocabulary} tokens, and {other.name!r} has {other.vocabulary}; give data "
            "of the same vocabulary",
            key="data.name",
            value=other.name,
        )
    if other.classes != own.classes:
        notes.append(
            f"the classes have other names than those of {own.name!r}, and are matched by their numbers"
        )
    groups = other.group_test if other.groups == own.groups else None
    if own.groups != other.groups:
        notes.append(f"the domains are not those of {own.name!r}: accuracies are of classes alone")
    return replace(
        own, name=other.name, x_test=other.x_test, y_test=other.y_test, group_test=groups
    )
