"""The page of a sweep's MLflow run: its settings; at its end the best row, the table and the pictures."""

import logging
from collections.abc import Iterable
from typing import TYPE_CHECKING

from rayfl.analysis.naming import shown
from rayfl.errors import ConfigError, reason
from rayfl.text import redacted, written
from tuning.config import Sweep
from tuning.results import TrialRow, summary

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

    from rayfl.analysis.aggregate import Summary
    from rayfl.tracking.store import TrackingStore

_DESCRIPTION = "mlflow.note.content"  # the tag that MLflow's page shows as a text in Markdown
_LONGEST_TAG = 5000  # characters; MLflow's limit of a tag with a margin

logger = logging.getLogger(__name__)


def record_settings(client: "MlflowClient", run_id: str, sweep: Sweep) -> None:
    """Record how a sweep searches, its metric, its seeds and its axes as params of its run.

    MLflow changes no param: where a setting is another than at the first command, a tag `now.KEY` has it.
    """
    content = sweep.model_dump(mode="json", exclude_none=True)
    found = {key: content[key] for key in ("search", "scheduler", "metric", "mode", "seeds")}
    for key, axis in sweep.space.items():
        found[f"space.{key}"] = axis.model_dump(mode="json", exclude_defaults=True)
    told = client.get_run(run_id).data
    for key, setting in found.items():
        value = written(setting)[:_LONGEST_TAG]
        if key not in told.params:
            client.log_param(run_id, key, value)
        elif value != told.params[key] or f"now.{key}" in told.tags:
            client.set_tag(run_id, f"now.{key}", value)


def record_results(
    store: "TrackingStore", run_id: str, sweep: Sweep, rows: Iterable[TrialRow]
) -> None:
    """Record a sweep's results in its run.

    The best row's mean is a metric where there is one task; of several, tags have the best of each in order.
    All of it is known from the runs of the trials, so that a failure here is a warning.
    """
    try:
        found = summary(rows, sweep)
        _best(store, run_id, found)
        _table(store, run_id, found)
    except Exception as error:
        _warn("the table", error)
    for kind in ("curves", "heatmap"):
        try:
            _picture(store, run_id, sweep, kind)
        except ConfigError as error:  # there is nothing to draw, such as one axis for a heatmap
            logger.info("%s", error)
        except Exception as error:
            _warn(f"{kind}.png", error)


def _best(store: "TrackingStore", run_id: str, found: "Summary") -> None:
    best, name = found.best[0], found.metrics[0].name
    if len(best) == 1:
        mean = found.aggregates[best[0]][0]
        store.client.log_metric(run_id, f"best/{name}", mean.mean)
        store.client.log_metric(run_id, "best/n", mean.n)
    for i, key in enumerate(found.by):
        values = "; ".join(shown(found.groups[row][0][i]) for row in best)
        store.client.set_tag(run_id, f"best.{key}", values[:_LONGEST_TAG])


def _table(store: "TrackingStore", run_id: str, found: "Summary") -> None:
    from rayfl.analysis.tables import table_of, text_of

    table = table_of(found, "markdown")
    text = text_of(table, found.rows, "markdown")
    notes = "".join(f"\n\n{note}" for note in found.notes)
    store.client.log_text(run_id, text + notes + "\n", "results.md")
    store.client.log_text(run_id, text_of(table, found.rows, "csv") + "\n", "results.csv")
    note = text if len(text) <= _LONGEST_TAG else "The table is long: see results.md."
    store.client.set_tag(run_id, _DESCRIPTION, note)


def _picture(store: "TrackingStore", run_id: str, sweep: Sweep, kind: str) -> None:
    from rayfl.analysis import curves, plots
    from rayfl.analysis.runs import histories, load

    experiment = store.client.get_experiment(store.experiment_id).name
    runs = load(experiment, store.uri, f"sweep={sweep.name}", [sweep.metric])
    keys = [key for key in sweep.space if key in runs]
    if kind == "heatmap":
        drawing = plots.heatmap(runs, None, sweep.metric)
    else:
        needed = curves.curve_metrics("rounds", sweep.metric)
        rounds = histories(curves.drawn(runs, keys, sweep.metric), needed, store.uri)
        drawing = curves.curves(runs, rounds, keys, "rounds", sweep.metric)
    store.client.log_figure(run_id, drawing.figure, f"{kind}.png")


def _warn(what: str, error: Exception) -> None:
    logger.warning(
        "%s of the sweep's results: not in its MLflow run (%s)", what, redacted(reason(error))
    )
