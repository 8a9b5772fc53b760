"""START HERE: config -> data -> partition -> model -> server and clients -> rounds -> metrics.

`prepare` does and checks everything that can be done before an actor starts; `run` does the rest.
"""

import contextlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

from rayfl.config.schema import Experiment
from rayfl.federation.history import History
from rayfl.federation.metrics import Metrics
from rayfl.federation.own_metrics import warn_of_missing
from rayfl.launch import in_this_process, on_cluster
from rayfl.prepare import prepare
from rayfl.prepared import client_accuracies
from rayfl.result import Result, Start
from rayfl.resume import CONTINUES, checkpoints_of, find_saved, is_of
from rayfl.tracking.run import check_store, open_store, tracked
from rayfl.training.flat import sha256
from rayfl.weights import Weights


def run(
    config: Experiment,
    on_start: Callable[[Start], None] = lambda start: None,
    on_metrics: Callable[[Metrics], None] = lambda metrics: None,
    resume: str | None = None,
    local: bool = False,
    on_actors: Callable[[list[dict[str, Any]]], None] = lambda actors: None,
    on_phase: Callable[[str], None] = lambda phase: None,
) -> Result:
    """Run the experiment: on the cluster that `config.ray.address` names, or on this machine.

    `on_start` is called once it is known where the actors go, before they do; `on_metrics` for every round
    and evaluation; `on_actors` with what each client actor is, once all are ready; `on_phase` with what is
    done before that. `resume` names the checkpoint to go on from (see `checkpoint.find`), also one of fewer
    rounds: the result is that of a run which never stopped.
    `local`: train in this process, without Ray, one work unit after the other (for a debugger); the bits are
    the same. Raises ConfigError before any actor starts, RunError after.
    Interrupted or failed, it leaves no actor behind, and the MLflow run has every finished round. If that
    run is deleted meanwhile, RunError is raised after the next checkpoint.
    """
    check_store(config)
    saved = None if resume is None else find_saved(config, resume)
    prepared, history = prepare(config, on_phase=on_phase), History()
    if saved is not None:
        prepared.check_provenance(saved)
    with ThreadPoolExecutor(1) as aside, contextlib.ExitStack() as stack:
        if opened := ["starting Ray"] * (not local) + ["opening MLflow"] * config.tracking.enabled:
            on_phase(" and ".join(opened))
        opening = aside.submit(open_store, config)  # takes seconds, as Ray's start does
        place = stack.enter_context((in_this_process if local else on_cluster)(prepared))
        prepared = place.prepared
        store = opening.result()
        saved_run, tags = None, prepared.provenance.tags
        if saved and is_of(saved, config):
            saved_run = saved.run_id
        elif saved:
            tags |= {CONTINUES: saved.run_id or saved.path}
        tracker = stack.enter_context(tracked(store, config, prepared.data.name, tags, saved_run))
        run_id = tracker.run_id if tracker else None
        ui_command = store.ui_command if store else None
        page = store.page(run_id) if store and run_id else None
        resumed = saved.round if saved else 0
        checkpoints = checkpoints_of(prepared, run_id, saved)
        on_start(Start(prepared, place.placement, run_id, ui_command, page, resumed, checkpoints))
        noticed = 0  # round at which it was found that the MLflow run is deleted
        with place.session(checkpoints) as server:
            actors = server.describe()
            on_actors(actors)
            if tracker:
                tracker.describe_actors(actors)
            for i, metrics in enumerate(server.run()):
                # A server that went on from a checkpoint sends some rounds again.
                if new := history.add(*metrics):
                    if tracker:
                        tracker.log(metrics.round, new)
                    on_metrics(metrics._replace(values=new))
                    if not local:
                        warn_of_missing(config.evaluation.metrics, new)
                # Not before: it takes a second, in which the actors start.
                if tracker and i == 0:
                    tracker.describe_data(prepared.data, prepared.partition)
                if tracker and tracker.lost:  # the training since the last checkpoint must not be
                    noticed = noticed or metrics.round
                    if checkpoints is None or checkpoints.reached(noticed):
                        raise tracker.lost
            final = server.final()
            clients = client_accuracies(prepared, final.scores, final.personal)
        digest = sha256(torch.tensor(final.w))
        round = max(history.rows)
        weights = Weights.of(config, prepared.model, (final.w, final.buffers), round)
        if tracker:
            if clients is not None:
                tracker.describe_clients(clients)
            tracker.tag("rayfl.model_sha256", digest)
            if config.tracking.log_model is not False:
                tracker.attach_model(weights.safetensors())
    return Result(
        history.frame(),
        history.summary(config.tracking.targets),
        clients,
        weights.tensors,
        digest,
        run_id,
        final.average
        and Weights.of(config, prepared.model, final.average, round, average=True).tensors,
    )
