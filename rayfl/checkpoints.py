"""Where the checkpoints of an experiment lie, and what is wrong with them before a run."""

import contextlib
from collections.abc import Iterator

from rayfl.config.schema import Experiment
from rayfl.errors import CheckpointError, ConfigError


@contextlib.contextmanager
def before_the_run() -> Iterator[None]:
    """Raise what is wrong with checkpoints as bad input: no actor has started yet."""
    try:
        yield
    except CheckpointError as error:
        raise ConfigError(str(error)) from error


def storage(config: Experiment) -> str:
    """Location of all checkpoints."""
    return config.checkpoint.location
