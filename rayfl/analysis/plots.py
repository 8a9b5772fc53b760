"""Figures of settings: heatmap and parallel coordinates, from the tables of `rayfl.analysis.runs`."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

import matplotlib as mpl
import numpy as np
import pandas as pd

# The object interface draws off screen and leaves pyplot's global state alone.
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from rayfl.analysis.aggregate import Key, Summary, groups, summarize, task
from rayfl.analysis.metrics import Metric, metric
from rayfl.analysis.naming import listed, row_name, shown
from rayfl.analysis.runs import axes as varying
from rayfl.analysis.runs import canonical, order, values
from rayfl.analysis.states import STATES, counted
from rayfl.errors import ConfigError
from rayfl.text import unset

DPI = 150
MOST_PANELS = 12

_UNDATED = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}
LOG_SPAN = 20  # ratio of largest to smallest value from which an axis is logarithmic


class Drawing(NamedTuple):
    """A figure, and the notes that belong to it."""

    figure: Figure
    notes: tuple[str, ...] = ()


def finished(runs: pd.DataFrame) -> pd.DataFrame:
    """Select the finished runs; ConfigError if there are none to draw."""
    done = runs.loc[runs["state"] == "finished"]
    if done.empty:
        raise ConfigError(f"nothing to draw: none of the {len(runs)} runs has finished")
    return done


def heatmap(runs: pd.DataFrame, by: Sequence[str] | None = None, name: str = "last10") -> Drawing:
    """Draw the mean of a metric over the seeds on the grid of two keys; further keys make panels.

    Default of `by`: the two varying keys with the most values; the others make the panels. Bold is the best
    cell of each panel and task, framed the best of each task. A cell has its number of runs where that is 1
    or not the number that most cells have; a note names the cells without a finished run.
    """
    m = metric(name)
    across, up, *others = _two_axes(finished(runs), by)
    summary = summarize(runs, [*others, across, up], [name])
    rows = summary.rows.assign(_n=[row[0].n for row in summary.aggregates])
    cells = rows.loc[rows["_n"] > 0]
    if len(cells) == 0:
        raise ConfigError(f"nothing to draw: no finished run has {name}")
    usual = int(cells["_n"].mode().max())
    cells = cells.assign(
        _count=[f"n={n}" if n == 1 or n != usual else "" for n in cells["_n"]],
        _bold=_best_of_panels(summary, others, cells.index),
    )
    panels = groups(cells, others)
    if len(panels) > MOST_PANELS:
        raise ConfigError(
            f"heatmap: {', '.join(others)} would make {len(panels)} panels, and {MOST_PANELS} can be read; "
            "name two axes with --by and choose among the others with --where"
        )
    xs, ys = (values(cells, key) for key in (across, up))
    means = cells.loc[:, name] * m.scale
    columns = min(len(panels), 3)
    height = -(-len(panels) // columns)
    wide, tall = max(2.6, 0.75 * len(xs) + 1.0), max(2.2, 0.5 * len(ys) + 1.1)
    figure = Figure(figsize=(wide * columns + 1.2, tall * height), dpi=DPI, layout="constrained")
    panes = figure.subplots(height, columns, squeeze=False, sharex=True, sharey=True)
    for axes in list(panes.flat)[len(panels) :]:
        axes.set_visible(False)
    image = None
    for axes, (key, rows) in zip(panes.flat, panels, strict=False):
        image = _grid(axes, rows, (across, up), (xs, ys), m, (means.min(), means.max()))
        axes.set_title(group_name(others, key) if others else "", fontsize=9)
    figure.supxlabel(across, fontsize=10)
    figure.supylabel(up, fontsize=10)
    if image is not None:
        figure.colorbar(image, ax=panes).set_label(f"{m.label},\nmean over seeds", fontsize=8)
    notes = [f"n = {usual} where a cell says nothing else; framed: the best of its task"]
    return Drawing(figure, (*notes, *_empty(summary), *summary.notes))


def _best_of_panels(summary: Summary, others: Sequence[str], cells: pd.Index) -> list[bool]:
    """Mark the best cell of each panel and task; the order of the ranking is that within each task."""
    best: dict[Any, int] = {}
    for i in summary.ranking:
        key = summary.groups[i][0]
        best.setdefault((key[: len(others)], task(summary.by, key)), i)
    return [i in best.values() for i in cells]


def _empty(summary: Summary) -> list[str]:
    """Name the cells that have runs, but no mean."""
    found = []
    for i, (key, members) in enumerate(summary.groups):
        if summary.aggregates[i][0].n == 0:
            found.append(f"{row_name(summary.by, key)} ({counted(members['state'], STATES)})")
    return [f"cells left out, for no finished run has a number: {listed(found)}"] if found else []


def parallel(runs: pd.DataFrame, by: Sequence[str] | None = None, name: str = "last10") -> Drawing:
    """Draw parallel coordinates: one line per group through its values, coloured by the metric's mean."""
    m, done = metric(name), finished(runs)
    summary = summarize(runs, varying(done) if by is None else by, [name])
    if not summary.by or not summary.ranking:
        raise ConfigError(
            f"parallel: no config key varies between the runs, or none has {name}; name keys with --by"
        )
    worst_first = summary.rows.loc[list(reversed(summary.ranking))]
    figure = Figure(figsize=(1.5 * (len(summary.by) + 1) + 1.5, 4), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    result = worst_first.loc[:, name].astype(float) * m.scale
    heights = [_heights(worst_first.loc[:, key]) for key in summary.by]
    heights.append(_heights(result, most_ticks=2))
    colours = mpl.colormaps["viridis_r" if m.higher else "viridis"]  # the better, the darker
    norm = Normalize(result.min(), result.max())
    for i, value in enumerate(result):
        best = bool(worst_first["is_best"].iloc[i])
        axes.plot(
            [position[i] for position, _ in heights],
            color=colours(norm(value)),
            linewidth=3 if best else 1.3,
            label="best" if i == len(result) - 1 else None,
        )
    _scales(axes, [ticks for _, ticks in heights], [*summary.by, m.name])
    axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(0, 1.1))
    figure.colorbar(ScalarMappable(norm, colours), ax=axes, label=m.label)
    return Drawing(figure, summary.notes)


