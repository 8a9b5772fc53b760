"""Functions of the user's own that a config names, found and tried before an actor starts."""

import inspect
from typing import cast

from rayfl.config.own import named_function
from rayfl.config.schema import Experiment
from rayfl.config.sections import Federation
from rayfl.data.datasets import Dataset
from rayfl.data.partition import Partition
from rayfl.errors import ConfigError, RunError
from rayfl.federation.callbacks import Callback
from rayfl.federation.own_metrics import OwnMetrics
from rayfl.federation.sampling import OwnSampling, Sampling


def metrics(config: Experiment, data: Dataset, partition: Partition) -> OwnMetrics:
    """Return the functions of `evaluation.metrics` on these data; ConfigError if one cannot be computed."""
    paths = config.evaluation.metrics
    functions = {n: named_function(path, f"evaluation.metrics.{n}") for n, path in paths.items()}
    made = OwnMetrics.of(functions, data, partition)
    made.check(data, paths)
    return made


def callbacks(config: Experiment) -> tuple[tuple[str, Callback], ...]:
    """Return import path and function of each of `callbacks`. Raises ConfigError."""
    found = tuple((path, named_function(path, "callbacks")) for path in config.callbacks)
    for path, function in found:
        try:
            inspect.signature(function).bind(None)
        except TypeError as error:
            raise ConfigError(
                f"cannot be called with a round alone ({error})", key="callbacks", value=path
            ) from None
        except ValueError:  # a function without a signature, of C
            continue
    return found


def sampling(
    config: Experiment, federation: Federation, partition: Partition
) -> Sampling | OwnSampling:
    """Return the sampling of cohorts; ConfigError if the user's own draws none."""
    path = federation.sampling
    if ":" not in path:
        return cast(Sampling, path)
    own = OwnSampling(path, named_function(path, "federation.sampling"))
    try:
        own.check(federation.participation, partition.sizes, config.seed, federation.rounds)
    except RunError as error:
        raise ConfigError(*error.args) from error
    return own
