"""START HERE: config -> data -> partition -> model -> actors -> rounds -> metrics.

`prepare` does and checks everything that can be done before an actor starts; `run` does the rest.
"""

import contextlib
import math
import os
import secrets
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from torch import nn

from rayfl import models
from rayfl.config.schema import Experiment
from rayfl.config.sections import Resources
from rayfl.data.datasets import Dataset
from rayfl.data.federated import federate
from rayfl.data.partition import Partition
from rayfl.errors import CheckpointError, ConfigError
from rayfl.federation.evaluation import Breakdown
from rayfl.federation.history import History
from rayfl.federation.server import Federation, Record
from rayfl.runtime import cluster
from rayfl.runtime.placement import Demand, Placement, place
from rayfl.storage import checkpoint
from rayfl.storage.checkpoint_writer import CheckpointWriter
from rayfl.storage.storage import Storage, below
from rayfl.training import contract
from rayfl.training.batches import DeviceData
from rayfl.training.engine import EVALUATION_BATCH, LocalSettings, experiment_info
from rayfl.training.flat import Layout, sha256
from rayfl.training.shortcuts import Mode, Samples, choose
from rayfl.training.travel import packed

if TYPE_CHECKING:
    from rayfl.tracking.mlflow import RunTracker
    from rayfl.tracking.store import TrackingStore

# What outweighs a quarter of a millisecond (a step's kernels), and a unit's messages and sums, which the
# server handles on the cores that train.
STEP_FLOP = 12.5e6
UNIT_FLOP = 2e9
# Of each minibatch on which the ways to compute a model are compared: batch normalisation needs two, and
# with three hides little.
COMPARED_SAMPLES = 3