def _scales(axes: Axes, ticks: Sequence[Sequence[tuple[float, str]]], names: Sequence[str]) -> None:
    """Draw the vertical axes of parallel coordinates, each with its own ticks."""
    box = {"facecolor": "white", "alpha": 0.75, "edgecolor": "none", "pad": 0.8}
    for i, of_axis in enumerate(ticks):
        axes.axvline(i, color="0.6", linewidth=0.8)
        for height, text in of_axis:
            place = {"xytext": (4, 0), "textcoords": "offset points", "va": "center"}
            axes.annotate(text, (i, height), fontsize=8, bbox=box, **place)
    axes.set_xticks(range(len(names)), names, fontsize=8)
    axes.set(yticks=[], ylim=(-0.06, 1.06), xlim=(-0.1, len(names) - 0.6))
    axes.spines[:].set_visible(False)


def save(figure: Figure, file: Path | IO[bytes], form: str | None = None) -> None:
    """Write the figure as `form` (default: the file's suffix); the same figure gives the same bytes."""
    form = form or Path(str(file)).suffix.lower().removeprefix(".")
    with mpl.rc_context({"svg.hashsalt": "rayfl", "pdf.fonttype": 42}):
        figure.savefig(file, format=form, metadata=_UNDATED.get(form))


def group_name(by: Sequence[str], key: Key, n: int | None = None) -> str:
    """Describe a group for a figure, without the keys that it does not have."""
    words = row_name(by, key)
    return unset(words if n is None else f"{words} (n={n})")


def _two_axes(runs: pd.DataFrame, by: Sequence[str] | None) -> list[str]:
    """Choose the keys of the two axes, followed by those of the panels."""
    keys = varying(runs)
    if by is not None:
        if len(by) != 2:
            raise ConfigError(f"--by = '{','.join(by)}': a heatmap has two axes, name two keys")
        groups(runs, by)  # raises for unknown keys
        return [*by, *(key for key in keys if key not in by)]
    if len(keys) < 2:
        raise ConfigError(
            f"heatmap: needs two keys that vary, but {', '.join(keys) or 'none'} varies between the runs"
        )
    # Names make panels rather than axes.
    ranked = sorted(keys, key=lambda k: (k.endswith(".name"), -runs[k].nunique()))
    return [*ranked[:2], *(key for key in keys if key not in ranked[:2])]


def _grid(
    axes: Axes,
    rows: pd.DataFrame,
    keys: tuple[str, str],
    ticks: tuple[list[Any], list[Any]],
    m: Metric,
    limits: tuple[float, float],
) -> Any:
    """Draw one panel: colour and number in each cell; a cell without a finished run stays white."""
    (across, up), (xs, ys), (low, high) = keys, ticks, limits
    grid = np.full((len(ys), len(xs)), np.nan)
    colours = mpl.colormaps["viridis" if m.higher else "viridis_r"]
    for row in rows.to_dict("records"):
        x, y, value = xs.index(row[across]), ys.index(row[up]), row[m.name] * m.scale
        grid[y, x] = value
        if not math.isnan(value):
            red, green, blue, _ = colours((value - low) / (high - low) if high > low else 0.5)
            colour = "white" if 0.299 * red + 0.587 * green + 0.114 * blue < 0.5 else "black"
            weight = "bold" if row["_bold"] else None
            text = f"{value:.{min(m.digits, 3)}f}"
            axes.text(x, y, text, ha="center", va="center", size=8, color=colour, weight=weight)
            if row["_count"]:
                below = {"ha": "center", "va": "center", "size": 6, "color": colour}
                axes.text(x, y - 0.32, row["_count"], **below)
            if row["is_best"]:
                axes.add_patch(
                    Rectangle((x - 0.47, y - 0.46), 0.94, 0.92, fill=False, color=colour, lw=1.5)
                )
    image = axes.imshow(grid, cmap=colours, vmin=low, vmax=high, aspect="auto", origin="lower")
    axes.set_xticks(range(len(xs)), [unset(shown(x)) for x in xs], fontsize=8)
    axes.set_yticks(range(len(ys)), [unset(shown(y)) for y in ys], fontsize=8)
    return image


def _heights(column: pd.Series, most_ticks: int = 8) -> tuple[list[float], list[tuple[float, str]]]:
    """Place the values of an axis in [0, 1]; return each row's place, and the ticks."""
    values = sorted(set(map(canonical, column)), key=order)
    if all(isinstance(v, int | float) for v in values) and len(values) > 1:
        low, high = values[0], values[-1]
        log = low > 0 and high / low >= LOG_SPAN
        scale = math.log if log else float
        place = {v: (scale(v) - scale(low)) / (scale(high) - scale(low)) for v in values}
        ticks = values if len(values) <= most_ticks else [low, high]
    else:
        place = {v: i / (len(values) - 1) if len(values) > 1 else 0.5 for i, v in enumerate(values)}
        ticks = values
    texts = [f"{v:.4g}" if isinstance(v, float) else unset(shown(v)) for v in ticks]
    return [place[canonical(v)] for v in column], [
        (place[v], text) for v, text in zip(ticks, texts, strict=True)
    ]
