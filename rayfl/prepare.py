"""Everything that is done and checked before an actor starts: data, partition, model, local settings."""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn

from rayfl import models, own_parts, warm_start
from rayfl.algorithms.base import Algorithm, ClientContext
from rayfl.algorithms.scheduled import Scheduled
from rayfl.config.measurements import Personalised
from rayfl.config.own import own_function
from rayfl.config.schema import Experiment
from rayfl.config.sections import Federation
from rayfl.data.datasets import Dataset, give_back_memory
from rayfl.data.federated import federate
from rayfl.data.partition import Partition
from rayfl.errors import ConfigError
from rayfl.federation.averaging import Rule
from rayfl.federation.callbacks import Callbacks
from rayfl.federation.evaluation import Breakdown
from rayfl.federation.measurer import Measurer
from rayfl.federation.personal import Personalisation
from rayfl.federation.privacy import PrivateRounds
from rayfl.federation.scores import Scoring
from rayfl.federation.specs import ClientSpec, Diagnosis, FederationSpec, ServerSpec
from rayfl.flatness.question import Question
from rayfl.provenance import Provenance
from rayfl.storage.checkpoint import SavedCheckpoint, before_the_run
from rayfl.storage.checkpoint_writer import CheckpointWriter
from rayfl.storage.storage import Storage
from rayfl.training import contract
from rayfl.training.batches import DeviceData
from rayfl.training.evaluation import EVALUATION_BATCH
from rayfl.training.flat import Layout
from rayfl.training.lanes import MOST_LANES
from rayfl.training.settings import LocalSettings, experiment_info
from rayfl.training.shortcuts import Mode, Samples, choose
from rayfl.training.task import Task
from rayfl.training.travel import packed
from rayfl.training.units import PersonalResult
from rayfl.workload import (
    clients_per_unit,
    full_steps,
    in_one_place,
    samples_per_round,
    total_weight,
)

# Of each minibatch on which the ways to compute a model are compared: batch normalisation needs two, and
# with three hides little.
COMPARED_SAMPLES = 3


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
        asked = self.config.diagnostics
        diagnosis = asked.every and Diagnosis(asked.every, self.measurer(asked.question))
        arrays, model = (w.numpy(), buffers.numpy()), packed(self.model)
        server = ServerSpec(
            *(algorithm, name, *arrays, self.federation, diagnosis or None),
            *(averaging(self.config), self.personalisation),
            Callbacks(called, model) if (called := own_parts.callbacks(self.config)) else None,
        )
        return server, ClientSpec(algorithm, name, model, self.data, self.partition, self.settings)

    @functools.cached_property
    def personalisation(self) -> Personalisation | None:
        """Which of the clients' own models are evaluated, if any. Raises ConfigError if they cannot be."""
        config, method = self.config, self.config.algorithm.at(1)
        asked = config.evaluation.personalised
        known = self.federation.breakdown.holdings is not None
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
            method.personal(memory, ClientContext(w[None], {}, 0.0, w[:1][None], 0, 1, info))
        except ValueError as error:
            raise ConfigError(
                f"{error}", key="algorithm.name", value=self.config.algorithm_name
            ) from error

    def on_test_set(self, data: Dataset) -> "Prepared":
        """The same experiment, to be evaluated on the test set of these data."""
        of_data = _evaluations(self.config, data, self.partition, self.holders)
        federation = replace(self.federation, test_samples=len(data.y_test), **of_data)
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


