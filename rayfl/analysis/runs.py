"""What MLflow knows of the runs of a store, as a table: one row a run.

    runs = load(where="algorithm.name=fedwmsam and partition.alpha<=0.3", metrics=["last10"])

The columns: the resolved config by dotted keys (`algorithm.rho`, `seed`, lists as tuples; NaN where a
run does not have the key), the latest value of every metric by its name in MLflow (`accuracy_final`,
`test/loss`), and what `ABOUT` names.
"""

import re
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pandas as pd

from rayfl.analysis import filters
from rayfl.analysis.metrics import Metric, metric, numbers
from rayfl.config.identity import is_identity
from rayfl.errors import ConfigError, first_line
from rayfl.text import nearest, shown
from rayfl.tracking.defaults import database_file, default_uri

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow.tracking import MlflowClient

ABOUT = {
    "run_id": "of MLflow",
    "run_name": "of MLflow",
    "experiment": "of MLflow, to which the run belongs",
    "sweep": "to which the run belongs",
    "state": "one of STATES",
    "reason": "why it failed or was stopped",
    "config_hash": "identity of the experiment",
    "started": "milliseconds since 1970",
}
ENDED = ("finished", "stopped_early", "failed", "infeasible")
STATES = (*ENDED, "interrupted", "running")

_STATE_BY_STATUS = {"FINISHED": "finished", "FAILED": "failed", "KILLED": "interrupted"}
_KEY = re.compile(r"seed|[a-z_]+(\.[A-Za-z_]\w*)+")  # but not the metric rounds_to_0.5
_RUNS_PER_PAGE = 1000
_READERS = 4  # threads
_LISTED = 12  # values


def load(
    experiment: str | None = None,
    uri: str | None = None,
    where: str | None = None,
    metrics: Sequence[str] = (),
) -> pd.DataFrame:
    """The runs of an experiment (default: of all experiments of the store) that a filter selects.

    Runs of the same config count once: the latest finished one, else the latest. `metrics` are names
    that `rayfl.analysis.metrics` knows; those that need a run's history get it here. Raises ConfigError
    if the store, the experiment or a key is not there, or if nothing is selected.
    """
    conditions = () if where is None else filters.parse(where)
    wanted = [metric(name) for name in metrics]
    client, address = open_store(uri)
    runs = _frame(_fetch(client, address, experiment))
    place = f"experiment '{experiment}' of {address}" if experiment else address
    if runs.empty:
        raise ConfigError(f"no rayfl run in {place}{_experiments(client)}; `rayfl run` makes one")
    selected = filters.select(runs, conditions)
    if selected.empty:
        raise ConfigError(
            f"filter {shown(where or '')}: selects none of the {len(runs)} runs in {place}; "
            + "; ".join(_values(runs, key) for key in dict.fromkeys(c.key for c in conditions))
        )
    selected = _once_each(selected)
    return _with_columns(selected, wanted, client)


def histories(runs: pd.DataFrame, metrics: Sequence[str], uri: str | None = None) -> pd.DataFrame:
    """Per-round metrics of these runs: `run_id`, `round` and one column a metric (NaN: not measured)."""
    client, _ = open_store(uri)
    return _histories(client, list(runs["run_id"]), metrics)


def axes(runs: pd.DataFrame) -> list[str]:
    """The config keys that vary between the runs, but for the seed; a key that is missing is no value."""
    keys = [key for key in runs.columns if is_config_key(key) and key != "seed"]
    return [key for key in keys if len(values(runs, key)) > 1]


def is_config_key(column: str) -> bool:
    """Whether the column is a key of the config that the result depends on."""
    return _KEY.fullmatch(column) is not None and is_identity(column)


def values(runs: pd.DataFrame, key: str) -> list[Any]:
    """The distinct values of a key, ascending: null, numbers, text."""
    return sorted({canonical(v) for v in runs[key] if v is None or v == v}, key=order)


def canonical(value: Any) -> Any:
    """A value that equals only its like: 1 is 1.0, but true is not 1."""
    return str(value).lower() if isinstance(value, bool) else value


def order(value: Any) -> tuple[int, Any]:
    """Sort key over values of mixed types."""
    if value is None:
        return (0, 0)
    if isinstance(value, int | float):
        return (1, value)
    return (2, str(value))


def open_store(uri: str | None) -> tuple["MlflowClient", str]:
    """A client of the store, and its address without a password; ConfigError if there is none."""
    uri, address = uri or default_uri(), address_of(uri)
    file = database_file(uri)
    if file is not None and not file.is_file():  # MLflow would create it
        raise ConfigError(
            f"no MLflow store at {address}: there is no such file; give --uri, or go to the directory "
            "where `rayfl run` was started"
        )
    from mlflow.tracking import MlflowClient

    try:
        client = MlflowClient(uri)
        client.search_experiments(max_results=1)
    except Exception as error:  # MLflow lets through whatever its backend raises
        raise ConfigError(
            f"--uri = {shown(address)}: MLflow cannot use it ({first_line(error)}); give a sqlite:/// "
            "file or the http address of a running MLflow server"
        ) from error
    return client, address


def address_of(uri: str | None) -> str:
    """The store's address, without a password."""
    uri = uri or default_uri()
    scheme, separator, rest = uri.partition("://")
    user, at, host = rest.rpartition("@")
    return f"{scheme}{separator}...@{host}" if at and "/" not in user else uri


