"""The MLflow store: its address, its runs, and their histories."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING

import pandas as pd

from rayfl.errors import ConfigError
from rayfl.text import nearest, redacted, shown
from rayfl.tracking.defaults import database_file, store_address

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow.tracking import MlflowClient

_RUNS_PER_PAGE = 1000
_READERS = 4  # threads


def open_store(uri: str | None) -> tuple["MlflowClient", str]:
    """Return a client of the store, and its address without a password; ConfigError if there is no store."""
    uri, key = store_address(uri, "--uri")
    address, file = redacted(uri), database_file(uri)
    if file is not None and not file.exists():  # it would be made
        raise ConfigError(
            f"no MLflow store at {address}: there is no such file; give --uri, or go to the directory "
            "where `rayfl run` was started"
        )
    from rayfl.tracking.store import opened  # imports mlflow

    refuse = partial(ConfigError, key=key, value=address)
    with opened(uri, refuse, "", writes=False) as client:
        return client, address


def address_of(uri: str | None) -> str:
    """Return the store's address without a password."""
    return redacted(store_address(uri, "--uri")[0])


def fetch_runs(
    client: "MlflowClient", address: str, experiment: str | None
) -> list[tuple[str, "Run"]]:
    """Fetch the runs of rayfl, each with the name of its experiment."""
    found = {e.name: e.experiment_id for e in client.search_experiments()}
    if experiment is not None and experiment not in found:
        raise ConfigError(
            f"--experiment = {shown(experiment)}: is not in {address}{nearest(experiment, found)}; "
            f"it has {', '.join(sorted(found))}"
        )
    name_of = {i: name for name, i in found.items() if experiment in (None, name)}
    runs = search_runs(client, list(name_of))
    return [(name_of[run.info.experiment_id], run) for run in runs if _is_experiment(run)]


def search_runs(
    client: "MlflowClient",
    experiment_ids: list[str],
    which: str = "",
    order_by: str | None = None,
    deleted_too: bool = False,
) -> Iterator["Run"]:
    """Yield the runs that MLflow's filter `which` selects, from all pages of the answer."""
    from mlflow.entities import ViewType

    view = ViewType.ALL if deleted_too else ViewType.ACTIVE_ONLY
    order, token = [order_by] if order_by else None, None
    while token != "":
        page = client.search_runs(
            experiment_ids,
            which,
            run_view_type=view,
            max_results=_RUNS_PER_PAGE,
            order_by=order,
            page_token=token,
        )
        yield from page
        token = page.token or ""


def search_store(
    client: "MlflowClient", which: str, order_by: str | None = None
) -> Iterator["Run"]:
    """Yield the runs of all experiments that MLflow's filter `which` selects."""
    experiments = [e.experiment_id for e in client.search_experiments()]
    return search_runs(client, experiments, which, order_by)


def sweeps_own_runs(client: "MlflowClient", which: str = "") -> Iterator["Run"]:
    """Yield the sweeps' own runs, the parents of their trials, that `which` selects, such as `of_sweep`."""
    also = f" and {which}" if which else ""
    return search_store(client, f"tags.`rayfl.kind` = 'sweep'{also}")


def of_sweep(name: str) -> str:
    """Return MLflow's filter for the runs of the sweep of this name."""
    return f"tags.`rayfl.sweep` = '{name}'"


def _is_experiment(run: "Run") -> bool:
    """Return True for a run of rayfl, except for a sweep, which is the parent of its trials."""
    tags = run.data.tags
    default = "experiment" if "rayfl.config_hash" in tags else None
    return tags.get("rayfl.kind", default) == "experiment"


def read_histories(
    client: "MlflowClient", run_ids: Sequence[str], metrics: Sequence[str]
) -> pd.DataFrame:
    """Read per-round metrics: `run_id`, `round` and one column per metric (NaN: not measured)."""

    def read(pair: tuple[str, str]) -> dict[int, float]:
        # A resumed run may record a round twice; its last record counts.
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
