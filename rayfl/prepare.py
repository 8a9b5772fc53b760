"""Everything that is done and checked before an actor starts: data, partition, model, local settings."""

from collections.abc import Callable

import torch
from torch import nn

from rayfl import models, own_parts, warm_start
from rayfl.algorithms.scheduled import Scheduled
from rayfl.config.own import own_function
from rayfl.config.schema import Experiment
from rayfl.config.sections import Federation
from rayfl.data.datasets import Dataset, give_back_memory
from rayfl.data.federated import federate
from rayfl.data.partition import Partition
from rayfl.errors import ConfigError
from rayfl.federation.privacy import PrivateRounds
from rayfl.federation.specs import FederationSpec
from rayfl.prepared import Prepared, evaluation
from rayfl.storage.checkpoint import before_the_run
from rayfl.storage.storage import Storage
from rayfl.training import contract
from rayfl.training.batches import DeviceData
from rayfl.training.evaluation import EVALUATION_BATCH
from rayfl.training.flat import Layout
from rayfl.training.lanes import MOST_LANES
from rayfl.training.settings import LocalSettings, experiment_info
from rayfl.training.shortcuts import Mode, Samples, choose
from rayfl.training.task import Task
from rayfl.workload import (
    clients_per_unit,
    full_steps,
    in_one_place,
    samples_per_round,
    total_weight,
)

# Samples of each minibatch on which the ways to compute a model are compared: batch normalisation needs two,
# and with three hides little.
COMPARED_SAMPLES = 3


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
        evaluation=evaluation(config, data, partition, holders),
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
