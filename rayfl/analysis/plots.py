"""Figures of settings: heatmap and parallel coordinates, and what `rayfl.analysis.curves` shares with them.

From the tables of `results` to a matplotlib Figure.
"""

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

from rayfl.analysis.aggregate import Key, groups, summarize
from rayfl.analysis.metrics import metric
from rayfl.analysis.runs import axes as varying
from rayfl.analysis.tables import setting, shown
from rayfl.errors import ConfigError
from rayfl.text import unset

DPI = 150
MOST_PANELS = 12

_LOG_SPAN = 20  # an axis whose largest value is so many times the smallest is logarithmic


class Drawing(NamedTuple):
    """A figure, and what must be said about it."""

    figure: Figure
    notes: tuple[str, ...] = ()


def finished(runs: pd.DataFrame) -> pd.DataFrame:
    """The finished runs; ConfigError if there are none to draw."""
    done = runs.loc[runs["state"] == "finished"]
    if done.empty:
        raise ConfigError(f"nothing to draw: none of the {len(runs)} runs has finished")
    return done


def heatmap(runs: pd.DataFrame, by: Sequence[str] | None = None, name: str = "last10") -> Drawing:
    """Mean of a metric over the seeds, on the grid of two keys; further keys make panels.

    Default of `by`: two keys that vary, those with the most values; the others make the panels.
    """
    m, done = metric(name), finished(runs)
    across, up, *others = _two_axes(done, by)
    panels = groups(done, others)
    if len(panels) > MOST_PANELS:
        raise ConfigError(
            f"heatmap: {', '.join(others)} would make {len(panels)} panels, and {MOST_PANELS} can be read; "
            "name two axes with --by and choose among the others with --where"
        )
    cells = [summarize(members, [across, up], [name]) for _, members in panels]
    everything = pd.concat([cell.rows for cell in cells])
    xs, ys = (_distinct(everything.loc[:, key]) for key in (across, up))
    means = everything.loc[:, name] * m.scale
    columns = min(len(panels), 3)
    height = -(-len(panels) // columns)
    wide, tall = max(2.6, 0.75 * len(xs) + 1.0), max(2.2, 0.5 * len(ys) + 1.1)
    figure = Figure(figsize=(wide * columns + 1.2, tall * height), dpi=DPI, layout="constrained")
    panes = figure.subplots(height, columns, squeeze=False, sharex=True, sharey=True)
    image = None
    for axes, (key, _), cell in zip(panes.flat, panels, cells, strict=False):
        image = _grid(axes, cell.rows, (across, up), (xs, ys), name, (means.min(), means.max()))
        axes.set_title(group_name(others, key) if others else "", fontsize=9)
    for axes in list(panes.flat)[len(panels) :]:
        axes.set_visible(False)
    figure.supxlabel(across, fontsize=10)
    figure.supylabel(up, fontsize=10)
    if image is not None:
        figure.colorbar(image, ax=panes).set_label(f"{m.label},\nmean over seeds", fontsize=8)
    return Drawing(figure, tuple(dict.fromkeys(note for cell in cells for note in cell.notes)))


def parallel(runs: pd.DataFrame, by: Sequence[str] | None = None, name: str = "last10") -> Drawing:
    """Parallel coordinates: one line a group through its values, coloured by the metric's mean."""
    m = metric(name)
    summary = summarize(finished(runs), by, [name])
    rows = summary.rows.loc[summary.rows[name].notna()]
    if not summary.by or rows.empty:
        raise ConfigError(
            f"parallel: no config key varies between the runs, or none has {name}; name keys with --by"
        )
    worst_first = rows.sort_values(name, ascending=m.higher, kind="stable")
    figure = Figure(figsize=(1.5 * (len(summary.by) + 1) + 1.5, 4), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    heights = [_heights(worst_first.loc[:, key]) for key in summary.by]
    result = worst_first.loc[:, name].astype(float) * m.scale
    heights.append(_heights(result, most_ticks=2))
    colours = mpl.colormaps["viridis_r" if m.higher else "viridis"]  # the better, the darker
    norm = Normalize(result.min(), result.max())
    for i, value in enumerate(result):
        best = i == len(result) - 1
        axes.plot(
            [position[i] for position, _ in heights],
            color=colours(norm(value)),
            linewidth=3 if best else 1.3,
            label="best" if best else None,
        )
    for i, (_, ticks) in enumerate(heights):
        axes.axvline(i, color="0.6", linewidth=0.8)
        for height, text in ticks:
            axes.annotate(
                text,
                (i, height),
                (4, 0),
                textcoords="offset points",
                fontsize=8,
                va="center",
                bbox={"facecolor": "white", "alpha": 0.75, "edgecolor": "none", "pad": 0.8},
            )
    axes.set_xticks(range(len(heights)), [*summary.by, m.name], fontsize=8)
    axes.set(yticks=[], ylim=(-0.06, 1.06), xlim=(-0.1, len(heights) - 0.6))
    axes.spines[:].set_visible(False)
    axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(0, 1.1))
    figure.colorbar(ScalarMappable(norm, colours), ax=axes, label=m.label)
    return Drawing(figure, summary.notes)


def save(figure: Figure, file: Path | IO[bytes], form: str | None = None) -> None:
    """Write the figure as `form` or the file's suffix says; the same figure gives the same bytes."""
    form = form or Path(str(file)).suffix.lower().removeprefix(".")
    with mpl.rc_context({"svg.hashsalt": "rayfl"}):
        figure.savefig(file, format=form, metadata={"Date": None} if form == "svg" else None)


def group_name(by: Sequence[str], key: Key, n: int | None = None) -> str:
    """A group in words, for a figure; what it does not have is left out."""
    point = {k: value for k, value in zip(by, key, strict=True) if value is not None}
    words = ", ".join(setting(point, by)) or "all runs"
    return unset(words if n is None else f"{words} (n={n})")


def _two_axes(runs: pd.DataFrame, by: Sequence[str] | None) -> list[str]:
    """Two keys for the axes, and then those of the panels."""
    keys = varying(runs)
    if by is not None:
        if len(by) != 2:
            raise ConfigError(f"--by = '{','.join(by)}': a heatmap has two axes, name two keys")
        groups(runs, by)  # complains about unknown keys
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
    name: str,
    limits: tuple[float, float],
) -> Any:
    """One panel: colour and number in each cell; no finished run stays white."""
    (across, up), (xs, ys), m = keys, ticks, metric(name)
    grid = np.full((len(ys), len(xs)), np.nan)
    for row in rows.to_dict("records"):
        grid[ys.index(row[up]), xs.index(row[across])] = row[name] * m.scale
    low, high = limits
    colours = mpl.colormaps["viridis" if m.higher else "viridis_r"]
    image = axes.imshow(grid, cmap=colours, vmin=low, vmax=high, aspect="auto", origin="lower")
    for (y, x), value in np.ndenumerate(grid):
        if not math.isnan(value):
            red, green, blue, _ = colours((value - low) / (high - low) if high > low else 0.5)
            dark = 0.299 * red + 0.587 * green + 0.114 * blue < 0.5
            best = value == (high if m.higher else low)
            axes.text(
                x,
                y,
                f"{value:.{min(m.digits, 3)}f}",
                ha="center",
                va="center",
                size=8,
                color="white" if dark else "black",
                weight="bold" if best else None,
            )
    axes.set_xticks(range(len(xs)), [unset(shown(x)) for x in xs], fontsize=8)
    axes.set_yticks(range(len(ys)), [unset(shown(y)) for y in ys], fontsize=8)
    return image


def _distinct(column: pd.Series) -> list[Any]:
    """Values in the order that `groups` gives them."""
    return [key for (key,), _ in groups(column.to_frame(), [str(column.name)])]


def _heights(column: pd.Series, most_ticks: int = 8) -> tuple[list[float], list[tuple[float, str]]]:
    """Where each value of an axis lies in [0, 1], and the ticks."""
    values = _distinct(column)
    if all(isinstance(v, int | float) for v in values) and len(values) > 1:
        low, high = values[0], values[-1]
        log = low > 0 and high / low >= _LOG_SPAN
        scale = math.log if log else float
        place = {v: (scale(v) - scale(low)) / (scale(high) - scale(low)) for v in values}
        ticks = values if len(values) <= most_ticks else [low, high]
    else:
        place = {v: i / (len(values) - 1) if len(values) > 1 else 0.5 for i, v in enumerate(values)}
        ticks = values
    texts = [f"{v:.4g}" if isinstance(v, float) else unset(shown(v)) for v in ticks]
    of_rows = [place[key] for key in (_distinct(column.loc[[i]])[0] for i in column.index)]
    return of_rows, [(place[v], text) for v, text in zip(ticks, texts, strict=True)]
