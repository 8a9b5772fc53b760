"""The checkpoint that a run goes on from: one of its own config, or of the same one with fewer rounds.

A round knows nothing of how many come after it, but for the two things that `_check_first_rounds` names. So
a run of more rounds may begin where a shorter one has ended, and gives the bits that it would have given from
the start; it has its own identity, folder and MLflow run.
"""

import secrets
import time
from dataclasses import replace

from rayfl.config.schema import Experiment
from rayfl.config.sections import Federation
from rayfl.errors import ConfigError
from rayfl.prepared import Prepared, averaging
from rayfl.storage import checkpoint
from rayfl.storage.checkpoint import SavedCheckpoint, before_the_run
from rayfl.storage.checkpoint_writer import CheckpointWriter
from rayfl.storage.manifest import Manifest
from rayfl.storage.storage import below

ROUNDS = "federation.rounds"
CONTINUES = "rayfl.continues"
"""Tag of a run of more rounds: the run, or the checkpoint, that it goes on from."""


def find_saved(config: Experiment, resume: str) -> SavedCheckpoint:
    """Find the checkpoint to go on from; ConfigError if it is damaged, or does not lead to this config."""
    with before_the_run():
        saved = checkpoint.find(
            config.checkpoint.location,
            config.hash,
            resume,
            lambda manifest: _leads(manifest, config),
        )
        if _leads(saved.manifest, config):
            _check_first_rounds(saved, config)
        else:
            saved.check_config(config.hash, config.flat_identity())
        state = saved.check()
        if rule := averaging(config):
            rule.check(state.average, state.round)
    if config.checkpoint.every is None:
        raise ConfigError(
            "--resume: a run that goes on writes checkpoints again",
            key="checkpoint.every",
            value=None,
            allowed="auto or a number",
        )
    return saved


def is_of(saved: SavedCheckpoint, config: Experiment) -> bool:
    """Return whether the checkpoint is of this very config, and not of fewer rounds."""
    return saved.manifest.config_hash == config.hash


def checkpoints_of(
    prepared: Prepared, run_id: str | None, saved: SavedCheckpoint | None
) -> CheckpointWriter | None:
    """The writer of a run's checkpoints, None without any; a resumed run goes on in its own folder."""
    config = prepared.config
    if config.checkpoint.every is None:
        return None
    run = run_id or time.strftime("%Y%m%d-%H%M%S-") + secrets.token_hex(3)
    again = saved if saved and is_of(saved, config) else None
    location = str(again.storage) if again else below(config.checkpoint.location, config.hash, run)
    checkpoints = prepared.checkpoint_writer(location, run_id)
    if saved and not again:
        checkpoints = replace(checkpoints, origin=saved.path)
    with before_the_run():
        checkpoints.prepare()
        if again:
            again.make_newest()
    return checkpoints


def _leads(manifest: Manifest, config: Experiment) -> bool:
    """Return whether the checkpoint's config is this one with fewer rounds."""
    there, here = manifest.config, config.flat_identity()
    is_same = there.keys() == here.keys() and there | {ROUNDS: here[ROUNDS]} == here
    return is_same and there[ROUNDS] < here[ROUNDS]


def _check_first_rounds(saved: SavedCheckpoint, config: Experiment) -> None:
    """Raise ConfigError if the rounds that are done would have been others in a run of more rounds."""
    rounds, done = saved.manifest.config[ROUNDS], saved.round
    here = config.federation
    # Validated anew: a copy would have the learning rates of this one.
    there = Federation.model_validate(here.model_dump() | {"rounds": rounds})
    anew = "begin anew without --resume"
    if there.lrs[:done] != here.lrs[:done]:
        raise ConfigError(
            f"its learning rates depend on {ROUNDS}: the {done} rounds that are done had those of {rounds} "
            f"rounds, not of {here.rounds}",
            key="federation.lr_schedule",
            value=here.lr_schedule,
            hint=anew,
            keys=(ROUNDS,),
        )
    average = config.evaluation.average
    if average is not None:
        first, now = average.rule(rounds).first, average.rule(here.rounds).first
        if first != now and done >= min(first, now):
            raise ConfigError(
                f"is a share of {ROUNDS}: the first model of the average was that of round {first}, not "
                f"{now}",
                key="evaluation.average.swa",
                value=average.swa,
                hint=f"give evaluation.average.swa={first}, or {anew}",
                keys=(ROUNDS,),
            )
