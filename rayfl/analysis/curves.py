"""Figures over rounds: learning curves and traces, from the tables of `rayfl.analysis.runs`.

The palette is that of Okabe and Ito, which is safe for colour-blind readers. Lines differ in their dashes
too, so that they can be told apart in greyscale. A band is one standard deviation over the seeds.
"""

import textwrap
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import pandas as pd

# The object interface draws off screen and leaves pyplot's global state alone.
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from rayfl.analysis.aggregate import Key, summarize
from rayfl.analysis.metrics import COSTS, metric
from rayfl.analysis.plots import DPI, Drawing, finished, group_name
from rayfl.analysis.runs import axes as varying
from rayfl.errors import ConfigError
from rayfl.text import shown, unset

Abscissa = Literal["rounds", "bytes", "seconds", "backward_passes"]

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
DASHES = ("-", "--", "-.", ":")
MOST_LINES = 10

_LABELS = {
    "rounds": "round",
    "bytes": "traffic up and down (MB)",
    "seconds": "training time (s)",
    "backward_passes": "backward passes of all clients",
}
_LEGEND_BELOW = 4  # lines up to which the legend is below the axes
_LONG_LABEL = 45  # characters, beyond which a label needs a row of its own there
_LABEL_SIZE = 8  # points


class _Chosen(NamedTuple):
    """Groups of runs that a figure draws: the finished runs of each, and the keys of the groups."""

    groups: list[tuple[Key, pd.DataFrame]]
    by: list[str]
    notes: tuple[str, ...]


def curve_metrics(x: str, name: str = "last10") -> list[str]:
    """List the per-round metrics that `curves` needs, the one that it draws first."""
    return list(dict.fromkeys([metric(name).by_round, *COSTS[x].by_round]))


def trace_metrics(runs: pd.DataFrame) -> list[str]:
    """List the scalars that the servers of these runs record, such as `server/alpha`."""
    done = finished(runs)
    names = sorted(
        c for c in runs.columns if c.startswith("server/") and done.loc[:, c].notna().any()
    )
    if not names:
        raise ConfigError("nothing to draw: no server of these runs keeps a scalar (server/*)")
    return names


def drawn(
    runs: pd.DataFrame,
    by: Sequence[str] | None = None,
    name: str = "last10",
    scalars: Sequence[str] = (),
) -> pd.DataFrame:
    """Select the runs whose histories `curves` needs, or `traces` of these scalars."""
    chosen = _chosen(_keeping(runs, scalars), by, name)
    return pd.concat([members for _, members in chosen.groups])


def curves(
    runs: pd.DataFrame,
    rounds: pd.DataFrame,
    by: Sequence[str] | None = None,
    x: Abscissa = "rounds",
    name: str = "last10",
) -> Drawing:
    """Draw a metric against rounds, traffic or time: mean over the seeds, one line per group.

    `name`: a per-round metric, or a summary of one; for costs, test accuracy is drawn. It also selects the
    best groups of too many. `rounds` are the histories of the runs' `curve_metrics(x, name)`. Traffic and
    time are cumulative, and averaged over the seeds of a group at each round.
    """
    costs = list(COSTS[x].by_round)
    chosen = _chosen(runs, by, name)
    spent = rounds.sort_values(["run_id", "round"])
    if costs:
        total = spent[costs].sum(axis=1).groupby(spent["run_id"]).cumsum() * COSTS[x].scale
    else:
        total = spent["round"].astype(float)
    drawn = metric(name).by_round
    if not rounds.loc[:, drawn].notna().any():
        raise ConfigError(f"nothing to draw: no finished run has {shown(drawn)} by round")
    panels = {drawn: unset(drawn.replace("/", " ").replace("_", " "))}
    return _figure(chosen, spent.assign(_x=total), panels, _LABELS[x], 4)


def traces(
    runs: pd.DataFrame,
    rounds: pd.DataFrame,
    by: Sequence[str] | None = None,
    name: str = "last10",
) -> Drawing:
    """Draw the scalars that the server records (an adaptive alpha, a cosine) by round, one panel each.

    `rounds` are the histories of the runs' `trace_metrics`.
    """
    scalars = [c for c in rounds.columns if c.startswith("server/")]
    panels = {scalar: unset(scalar) for scalar in scalars}
    by_round = rounds.assign(_x=rounds["round"].astype(float))
    chosen = _chosen(_keeping(runs, scalars), by, name)
    return _figure(chosen, by_round, panels, "round", 1.2 + 2.4 * len(panels))


