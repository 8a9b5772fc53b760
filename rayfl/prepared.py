"""A checked experiment, and all that its server, its clients and its checkpoints are made from."""

import functools
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from torch import nn

from rayfl import own_parts
from rayfl.algorithms.base import Algorithm, ClientContext
from rayfl.config.measurements import Personalised
from rayfl.config.schema import Experiment
from rayfl.data.datasets import Dataset
from rayfl.data.partition import Partition
from rayfl.errors import ConfigError
from rayfl.federation.averaging import Rule
from rayfl.federation.breakdown import Breakdown
from rayfl.federation.callbacks import Callbacks
from rayfl.federation.measurer import Measurer
from rayfl.federation.personal import Personalisation
from rayfl.federation.scores import Scoring
from rayfl.federation.specs import ClientSpec, Diagnosis, EvaluationSpec, FederationSpec, ServerSpec
from rayfl.flatness.question import Question
from rayfl.provenance import Provenance
from rayfl.storage.checkpoint import SavedCheckpoint, before_the_run
from rayfl.storage.checkpoint_writer import CheckpointWriter
from rayfl.training.flat import Layout
from rayfl.training.settings import LocalSettings, experiment_info
from rayfl.training.travel import packed
from rayfl.training.units import PersonalResult


@dataclass(frozen=True)
class Prepared:
    """A checked experiment."""

    config: Experiment
    data: Dataset
    partition: Partition
    model: nn.Module
    federation: FederationSpec
    settings: LocalSettings
    holders: Partition
    """Who holds which samples: `partition`, but for methods that train on all data in one place."""

    @functools.cached_property
    def provenance(self) -> Provenance:
        return Provenance(self.data.digest, self.config.code())

    def specs(self) -> tuple[ServerSpec, ClientSpec]:
        """Everything that the server and the clients need."""
        w, buffers = Layout(self.model).flatten(self.model)
        algorithm, name = self.config.algorithm, self.config.algorithm_name
        asked, called = self.config.diagnostics, own_parts.callbacks(self.config)
        model = packed(self.model)
        server = ServerSpec(
            algorithm=algorithm,
            name=name,
            w=w.numpy(),
            buffers=buffers.numpy(),
            federation=self.federation,
            diagnosis=Diagnosis(asked.every, self.measurer(asked.question))
            if asked.every
            else None,
            average=averaging(self.config),
            personalisation=self.personalisation,
            callbacks=Callbacks(called, model) if called else None,
        )
        client = ClientSpec(
            algorithm=algorithm,
            name=name,
            model=model,
            dataset=self.data,
            partition=self.partition,
            settings=self.settings,
        )
        return server, client

    @functools.cached_property
    def personalisation(self) -> Personalisation | None:
        """The evaluation of clients' own models, if any. Raises ConfigError if they cannot be evaluated."""
        config, method = self.config, self.config.algorithm.at(1)
        asked = config.evaluation.personalised
        known = self.federation.evaluation.breakdown.holdings is not None
        if asked is not None and not known:
            raise ConfigError(
                key="evaluation.personalised",
                value=asked.model_dump(),
                allowed="null: numbers have no accuracy"
                if self.data.kind == "numbers"
                else "null: without groups the data say nothing of the clients' distributions",
            )
        if method.keeps_models:
            self._try_own_models(method)
        if not known or method.pools_data or not (asked or method.keeps_models):
            return None
        given = (asked or Personalised(steps=0)).model_dump()
        return Personalisation.of(config.seed, len(self.holders.sizes), **given)

    def _try_own_models(self, method: Algorithm) -> None:
        """ConfigError if the method cannot tell a client's own model on these tensors."""
        w, _ = Layout(self.model).flatten(self.model)
        memory = {name: value[None] for name, value in method.init_client(w).items()}
        info = experiment_info(Layout(self.model), self.partition, self.settings)
        try:
            method.personal(
                memory, ClientContext(w[None], {}, 0.0, w[:1][None], 0, 1, info, w[:1][None])
            )
        except ValueError as error:
            raise ConfigError(
                f"{error}", key="algorithm.name", value=self.config.algorithm_name
            ) from error

    def on_test_set(self, data: Dataset) -> "Prepared":
        """The same experiment, to be evaluated on the test set of these data."""
        asked = evaluation(self.config, data, self.partition, self.holders)
        federation = replace(self.federation, test_samples=len(data.y_test), evaluation=asked)
        return replace(self, data=data, federation=federation)

    def checkpoint_writer(self, location: str, run_id: str | None = None) -> CheckpointWriter:
        """A writer of this experiment's checkpoints at `location`."""
        kept, every = self.config.checkpoint, self.config.checkpoint.every
        return CheckpointWriter(
            location=location,
            config_hash=self.config.hash,
            config=self.config.flat_identity(),
            provenance=self.provenance,
            run_id=run_id,
            every=None if every == "auto" else every,
            keep_last=kept.keep_last,
            keep_at_end=kept.keep_last or 1,
        )

    def check_provenance(self, saved: SavedCheckpoint) -> None:
        """Raise ConfigError if the checkpoint was made with other data or other code."""
        with before_the_run():
            saved.check_provenance(self.provenance)

    def measurer(self, question: Question) -> Measurer:
        """The measurer of the flatness of its states."""
        tensors = tuple(Layout(self.model).parameters)
        return Measurer(question, self.federation, self.config.algorithm, self.partition, tensors)


def client_accuracies(
    prepared: Prepared,
    scores: np.ndarray | None,
    personal: Mapping[int, PersonalResult] | None = None,
) -> pd.DataFrame | None:
    """Each client's samples, accuracy and, as far as that was evaluated, its own model's, if wanted.

    `scores`: of the test samples, `[n]`.
    """
    breakdown = prepared.federation.evaluation.breakdown
    if scores is None or breakdown.holdings is None or not breakdown.per_client:
        return None
    columns = {"samples": prepared.holders.sizes, "accuracy": breakdown.clients(scores)}
    frame = pd.DataFrame(columns).rename_axis("client")
    if personal:
        own = {client: result._asdict() for client, result in personal.items()}
        named = {"before": "personal_before", "after": "personal_accuracy"}
        frame = frame.join(pd.DataFrame.from_dict(own, orient="index").rename(columns=named))
    return frame


def evaluation(
    config: Experiment, data: Dataset, partition: Partition, holders: Partition
) -> EvaluationSpec:
    """Return what evaluations make of a model's outputs on the test set of these data."""
    asked = config.evaluation
    return EvaluationSpec(
        scoring=Scoring.of(data, partition, own_loss=config.federation.loss is not None),
        breakdown=Breakdown.of(data, holders, asked.per_class, asked.per_client),
        own_metrics=own_parts.metrics(config, data, partition),
    )


def averaging(config: Experiment) -> Rule | None:
    """Return the rule of the average that is evaluated beside the global models; None: of none."""
    asked = config.evaluation.average
    return None if asked is None else asked.rule(config.federation.rounds)
