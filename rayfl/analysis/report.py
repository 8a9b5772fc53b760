"""One HTML page about a set of runs, which opens offline and may be mailed.

The template (`report.html`) escapes every text; figures are inline as SVG data.
"""

import base64
import contextlib
import io
import itertools
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import jinja2
import pandas as pd

from rayfl.analysis import curves, plots
from rayfl.analysis.aggregate import Summary, summarize
from rayfl.analysis.measured import pictures, table_of_measured
from rayfl.analysis.metrics import metric
from rayfl.analysis.naming import shown
from rayfl.analysis.rerun import BASE, RerunCommands
from rayfl.analysis.runs import axes, histories, load, values
from rayfl.analysis.states import STATES
from rayfl.analysis.store import address_of
from rayfl.analysis.tables import table_of
from rayfl.errors import ConfigError

_MOST_HEATMAPS = 3
_BESIDE = ("last10", "best", "loss", "seconds", "bytes")  # metrics beside the one asked for

_ABSCISSAE: tuple[tuple[curves.Abscissa, str], ...] = (
    ("rounds", "rounds"),
    ("bytes", "traffic"),
    ("seconds", "training time"),
)


@dataclass(frozen=True)
class Plot:
    """A figure of the page, and the command that draws it."""

    title: str
    data: str
    """SVG as base64."""
    command: str
    notes: tuple[str, ...]


def render(
    experiment: str | None = None,
    uri: str | None = None,
    where: str | None = None,
    name: str = "last10",
    title: str | None = None,
) -> str:
    """Render the page about the runs that `runs.load` finds with these arguments."""
    runs = load(experiment, uri, where, [name])
    names, runs = _with_beside(runs, name)
    by = axes(runs)
    summary, again = summarize(runs, by, names), RerunCommands(runs)
    source = {"--experiment": experiment, "--uri": uri and address_of(uri), "--where": where}
    options = [word for key, value in source.items() if value for word in (key, value)]
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    template = environment.from_string(
        files("rayfl.analysis").joinpath("report.html").read_text("utf-8")
    )
    return template.render(
        title=title or _title(runs, experiment),
        source=address_of(uri),
        where=where,
        metric=metric(name),
        chosen=summary.chosen,
        counts=_counts(runs),
        axes=[(key, [shown(v) for v in values(runs, key)]) for key in (*by, "seed") if key in runs],
        table=table_of(summary),
        results_command=shlex.join(["rayfl", "results", *options, "--metric", ",".join(names)]),
        notes=summary.notes,
        best=_best(summary, runs, again),
        figures=list(_figures(runs, name, uri, options)) if summary.ranking else [],
        measured=table_of_measured(runs, by, name),
        pictures=[
            (one.title, base64.b64encode(one.png).decode(), one.where)
            for one in pictures(runs, uri)
        ],
        failures=[
            _trial(runs, i, again, by) for i in _positions(runs.loc[:, "state"] != "finished")
        ],
        trials=[_trial(runs, i, again, by) for i in _positions(runs.loc[:, "state"] == "finished")],
        base_name=BASE,
        base=again.base_yaml,
        base_data=base64.b64encode(again.base_yaml.encode()).decode(),
    )


def _with_beside(runs: pd.DataFrame, name: str) -> tuple[list[str], pd.DataFrame]:
    """Return the metrics of the page's table, the one asked for first, and the runs with all of them."""
    best = runs.get("accuracy_best")
    recorded = [
        c for c in runs.columns if c.startswith("rounds_to_") and runs.loc[:, c].notna().any()
    ]
    hardest = max(recorded, key=lambda c: float(c.removeprefix("rounds_to_")), default=None)
    columns: dict[str, Any] = {}
    for other in (*_BESIDE, *([hardest] if hardest and best is not None else [])):
        m = metric(other)
        if other != name and (not m.column or m.column in runs):
            found = m.of_summaries(runs)
            if found is not None:
                columns[other] = found.astype(float)
    return [name, *columns], runs.assign(**columns)


