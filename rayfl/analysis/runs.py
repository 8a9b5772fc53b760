"""The runs of an MLflow store as a table with one row per run.

    runs = load(where="algorithm.name=fedwmsam and partition.alpha<=0.3", metrics=["last10"])

The columns: the resolved config by dotted keys (`algorithm.rho`, `seed`, lists as tuples; NaN where a
run does not have the key), the latest value of every metric by its name in MLflow (`accuracy_final`,
`test/loss`), and:

    run_id, run_name    of MLflow
    experiment          MLflow's, to which the run belongs
    sweep               to which the run belongs
    state, reason       one of `states.STATES`; why the run failed, was stopped or does not count
    config_hash         identity of the experiment, but for the content of its code and data:
    code_digest         of the user's source, and
    data_digest         of the data; null where an earlier version of rayfl wrote the run
    started             milliseconds since 1970
    answered            the same of when a sweep last answered with the run, or of its start
"""

import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd

from rayfl.analysis import filters
from rayfl.analysis.metrics import Metric, metric, numbers
from rayfl.analysis.states import ENDED, after_rounds
from rayfl.analysis.store import fetch_runs, open_store, read_histories
from rayfl.config.identity import is_identity
from rayfl.config.messages import RENAMED
from rayfl.errors import ConfigError
from rayfl.provenance import ANSWERED_TAG
from rayfl.text import shown

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow.tracking import MlflowClient

_STATE_BY_STATUS = {"FINISHED": "finished", "FAILED": "failed", "KILLED": "interrupted"}
_SUPERSEDED = "a later run of this config had other code or data"
_KEY = re.compile(r"seed|[a-z_]+(\.[A-Za-z_]\w*)+")  # but not the metric rounds_to_0.5
_LISTED = 12  # values
VERSION = ("code_digest", "data_digest")
"""Columns that tell the versions of one experiment apart."""


def load(
    experiment: str | None = None,
    uri: str | None = None,
    where: str | None = None,
    metrics: Sequence[str] = (),
) -> pd.DataFrame:
    """Load the runs of an experiment (default: of all experiments of the store) that a filter selects.

    Runs of the same config, code and data count once: the latest finished one, else the latest. Where the
    code or the data of a config have changed, the newest version counts and the others are superseded.
    `metrics` are names that `rayfl.analysis.metrics` knows; those that need a run's history get it here.
    Raises ConfigError if the store, the experiment or a key is not there, if an earlier version wrote runs
    of it, or if nothing is selected.
    """
    conditions = () if where is None else filters.parse(where)
    wanted = [metric(name) for name in metrics]
    client, address = open_store(uri)
    runs = _frame(fetch_runs(client, address, experiment))
    place = f"experiment '{experiment}' of {address}" if experiment else address
    if runs.empty:
        names = ", ".join(sorted(e.name for e in client.search_experiments()))
        raise ConfigError(
            f"no rayfl run in {place} (its experiments: {names}); `rayfl run` makes one"
        )
    if old := next((key for key in RENAMED if key in runs), None):
        raise ConfigError(
            f"{place} has runs of an earlier version of rayfl ({old} is now {RENAMED[old][0]}); use a new "
            "MLflow store, or ask for another of its experiments with --experiment"
        )
    selected = filters.select(runs, conditions)
    if selected.empty:
        raise ConfigError(
            f"filter {shown(where or '')}: selects none of the {len(runs)} runs in {place}; "
            + "; ".join(_values(runs, key) for key in dict.fromkeys(c.key for c in conditions))
        )
    selected = _once_each(selected)
    return _with_columns(selected, wanted, client)


def histories(runs: pd.DataFrame, metrics: Sequence[str], uri: str | None = None) -> pd.DataFrame:
    """Read per-round metrics of these runs, as `store.read_histories` does."""
    client, _ = open_store(uri)
    return read_histories(client, list(runs["run_id"]), metrics)


def axes(runs: pd.DataFrame) -> list[str]:
    """List the config keys that vary between the runs, except the seed; a missing key is no value."""
    keys = [key for key in runs.columns if is_config_key(key) and key != "seed"]
    return [key for key in keys if len(values(runs, key)) > 1]


def is_config_key(column: str) -> bool:
    """Return True for a column that is a key of the config and determines the result."""
    return _KEY.fullmatch(column) is not None and is_identity(column)


