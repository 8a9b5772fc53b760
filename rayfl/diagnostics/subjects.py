"""Subjects of a measurement: the checkpoints of a run, named by its id, as the latest, or by a path."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rayfl.analysis.store import open_store, search_store
from rayfl.config import layers
from rayfl.config.schema import Experiment, load_config
from rayfl.config.values import parse_yaml
from rayfl.diagnostics.records import Records
from rayfl.errors import ConfigError, first_line
from rayfl.provenance import trial_folder
from rayfl.storage.checkpoint import SavedCheckpoint, before_the_run, open_named, saved_in
from rayfl.storage.storage import Storage, below, split

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow.tracking import MlflowClient

LATEST, LAST = "latest", "last"
_BEGINNING = re.compile(r"[0-9a-f]{1,31}")  # of a run's id, which has 32


@dataclass(frozen=True)
class Subject:
    """A run: its experiment, the checkpoints that were asked for, and where it is recorded."""

    config: Experiment
    checkpoints: tuple[SavedCheckpoint, ...]
    records: Records | None
    """None: the run is in no MLflow store, and nothing is kept."""

    @property
    def trained(self) -> Experiment:
        """The experiment without the weights that it began with, for the checkpoint has others."""
        content = self.config.model_dump(mode="json")
        content["model"]["init"] = None
        return load_config(content)


def find(
    what: str,
    rounds: Sequence[str],
    overrides: Sequence[str] = (),
    uri: str | None = None,
    average: int = 1,
) -> Subject:
    """Find a run by its MLflow id, as `latest`, or by the path of its folder or of one checkpoint.

    `rounds`: numbers, or `last`. `average`: so many of the last checkpoints instead. `overrides`: of where
    things are or run, such as data.root, for nothing else may differ. Raises
    ConfigError if there is no such run or checkpoint.
    """
    path, _ = split(what)
    if "://" in what or "/" in what or path.endswith(".json"):
        return _of_path(what, rounds, overrides, uri, average)
    client, address = open_store(uri)
    run = _latest(client, address) if what == LATEST else _named(client, address, what)
    config = _config_of(client, run, overrides)
    where = config.checkpoint.location
    tags = run.data.tags
    sweep = tags.get("rayfl.sweep")
    folder = trial_folder(sweep, tags) if sweep else run.info.run_id
    place = below(where, config.hash, folder)
    with before_the_run():
        every = saved_in(Storage(place))
    if not every and sweep:
        raise ConfigError(
            f"run {run.info.run_id} is a trial of sweep '{sweep}', and no checkpoint of it is in {place}; "
            "a sweep keeps them from when its file says `keep_checkpoints: true`: run it with that, under a "
            "new name"
        )
    saved = _chosen(every, rounds, f"run {run.info.run_id} in {place}", average)
    if (
        saved[-1].manifest.config_hash != config.hash
    ):  # population-based training has changed it meanwhile
        config = load_config(layers.nested(saved[-1].manifest.config), overrides)
    return Subject(config, saved, Records(client, run.info.run_id, artifacts_of(run)))


def _of_path(
    what: str, rounds: Sequence[str], overrides: Sequence[str], uri: str | None, average: int
) -> Subject:
    with before_the_run():
        one = open_named(what)
        every = [one] if one else saved_in(Storage(what))
        saved = _chosen(every, [LAST] if one else rounds, what, average)
    run_id, records = saved[-1].run_id, None
    config = None
    if run_id is not None:
        try:
            client, address = open_store(uri)
            run = _named(client, address, run_id)
            config, records = (
                _config_of(client, run, overrides),
                Records(client, run_id, artifacts_of(run)),
            )
        except ConfigError:
            if uri is not None:
                raise
    if config is None:
        given = layers.nested(saved[-1].manifest.config)
        config = load_config(given, [*overrides, "tracking.enabled=false"])
    with before_the_run():
        saved[-1].check_config(config.hash, config.flat_identity())
    return Subject(config, saved, records)


def _chosen(
    saved: Sequence[SavedCheckpoint], rounds: Sequence[str], where: str, average: int
) -> tuple[SavedCheckpoint, ...]:
    """The checkpoints of these rounds, ascending."""
    if not saved:
        raise ConfigError(
            f"{where}: no checkpoint is there; run with checkpoint.every set, where this command finds "
            "checkpoint.dir"
        )
    if average > 1:
        if [*rounds] != [LAST]:
            raise ConfigError("--average: is over the last checkpoints; leave --rounds out")
        if len(saved) < average:
            raise ConfigError(
                f"--average = last{average}: {where} has {len(saved)} checkpoints; more are kept by "
                f"checkpoint.every=1 checkpoint.keep_last={average}"
            )
        return tuple(saved[-average:])
    known = {str(s.round): s for s in saved}
    known[LAST] = saved[-1]
    if missing := [r for r in rounds if r not in known]:
        raise ConfigError(
            f"--rounds = {','.join(missing)}: {where} has the checkpoints of rounds "
            f"{', '.join(str(s.round) for s in saved)}; more are kept by checkpoint.every=10 "
            "checkpoint.keep_last=1000"
        )
    chosen = {known[r].round: known[r] for r in rounds}
    return tuple(chosen[round] for round in sorted(chosen))


def _latest(client: "MlflowClient", address: str) -> "Run":
    kind = "tags.`rayfl.kind` = 'experiment' and attributes.status = 'FINISHED'"
    found = next(search_store(client, kind, "attributes.start_time DESC"), None)
    if found is None:
        raise ConfigError(f"'{LATEST}': no finished run in {address}; `rayfl run` makes one")
    return found


def _named(client: "MlflowClient", address: str, run_id: str) -> "Run":
    """The run of this id, or the only one whose id begins so, as tables show it."""
    from mlflow.exceptions import MlflowException

    if _BEGINNING.fullmatch(run_id):
        begins = f"tags.`rayfl.kind` = 'experiment' and attributes.run_id LIKE '{run_id}%'"
        found = list(search_store(client, begins, "attributes.start_time DESC"))
        if len(found) == 1:
            return found[0]
        if found:
            ids = ", ".join(run.info.run_id for run in found)
            raise ConfigError(f"'{run_id}': several runs in {address} begin so: {ids}")
    try:
        return client.get_run(run_id)
    except MlflowException as error:
        raise ConfigError(
            f"'{run_id}': is no run in {address} ({first_line(error)}); give a run's id, '{LATEST}', or the "
            "path of a checkpoint or of a folder with checkpoints"
        ) from error


def _config_of(client: "MlflowClient", run: "Run", overrides: Sequence[str]) -> Experiment:
    """The experiment of a run, as it was recorded; ConfigError if the overrides make it another one."""
    from mlflow.artifacts import load_text
    from mlflow.exceptions import MlflowException

    try:
        text = load_text(f"{artifacts_of(run)}/config.yaml")
    except (MlflowException, OSError) as error:
        raise ConfigError(
            f"run {run.info.run_id}: its config.yaml cannot be read from MLflow ({first_line(error)}); give "
            "the path of its checkpoints instead"
        ) from error
    config = load_config(parse_yaml(text), overrides)
    recorded = run.data.tags.get("rayfl.config_hash")
    if recorded != config.hash:
        raise ConfigError(
            f"run {run.info.run_id}: with these overrides it is another experiment ({config.hash}, not "
            f"{recorded}); give only those of where things are or run, such as data.root or resources"
        )
    return config


def artifacts_of(run: "Run") -> str:
    """URI of the run's artifacts, which every run has that a store gives."""
    assert run.info.artifact_uri is not None
    return run.info.artifact_uri