def _fetch(client: "MlflowClient", address: str, experiment: str | None) -> list[tuple[str, "Run"]]:
    """The rayfl runs with the names of their experiments."""
    found = {e.name: e.experiment_id for e in client.search_experiments()}
    if experiment is not None and experiment not in found:
        raise ConfigError(
            f"--experiment = {shown(experiment)}: is not in {address}{nearest(experiment, found)}; "
            f"it has {', '.join(sorted(found))}"
        )
    name_of = {i: name for name, i in found.items() if experiment in (None, name)}
    runs, token = [], ""
    while token is not None:
        page = client.search_runs(
            list(name_of), max_results=_RUNS_PER_PAGE, page_token=token or None
        )
        runs += [(name_of[run.info.experiment_id], run) for run in page if _is_experiment(run)]
        token = page.token or None
    return runs


def _is_experiment(run: "Run") -> bool:
    """Whether this is a run of rayfl's, and not a sweep, which is the parent of its trials."""
    kind = run.data.tags.get("rayfl.kind", "experiment")
    return kind == "experiment" and (
        "rayfl.config_hash" in run.data.tags or "rayfl.kind" in run.data.tags
    )


def _frame(runs: Iterable[tuple[str, "Run"]]) -> pd.DataFrame:
    rows = []
    for experiment, run in runs:
        tags, info = run.data.tags, run.info
        rows.append(
            {key: filters.plain_value(text) for key, text in sorted(run.data.params.items())}
            | run.data.metrics
            | {
                "run_id": info.run_id,
                "run_name": info.run_name,
                "experiment": experiment,
                "sweep": tags.get("rayfl.sweep"),
                "state": _state(info.status, tags.get("rayfl.state")),
                "reason": tags.get("rayfl.reason") or None,
                "config_hash": tags.get("rayfl.config_hash"),
                "started": info.start_time,
            }
        )
    return pd.DataFrame(rows, dtype=object)


def _experiments(client: "MlflowClient") -> str:
    names = sorted(e.name for e in client.search_experiments())
    return f" (its experiments: {', '.join(names)})"


def _values(runs: pd.DataFrame, key: str) -> str:
    """What a key's values are, for the complaint that none was the right one."""
    found = values(runs, key)
    listed = ", ".join(map(shown, found[:_LISTED])) + ", ..." * (len(found) > _LISTED)
    return f"{key} is {listed or 'null'}"


def _state(status: str, tag: str | None) -> str:
    """The tag knows more than MLflow's status, but not that the run was taken up again."""
    if status in ("RUNNING", "SCHEDULED"):
        return "running"
    return tag if tag in ENDED else _STATE_BY_STATUS.get(status, "failed")


def _once_each(runs: pd.DataFrame) -> pd.DataFrame:
    """One run of each config, in the order of their start."""
    identity = runs["config_hash"].fillna(runs["run_id"])
    finished = runs["state"] == "finished"
    ranked = runs.assign(_identity=identity, _finished=finished)
    ranked = ranked.sort_values(["_finished", "started", "run_id"])
    once = ranked.drop_duplicates("_identity", keep="last").drop(columns=["_identity", "_finished"])
    return once.sort_values(["started", "run_id"], ignore_index=True)


def _with_columns(
    runs: pd.DataFrame, metrics: Iterable[Metric], client: "MlflowClient"
) -> pd.DataFrame:
    """The runs with a column of floats for each metric; NaN where a run has no value."""
    columns = {}
    for wanted in metrics:
        values = wanted.of_summaries(runs)
        if values is None:
            # The summary tells who reached the target; only where, when or at what cost is in the rounds.
            reached = runs.loc[numbers(runs, "accuracy_best") >= wanted.target]
            rounds = _histories(client, list(reached["run_id"]), wanted.histories)
            found = {str(i): wanted.of_rounds(one) for i, one in rounds.groupby("run_id")}
            values = pd.Series([found.get(i) for i in runs["run_id"]], runs.index)
        columns[wanted.name] = values.astype(float)
    # The copy joins the table's many blocks: one for each column of MLflow's.
    return runs.drop(columns=list(columns), errors="ignore").copy().assign(**columns)


def _histories(
    client: "MlflowClient", run_ids: Sequence[str], metrics: Sequence[str]
) -> pd.DataFrame:
    def read(pair: tuple[str, str]) -> dict[int, float]:
        # A round that was recorded twice (a run that was taken up again) counts as recorded last.
        entries = client.get_metric_history(*pair)
        return {m.step: m.value for m in sorted(entries, key=lambda m: m.timestamp)}

    pairs = [(run_id, name) for run_id in run_ids for name in metrics]
    with ThreadPoolExecutor(_READERS) as readers:
        found = dict(zip(pairs, readers.map(read, pairs), strict=True))
    frames = [
        pd.DataFrame({name: pd.Series(found[run_id, name], dtype=float) for name in metrics})
        .rename_axis("round")
        .sort_index()
        .reset_index()
        .assign(run_id=run_id)
        for run_id in run_ids
    ]
    every = pd.concat([pd.DataFrame(columns=["run_id", "round", *metrics]), *frames])
    return every.reset_index(drop=True).astype(dict.fromkeys(["round", *metrics], float))