def values(runs: pd.DataFrame, key: str) -> list[Any]:
    """List the distinct values of a key, ascending: null, numbers, text."""
    return sorted({canonical(v) for v in runs[key] if v is None or v == v}, key=order)


def canonical(value: Any) -> Any:
    """Make a value comparable: 1 equals 1.0, but true does not equal 1."""
    return str(value).lower() if isinstance(value, bool) else value


def order(value: Any) -> tuple[int, Any]:
    """Return a sort key for values of mixed types."""
    if value is None:
        return (0, 0)
    if isinstance(value, int | float):
        return (1, value)
    return (2, str(value))


def _frame(runs: Iterable[tuple[str, "Run"]]) -> pd.DataFrame:
    rows = []
    for experiment, run in runs:
        tags, info = run.data.tags, run.info
        rows.append(
            {key: filters.stored_value(text) for key, text in sorted(run.data.params.items())}
            | run.data.metrics
            | {
                "run_id": info.run_id,
                "run_name": info.run_name,
                "experiment": experiment,
                "sweep": tags.get("rayfl.sweep"),
                "state": _state(run),
                "reason": tags.get("rayfl.reason") or None,
                "config_hash": tags.get("rayfl.config_hash"),
                "code_digest": tags.get("rayfl.code_digest"),
                "data_digest": tags.get("rayfl.data_digest"),
                "started": info.start_time,
                "answered": max(info.start_time, int(tags.get(ANSWERED_TAG, 0))),
            }
        )
    return pd.DataFrame(rows, dtype=object)


def _values(runs: pd.DataFrame, key: str) -> str:
    """List a key's values, for the message that a filter selects nothing."""
    found = values(runs, key)
    listed = ", ".join(map(shown, found[:_LISTED])) + ", ..." * (len(found) > _LISTED)
    return f"{key} is {listed or 'null'}"


def _state(run: "Run") -> str:
    """Combine MLflow's status, the tag, which is finer but not reset by a resumption, and the rounds."""
    status, tag = run.info.status, run.data.tags.get("rayfl.state")
    if status in ("RUNNING", "SCHEDULED"):
        return "running"
    state = tag if tag in ENDED else _STATE_BY_STATUS.get(status, "failed")
    last = run.data.params.get("federation.rounds")
    return after_rounds(state, run.data.metrics.get("rounds", 0), float(last) if last else None)


def _once_each(runs: pd.DataFrame) -> pd.DataFrame:
    """Keep one run of each config, code and data, in the order of their start; mark the older versions."""
    identity = runs["config_hash"].fillna(runs["run_id"])
    version = [
        "/".join(row) if all(isinstance(v, str) and v for v in row) else None
        for row in runs[[*VERSION]].to_numpy()
    ]
    finished = runs["state"] == "finished"
    ranked = runs.assign(_identity=identity, _version=version, _finished=finished)
    # The run that was answered with last says what the experiment is now, even if it failed.
    ranked = ranked.sort_values(["answered", "run_id"])
    # A run without a version, such as one whose data could not be read, is no new version.
    ranked["_version"] = ranked.groupby("_identity")["_version"].ffill().fillna("")
    newest = ranked.groupby("_identity")["_version"].transform("last")
    ranked.loc[ranked["_version"] != newest, ["state", "reason"]] = ["superseded", _SUPERSEDED]
    ranked = ranked.sort_values(["_finished", "started", "run_id"])
    once = ranked.drop_duplicates(["_identity", "_version"], keep="last")
    once = once.drop(columns=["_identity", "_version", "_finished"])
    return once.sort_values(["started", "run_id"], ignore_index=True)


def _with_columns(
    runs: pd.DataFrame, metrics: Iterable[Metric], client: "MlflowClient"
) -> pd.DataFrame:
    """Add a column of floats for each metric; NaN: the run has no value."""
    columns = {}
    for wanted in metrics:
        values = wanted.of_summaries(runs)
        if values is None:
            # The summary says which runs reached the target; the cost of it is in their rounds.
            reached = runs.loc[numbers(runs, "accuracy_best") >= wanted.target]
            rounds = read_histories(client, list(reached["run_id"]), wanted.histories)
            found = {str(i): wanted.of_rounds(one) for i, one in rounds.groupby("run_id")}
            values = pd.Series([found.get(i) for i in runs["run_id"]], runs.index)
        columns[wanted.name] = values.astype(float)
    # The copy consolidates the blocks of the table, one per column of MLflow.
    return runs.drop(columns=list(columns), errors="ignore").copy().assign(**columns)