def prepare(
    config: Experiment,
    data: Dataset | None = None,
    partition: Partition | None = None,
    on_phase: Callable[[str], None] = lambda phase: None,
) -> Prepared:
    """Load the data, split them among the clients and build the model; ConfigError if that cannot be.

    `data`, `partition`: those of the config, where they have been made before. `on_phase` is told what is
    done next.
    """
    if config.checkpoint.every is not None:
        with before_the_run():
            Storage(config.checkpoint.location)
    if data is None or partition is None:
        on_phase("reading the data")
        data, partition = federate(
            config.data.load(),
            config.partition,
            config.heterogeneity,
            config.federation.clients,
            config.seed,
            config.data.validation,
        )
    fed, holders = config.federation, partition
    if config.algorithm.at(1).pools_data:
        fed, partition = in_one_place(fed, partition)
    on_phase("building the model and checking it")
    task = task_of(config, data)
    model = built(config, data)
    if config.model.init is not None:
        warm_start.load(
            model, config.model.init, config.checkpoint.location, config.flat_identity()
        )
    privacy = _private_rounds(config, partition, model)
    shortcuts = choose(
        model,
        models.name_of(config.model),
        task,
        _two_minibatches(data),
        single_samples=_single_samples(fed, data, partition),
        stack=fed.stack,
    )
    on_cpus = clients_per_unit(
        Layout(model).size,
        shortcuts.dense,
        fed.cohort_size,
        fed.batch_size,
        samples_per_round(fed, partition),
        fed.stack,
    )
    # A GPU trains many clients at once; no more than it has lanes, or stacks, for.
    units = -(-fed.cohort_size // max(MOST_LANES, fed.stack or 1))
    on_gpus = on_cpus if shortcuts.dense else -(-fed.cohort_size // units)
    federation = FederationSpec(
        seed=config.seed,
        clients=fed.clients,
        participation=fed.participation,
        sampling=own_parts.sampling(config, fed, partition),
        sizes=partition.sizes,
        client_dropout=fed.client_dropout,
        rounds=fed.rounds,
        lrs=fed.lrs,
        clients_per_unit=fed.clients_per_unit or on_cpus,
        clients_per_gpu_unit=fed.clients_per_unit or on_gpus,
        eval_every=fed.eval_every,
        test_samples=len(data.y_test),
        validation_samples=len(partition.validation),
        total_weight=total_weight(fed, partition),
        **_evaluations(config, data, partition, holders),
        privacy=privacy,
    )
    settings = LocalSettings(
        seed=config.seed,
        batch_size=fed.batch_size,
        local_epochs=fed.local_epochs,
        local_steps=fed.local_steps,
        weight_decay=fed.weight_decay,
        momentum=fed.momentum,
        nesterov=fed.nesterov,
        clip_norm=fed.clip_norm,
        precision=fed.precision,
        augment=config.data.augment,
        weighting=fed.weighting,
        privacy=None if privacy is None else privacy.mechanism,
        straggler_prob=fed.straggler_prob,
        stack=fed.stack,
        cuda_graphs=config.resources.cuda_graphs,
        keeps_outputs=bool(config.evaluation.metrics),
        lanes=None if config.resources.lanes == "auto" else config.resources.lanes,
        task=task,
        shortcuts=shortcuts,
    )
    if config.has_own_algorithm:
        scheduled = config.algorithm
        for round in scheduled.turns if isinstance(scheduled, Scheduled) else [1]:
            contract.check(
                scheduled.at(round),
                config.algorithm_name,
                experiment_info(Layout(model), partition, settings),
                federation.cohort_size / federation.clients,
                federation.lrs,
            )
    prepared = Prepared(config, data, partition, model, federation, settings, holders)
    _ = prepared.personalisation, own_parts.callbacks(config)  # raise ConfigError
    give_back_memory()
    return prepared


def built(config: Experiment, data: Dataset) -> nn.Module:
    """The model for these data, with its first weights; ConfigError if it does not fit them."""
    return models.build(
        config.model,
        data.sample_shape,
        data.num_classes,
        config.seed,
        torch.from_numpy(data.trial()),
        _tokens(data),
    )


def task_of(config: Experiment, data: Dataset) -> Task:
    """The task that the data and `federation.loss` set; ConfigError if they do not fit the algorithm."""
    if data.kind == "numbers" and config.algorithm.at(1).compares_outputs:
        raise ConfigError(
            f"compares logits of classes, and the samples of {data.name!r} have numbers to predict; take "
            "another method",
            key="algorithm.name",
            value=config.algorithm_name,
        )
    task = Task(
        kind=data.kind,
        shape=data.output_shape,
        loss=own_function(config.federation.loss, "federation.loss"),
    )
    task.check(config.federation.loss or "")
    return task


def _evaluations(
    config: Experiment, data: Dataset, partition: Partition, holders: Partition
) -> dict[str, Any]:
    """A `FederationSpec`'s fields of the evaluations: they follow from the test set."""
    asked = config.evaluation
    return {
        "scoring": Scoring.of(data, partition, own_loss=config.federation.loss is not None),
        "breakdown": Breakdown.of(data, holders, asked.per_class, asked.per_client),
        "own_metrics": own_parts.metrics(config, data, partition),
    }


def client_accuracies(
    prepared: Prepared,
    scores: np.ndarray | None,
    personal: Mapping[int, PersonalResult] | None = None,
) -> pd.DataFrame | None:
    """Each client's samples, accuracy and, as far as that was evaluated, its own model's, if wanted.

    `scores`: of the test samples, `[n]`.
    """
    breakdown = prepared.federation.breakdown
    if scores is None or breakdown.holdings is None or not breakdown.per_client:
        return None
    columns = {"samples": prepared.holders.sizes, "accuracy": breakdown.clients(scores)}
    frame = pd.DataFrame(columns).rename_axis("client")
    if personal:
        own = {client: result._asdict() for client, result in personal.items()}
        named = {"before": "personal_before", "after": "personal_accuracy"}
        frame = frame.join(pd.DataFrame.from_dict(own, orient="index").rename(columns=named))
    return frame


def _private_rounds(
    config: Experiment, partition: Partition, model: nn.Module
) -> PrivateRounds | None:
    """Differential privacy of the rounds, None without; ConfigError if the model sends more than uploads."""
    if config.privacy is None:
        return None
    if (sends := config.algorithm.at(1).sends) != "all":
        raise ConfigError(
            key="privacy",
            value=config.privacy.model_dump(),
            allowed=f"null: clients of {config.algorithm_name} send {sends} of the model, and noise would "
            "change what they do not send",
        )
    if Layout(model).buffers:
        raise ConfigError(
            "has statistics of the clients' batches in buffers, which are averaged as they are",
            key="model.name",
            value=models.name_of(config.model),
            hint="under privacy normalise without them, as with model.norm=group",
            keys=("model.norm",),
        )
    full, late = full_steps(config.federation, partition), config.federation.straggler_prob
    steps = (1 - late) * full + late * (full + 1) / 2
    return config.privacy.rounds(config.seed, config.federation, float(steps.mean()))


def _tokens(data: Dataset) -> models.Tokens | None:
    if not data.has_tokens:
        return None
    return models.Tokens(data.vocabulary, data.sample_shape[0], each=data.kind == "tokens")


def _two_minibatches(data: Dataset) -> tuple[Samples, Samples]:
    """Training samples from all over the data, as the engine makes them."""
    device_data = DeviceData(data, "train", torch.device("cpu"))
    indices = torch.linspace(0, len(device_data) - 1, 2 * COMPARED_SAMPLES).long()
    first, second = (
        (device_data.preprocess(part, None, None), device_data.y[part])
        for part in indices.split(COMPARED_SAMPLES)
    )
    return first, second


def _single_samples(fed: Federation, data: Dataset, partition: Partition) -> set[Mode]:
    """In which modes the model meets a batch of one sample: the last of an epoch, or of a split."""
    sizes, modes = partition.sizes, set[Mode]()
    ends_with_one = sizes % fed.batch_size == 1
    if fed.local_steps is not None:  # the end of an epoch may never come
        ends_with_one &= sizes <= fed.local_steps * fed.batch_size
    if fed.batch_size == 1 or ends_with_one.any():
        modes.add("training")
    if any(n % EVALUATION_BATCH["cpu"] == 1 for n in (len(data.y_test), len(partition.validation))):
        modes.add("evaluation")
    return modes


def averaging(config: Experiment) -> Rule | None:
    """Which average of the global models is evaluated beside them."""
    asked = config.evaluation.average
    return None if asked is None else asked.rule(config.federation.rounds)