def _title(runs: pd.DataFrame, experiment: str | None) -> str:
    sweeps = [str(s) for s in values(runs, "sweep") if s is not None]
    return ", ".join(sweeps) or experiment or ", ".join(map(str, values(runs, "experiment")))


def _counts(runs: pd.DataFrame) -> list[tuple[str, int]]:
    found = runs["state"].value_counts()
    return [(state.replace("_", " "), int(found.loc[state])) for state in STATES if state in found]


def _best(summary: Summary, runs: pd.DataFrame, again: RerunCommands) -> list[dict[str, Any]]:
    """Return the best row of each task with the commands of its finished runs."""
    table, found = table_of(summary), []
    for best in summary.best[0]:
        _, members = summary.groups[best]
        ids = set(members.loc[members["state"] == "finished", "run_id"])
        commands = [again.command(i) for i, run in enumerate(runs["run_id"]) if run in ids]
        cells = list(zip(table.header, table.rows[best], strict=True))
        found.append({"cells": cells, "commands": commands})
    return found


def _positions(mask: pd.Series) -> list[int]:
    return [i for i, chosen in enumerate(mask) if chosen]


def _trial(runs: pd.DataFrame, i: int, again: RerunCommands, by: Sequence[str]) -> dict[str, Any]:
    run = runs.iloc[i]
    settings = [f"{k}={shown(run[k])}" for k in (*by, "seed") if k in run and run[k] == run[k]]
    return {
        "settings": ", ".join(settings),
        "state": run["state"].replace("_", " "),
        "reason": run["reason"] or "no reason was recorded",
        "run_id": run["run_id"],
        "command": again.command(i),
    }


def _figures(
    runs: pd.DataFrame, name: str, uri: str | None, options: Sequence[str]
) -> Iterator[Plot]:
    by = axes(plots.finished(runs))  # a key may vary only because of runs that failed

    def plot(title: str, kind: str, drawing: plots.Drawing, *more: str) -> Plot:
        command = ["rayfl", "plot", kind, *options, "--metric", name, *more]
        return Plot(title, _svg(drawing), shlex.join(command), drawing.notes)

    costs = curves.curve_metrics("bytes", name) + curves.curve_metrics("seconds", name)[1:]
    what = costs[0].replace("/", " ").capitalize()
    rounds = histories(curves.drawn(runs, by, name), costs, uri)
    for x, words in _ABSCISSAE:
        title = f"{what} against {words}"
        yield plot(title, "curves", curves.curves(runs, rounds, by, x, name), "--x", x)
    for pair in _pairs(by):
        title = f"{pair[0]} and {pair[1]}: {metric(name).label}"
        with contextlib.suppress(ConfigError):  # too many panels: the page does without
            drawing = plots.heatmap(runs, pair, name)
            yield plot(title, "heatmap", drawing, "--by", ",".join(pair))
    if len(by) > 1:
        yield plot("All settings", "parallel", plots.parallel(runs, by, name))
    with contextlib.suppress(ConfigError):  # no server keeps one
        scalars = curves.trace_metrics(runs)
        kept = histories(curves.drawn(runs, by, name, scalars), scalars, uri)
        yield plot("Scalars of the server", "traces", curves.traces(runs, kept, by, name))


def _pairs(by: Sequence[str]) -> list[tuple[str, str]]:
    """Choose the pairs of axes for heatmaps."""
    keys = [key for key in by if not key.endswith(".name")]
    if len(keys) < 2:
        keys = list(by)
    return list(itertools.combinations(keys, 2))[:_MOST_HEATMAPS]


def _svg(drawing: plots.Drawing) -> str:
    stream = io.BytesIO()
    plots.save(drawing.figure, stream, "svg")
    return base64.b64encode(stream.getvalue()).decode()
