"""Figures over rounds: learning curves and traces, from the tables of `rayfl.analysis.runs`.

The palette is that of Okabe and Ito, which is safe for colour-blind readers. Lines differ in their dashes
too, so that they can be told apart in greyscale. A band is one standard deviation over the seeds.
"""

from collections.abc import Sequence
from typing import Any, Literal

import pandas as pd

# The object interface draws off screen and leaves pyplot's global state alone.
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from rayfl.analysis.aggregate import Key, groups, summarize
from rayfl.analysis.plots import DPI, Drawing, finished, group_name
from rayfl.analysis.runs import axes as varying
from rayfl.errors import ConfigError
from rayfl.text import unset

Abscissa = Literal["rounds", "bytes", "seconds"]

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
DASHES = ("-", "--", "-.", ":")
MOST_LINES = 10

_X = {
    "rounds": ("round", (), 1.0),
    "bytes": ("traffic up and down (MB)", ("cost/bytes_up", "cost/bytes_down"), 1e-6),
    "seconds": ("training time (s)", ("time/round_s",), 1.0),
}
_LEGEND_BELOW = 4  # lines up to which the legend is below the axes


def curve_metrics(x: str) -> list[str]:
    """List the per-round metrics that `curves` needs."""
    return ["test/accuracy", *_X[x][1]]


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
    chosen, _, _ = _chosen(_keeping(runs, scalars), by, name)
    return pd.concat([members for _, members in chosen])


def curves(
    runs: pd.DataFrame,
    rounds: pd.DataFrame,
    by: Sequence[str] | None = None,
    x: Abscissa = "rounds",
    name: str = "last10",
) -> Drawing:
    """Draw test accuracy against rounds, traffic or time: mean over the seeds, one line per group.

    `rounds` are the histories of the runs' `curve_metrics(x)`. Traffic and time are cumulative, and averaged
    over the seeds of a group at each round. `name`: metric that selects the best groups of too many.
    """
    label, costs, scale = _X[x]
    chosen, by, notes = _chosen(runs, by, name)
    spent = rounds.sort_values(["run_id", "round"])
    if costs:
        total = spent[list(costs)].sum(axis=1).groupby(spent["run_id"]).cumsum() * scale
        spent = spent.assign(_x=total)
    else:
        spent = spent.assign(_x=spent["round"].astype(float))
    figure = Figure(figsize=(_width(chosen), 4), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    for i, (key, members) in enumerate(chosen):
        of_group = spent.loc[spent["run_id"].isin(members["run_id"])].dropna(subset="test/accuracy")
        _line(axes, of_group, "test/accuracy", i, group_name(by, key, len(members)))
    axes.set(xlabel=label, ylabel="test accuracy")
    if x == "rounds":
        _count_rounds(axes)
    _finish(figure, axes, by, chosen)
    return Drawing(figure, notes)


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
    chosen, by, notes = _chosen(_keeping(runs, scalars), by, name)
    size = (_width(chosen), 1.2 + 2.4 * len(scalars))
    figure = Figure(figsize=size, dpi=DPI, layout="constrained")
    panels = figure.subplots(len(scalars), 1, sharex=True, squeeze=False)[:, 0]
    spent = rounds.assign(_x=rounds["round"].astype(float))
    for axes, scalar in zip(panels, scalars, strict=True):
        for i, (key, members) in enumerate(chosen):
            of_group = spent.loc[spent["run_id"].isin(members["run_id"])].dropna(subset=scalar)
            _line(axes, of_group, scalar, i, group_name(by, key, len(members)))
        axes.set(ylabel=unset(scalar))
        _plain(axes)
    panels[-1].set(xlabel="round")
    _count_rounds(panels[-1])
    _finish(figure, panels[-1], by, chosen)
    return Drawing(figure, notes)


def _keeping(runs: pd.DataFrame, scalars: Sequence[str]) -> pd.DataFrame:
    """Select the runs that have any of these scalars."""
    return runs.loc[runs[list(scalars)].notna().any(axis=1)] if scalars else runs


def _chosen(
    runs: pd.DataFrame, by: Sequence[str] | None, name: str
) -> tuple[list[tuple[Key, pd.DataFrame]], list[str], tuple[str, ...]]:
    """Choose the groups to draw; return their finished runs, the keys of the groups, and the notes."""
    by = varying(finished(runs)) if by is None else list(by)
    summary = summarize(runs, by, [name])
    of_row = [
        (key, members.loc[members["state"] == "finished"]) for key, members in groups(runs, by)
    ]
    drawable = [i for i, (_, members) in enumerate(of_row) if len(members)]
    if len(drawable) <= MOST_LINES:
        return [of_row[i] for i in drawable], by, summary.notes
    best_first = dict.fromkeys([*summary.ranking, *drawable])
    note = f"drawn are the {MOST_LINES} best of {len(drawable)} groups by {name}"
    kept = sorted(list(best_first)[:MOST_LINES])
    return [of_row[i] for i in kept], by, (note, *summary.notes)


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


def _width(chosen: Sequence[Any]) -> float:
    """Return the width in inches, with room for a legend beside the axes."""
    return 10 if len(chosen) > _LEGEND_BELOW else 7


def _finish(figure: Figure, axes: Axes, by: Sequence[str], chosen: Sequence[Any]) -> None:
    _plain(axes)
    handles, labels = axes.get_legend_handles_labels()
    if not handles:  # the last panel may lack what others have
        handles, labels = figure.axes[0].get_legend_handles_labels()
    beside = len(chosen) > _LEGEND_BELOW
    band = ["band: ±1 standard deviation"] if any(len(m) > 1 for _, m in chosen) else []
    figure.legend(
        handles,
        labels,
        title="\n".join(band) or None,
        title_fontsize=8,
        fontsize=8,
        loc="outside right center" if beside else "outside lower center",
        ncols=1 if beside else 2,
        frameon=False,
    )


def _plain(axes: Axes) -> None:
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


def _count_rounds(axes: Axes) -> None:
    """Place ticks at whole rounds only."""
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