@dataclass(frozen=True)
class Prepared:
    """An experiment whose input was found good."""

    config: Experiment
    data: Dataset
    partition: Partition
    model: nn.Module
    federation: Federation
    settings: LocalSettings

    @property
    def units_per_round(self) -> int:
        return -(-self.federation.cohort_size // self.federation.clients_per_unit)

    def job(self) -> cluster.Job:
        """What the server actor needs."""
        w, buffers = Layout(self.model).flatten(self.model)
        return cluster.Job(
            algorithm=self.config.algorithm,
            name=self.config.algorithm_name,
            model=packed(self.model),
            initial=(w.numpy(), buffers.numpy()),
            data=(self.data, self.partition),
            settings=self.settings,
            federation=self.federation,
        )


@dataclass(frozen=True)
class Result:
    """What a run leaves."""

    history: pd.DataFrame
    """One row a round; see `History.frame`."""
    summary: dict[str, float]
    clients: pd.DataFrame | None
    """Each client's `samples` and the `accuracy` of the final model on its own distribution (index
    `client`); None if `evaluation.per_client` is off, or if no round was left to go on with."""
    state_dict: dict[str, torch.Tensor]
    """Final parameters, for `load_state_dict` of the plain model."""
    model_sha256: str
    """Of the final w."""
    run_id: str | None
    """Of MLflow; None if tracking is off."""


@dataclass(frozen=True)
class Start:
    """What is known before the actors start."""

    prepared: Prepared
    placement: Placement
    run_id: str | None
    ui_command: str | None
    resumed_round: int
    """Round of the checkpoint that it goes on from, or 0."""


def prepare(
    config: Experiment, data: Dataset | None = None, partition: Partition | None = None
) -> Prepared:
    """Load the data, split them among the clients and build the model; ConfigError if that cannot be.

    `data`, `partition`: those of the config, where they have been made before.
    """
    fed = config.federation
    if config.checkpoint.every is not None:
        _check_storage(config)
    if data is None or partition is None:
        data, partition = federate(
            config.data, config.partition, config.heterogeneity, fed.clients, config.seed
        )
    trial = torch.from_numpy(data.trial())
    model = models.build(config.model, data.sample_shape, data.num_classes, config.seed, trial)
    shortcuts = choose(
        model,
        models.name_of(config.model),
        data.num_classes,
        _two_minibatches(data),
        single_samples=_single_samples(config, data, partition),
        stack=fed.stack,
    )
    federation = Federation(
        seed=config.seed,
        clients=fed.clients,
        participation=fed.participation,
        sampling=fed.sampling,
        sizes=partition.sizes,
        client_dropout=fed.client_dropout,
        rounds=fed.rounds,
        lrs=fed.lrs,
        clients_per_unit=fed.clients_per_unit
        or clients_per_unit(
            Layout(model).size,
            shortcuts.dense,
            fed.cohort_size,
            fed.batch_size,
            _samples(config, data),
            fed.stack,
        ),
        eval_every=fed.eval_every,
        test_samples=len(data.y_test),
        breakdown=Breakdown.of(
            data, partition, config.evaluation.per_class, config.evaluation.per_client
        ),
    )
    settings = LocalSettings(
        seed=config.seed,
        batch_size=fed.batch_size,
        local_epochs=fed.local_epochs,
        local_steps=fed.local_steps,
        weight_decay=fed.weight_decay,
        clip_norm=fed.clip_norm,
        precision=fed.precision,
        augment=config.data.augment,
        straggler_prob=fed.straggler_prob,
        stack=fed.stack,
        cuda_graphs=config.resources.cuda_graphs,
        shortcuts=shortcuts,
    )
    if ":" in config.algorithm_name:  # not of the registry, whose methods the tests check
        contract.check(
            config.algorithm,
            config.algorithm_name,
            experiment_info(Layout(model), partition, settings),
            federation.cohort_size / federation.clients,
            federation.lrs,
        )
    return Prepared(config, data, partition, model, federation, settings)


def clients_per_unit(
    parameters: int,
    dense: bool,
    cohort_size: int,
    batch_size: int,
    samples: float,
    stack: int | None = None,
) -> int:
    """Clients of a work unit where the config leaves it open; never a matter of how many actors there are.

    One, in cohorts of up to 64, so that any number of actors shares a round evenly; or a whole `stack`,
    if the config gives one. Chains of linear layers (`dense`) train as a stack: so many clients that each
    step's arithmetic outweighs the launch of its kernels, and the unit's (`samples` of a client a round)
    outweighs the message that brings it.
    """
    if not dense:
        return max(-(-cohort_size // 64), min(stack or 1, cohort_size))
    flop_per_sample = 6 * parameters
    smallest = max(
        STEP_FLOP / (flop_per_sample * batch_size), UNIT_FLOP / (flop_per_sample * samples)
    )
    # A power of two, so that two, four or eight actors get the same share.
    units = 2 ** int(math.log2(max(cohort_size / max(smallest, 1), 1)))
    return -(-cohort_size // units)


def run(
    config: Experiment,
    on_start: Callable[[Start], None] = lambda start: None,
    on_record: Callable[[Record], None] = lambda record: None,
    resume: str | None = None,
) -> Result:
    """Run the experiment: on the cluster that `config.ray.address` names, or on this machine.

    `on_start` is called once it is known where the actors go, before they do; `on_record` for every
    record. `resume` names the checkpoint to go on from (see `checkpoint.find`): the result is that of a
    run which never stopped. Raises ConfigError before any actor starts, RunError after. Interrupted or
    failed, it leaves no actor behind, and the MLflow run has every finished round.
    """
    saved = None if resume is None else _saved(config, resume)
    prepared, history = prepare(config), History()
    with ThreadPoolExecutor(1) as aside, contextlib.ExitStack() as connection:
        opening = aside.submit(_open_store, config)  # takes seconds, as the connection does
        connection.enter_context(cluster.connected(**config.ray.model_dump()))
        placement = place(wanted(config.resources), prepared.units_per_round)
        dataset, data = cluster.share(prepared.data)
        prepared = replace(prepared, data=data)  # this process needs no copy of its own
        store = opening.result()
        with _tracked(store, prepared, history, saved) as tracker:
            run_id = tracker.run_id if tracker else None
            checkpoints = _checkpoints(config, run_id, saved)
            ui_command = store.ui_command if store else None
            resumed_round = saved.round if saved else 0
            on_start(Start(prepared, placement, run_id, ui_command, resumed_round))
            time_limit = config.resources.time_limit_s
            with cluster.launched(
                prepared.job(), placement, checkpoints, time_limit, dataset
            ) as server:
                if tracker:
                    tracker.describe_actors(server.describe())
                for i, (round, metrics) in enumerate(server.run()):
                    # A server that went on from a checkpoint sends some rounds again.
                    if new := history.add(round, metrics):
                        if tracker:
                            tracker.log(round, new)
                        on_record(Record(round, new))
                    # Not before: it takes a second, in which the actors start.
                    if tracker and i == 0:
                        tracker.describe_data(prepared.data, prepared.partition)
                w, buffers = map(torch.tensor, server.parameters())
                clients = client_accuracies(prepared, server.correct())
            digest = sha256(w)
            if tracker:
                if clients is not None:
                    tracker.describe_clients(clients)
                tracker.tag("rayfl.model_sha256", digest)
    Layout(prepared.model).load(prepared.model, w, buffers)
    return Result(
        history.frame(),
        history.summary(config.tracking.targets),
        clients,
        models.plain_state_dict(prepared.model),
        digest,
        run_id,
    )


def client_accuracies(prepared: Prepared, correct: np.ndarray | None) -> pd.DataFrame | None:
    """Each client's samples and accuracy, from what the server predicts correctly, if that is wanted."""
    breakdown = prepared.federation.breakdown
    if correct is None or breakdown.holdings is None:
        return None
    columns = {"samples": prepared.partition.sizes, "accuracy": breakdown.clients(correct)}
    return pd.DataFrame(columns).rename_axis("client")


def _samples(config: Experiment, data: Dataset) -> float:
    """Samples that a client's gradients see in a round, on average."""
    fed = config.federation
    if fed.local_steps is not None:
        return fed.local_steps * fed.batch_size
    return (fed.local_epochs or 1) * len(data.y_train) / fed.clients


def _two_minibatches(data: Dataset) -> tuple[Samples, Samples]:
    """Training samples from all over the data, as the engine makes them."""
    device_data = DeviceData(data, "train", torch.device("cpu"))
    indices = torch.linspace(0, len(device_data) - 1, 2 * COMPARED_SAMPLES).long()
    first, second = (
        (device_data.preprocess(part, None, None), device_data.y[part])
        for part in indices.split(COMPARED_SAMPLES)
    )
    return first, second


def _single_samples(config: Experiment, data: Dataset, partition: Partition) -> set[Mode]:
    """In which modes the model meets a batch of one sample: the last of an epoch, or of the test set."""
    fed = config.federation
    sizes = [len(partition.client(i)) for i in range(fed.clients)]
    reaches_last = (fed.local_steps is None or n <= fed.local_steps * fed.batch_size for n in sizes)
    in_training = fed.batch_size == 1 or any(
        n % fed.batch_size == 1 and reached for n, reached in zip(sizes, reaches_last, strict=True)
    )
    in_evaluation = len(data.y_test) % EVALUATION_BATCH["cpu"] == 1
    modes: tuple[tuple[Mode, bool], ...] = (
        ("training", in_training),
        ("evaluation", in_evaluation),
    )
    return {mode for mode, meets in modes if meets}


def wanted(resources: Resources) -> Demand:
    """What the client actors ask for, in the words of the runtime."""
    asked = resources.model_dump(include={field.name for field in fields(Demand)}).items()
    given: dict[str, Any] = {k: None if v == "auto" else v for k, v in asked}
    return Demand(**given)


def _open_store(config: Experiment) -> "TrackingStore | None":
    if not config.tracking.enabled:
        return None
    from rayfl.tracking.store import TrackingStore  # imports mlflow, which takes seconds

    return TrackingStore(config.tracking.uri, config.tracking.experiment)


def _saved(config: Experiment, resume: str) -> checkpoint.SavedCheckpoint:
    try:
        saved = checkpoint.find(storage(config), config.hash, resume)
        saved.check_config(config.hash, config.flat_identity())
        saved.check()
    except CheckpointError as error:
        raise ConfigError(str(error)) from error
    return saved


def _checkpoints(
    config: Experiment, run_id: str | None, saved: checkpoint.SavedCheckpoint | None
) -> CheckpointWriter | None:
    every = config.checkpoint.every
    if every is None:
        return None
    run = run_id or time.strftime("%Y%m%d-%H%M%S-") + secrets.token_hex(3)
    checkpoints = CheckpointWriter(
        location=str(saved.storage) if saved else below(storage(config), config.hash, run),
        config_hash=config.hash,
        config=config.flat_identity(),
        run_id=run_id,
        every=None if every == "auto" else every,
        keep_last=config.checkpoint.keep_last,
    )
    try:
        checkpoints.prepare()
        if saved:
            saved.make_newest()
    except CheckpointError as error:
        raise ConfigError(str(error)) from error
    return checkpoints


def _check_storage(config: Experiment) -> None:
    try:
        Storage(storage(config))
    except CheckpointError as error:
        raise ConfigError(str(error)) from error


def storage(config: Experiment) -> str:
    """Where checkpoints are: a URI, or an absolute path, for the server actor may run elsewhere."""
    directory = config.checkpoint.dir
    return directory if "://" in directory else str(Path(os.path.expanduser(directory)).absolute())


@contextlib.contextmanager
def _tracked(
    store: "TrackingStore | None",
    prepared: Prepared,
    history: History,
    saved: checkpoint.SavedCheckpoint | None,
) -> Iterator["RunTracker | None"]:
    """The MLflow run, ended as FINISHED, FAILED or KILLED with the summary of what was done."""
    if store is None:
        yield None
        return
    from rayfl.tracking.mlflow import RunTracker

    run_id = saved.run_id if saved else None
    tracker = RunTracker(store, prepared.config, prepared.data.name, run_id)
    status = "FAILED"
    try:
        if run_id is None:
            tracker.describe_config()
        yield tracker
        status = "FINISHED"
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    finally:
        tracker.finish(status, history.summary(prepared.config.tracking.targets))