def _keeping(runs: pd.DataFrame, scalars: Sequence[str]) -> pd.DataFrame:
    """Select the runs that have any of these scalars."""
    return runs.loc[runs[list(scalars)].notna().any(axis=1)] if scalars else runs


def _chosen(runs: pd.DataFrame, by: Sequence[str] | None, name: str) -> _Chosen:
    """Choose the groups to draw, and their finished runs."""
    by = varying(finished(runs)) if by is None else list(by)
    summary = summarize(runs, by, [name])
    of_row = [(key, members.loc[members["state"] == "finished"]) for key, members in summary.groups]
    drawable = [i for i, (_, members) in enumerate(of_row) if len(members)]
    if len(drawable) <= MOST_LINES:
        return _Chosen([of_row[i] for i in drawable], by, summary.of_means)
    best_first = dict.fromkeys([*summary.ranking, *drawable])
    note = f"drawn are the {MOST_LINES} best of {len(drawable)} groups by {name}"
    kept = sorted(list(best_first)[:MOST_LINES])
    return _Chosen([of_row[i] for i in kept], by, (note, *summary.notes))


def _figure(
    chosen: _Chosen, rounds: pd.DataFrame, panels: Mapping[str, str], xlabel: str, height: float
) -> Drawing:
    """Draw one panel for each column of `panels`, with its label, against the column `_x`."""
    names = [group_name(chosen.by, key, len(members)) for key, members in chosen.groups]
    is_wide = len(names) > _LEGEND_BELOW
    is_long = max(map(len, names)) > _LONG_LABEL
    is_beside = is_wide and not is_long
    width = 10 if is_wide else 7
    if is_long:  # in rows below axes that keep their height
        a_row = int(width * 72 / (0.7 * _LABEL_SIZE)) - 10  # characters, beside the line's sample
        names = [textwrap.fill(name, a_row) for name in names]
        height += (1.5 * _LABEL_SIZE / 72) * (1 + sum(name.count("\n") + 1 for name in names))
    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
    stacked = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
    for axes, (column, label) in zip(stacked, panels.items(), strict=True):
        for i, (name, (_, members)) in enumerate(zip(names, chosen.groups, strict=True)):
            of_group = rounds.loc[rounds["run_id"].isin(members["run_id"])].dropna(subset=column)
            _line(axes, of_group, column, i, name)
        axes.set(ylabel=label)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    stacked[-1].set(xlabel=xlabel)
    if xlabel == "round":
        stacked[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
    handles, labels = stacked[-1].get_legend_handles_labels()
    if not handles:  # the last panel may lack what others have
        handles, labels = stacked[0].get_legend_handles_labels()
    has_band = any(len(members) > 1 for _, members in chosen.groups)
    figure.legend(
        handles,
        labels,
        title="band: ±1 standard deviation" if has_band else None,
        title_fontsize=_LABEL_SIZE,
        fontsize=_LABEL_SIZE,
        loc="outside right center" if is_beside else "outside lower center",
        ncols=1 if is_beside or is_long else 2,
        frameon=False,
    )
    return Drawing(figure, chosen.notes)


def _line(axes: Axes, rounds: pd.DataFrame, column: str, i: int, label: str) -> None:
    """Draw the mean of the runs at each round and its band; nothing if no run has the column."""
    if rounds.empty:
        return
    columns = rounds.loc[:, ["round", "_x", column]].astype(float).groupby("round")
    mean, std = columns.mean(), columns.std(ddof=1).fillna(0.0)
    x, y, band = (
        v.to_numpy() for v in (mean.loc[:, "_x"], mean.loc[:, column], std.loc[:, column])
    )
    colour, dash = COLOURS[i % len(COLOURS)], DASHES[i % len(DASHES)]
    axes.plot(x, y, color=colour, linestyle=dash, linewidth=1.6, label=label)
    if band.any():
        axes.fill_between(x, y - band, y + band, color=colour, alpha=0.15, linewidth=0)
