"""Figures of runs: one function a kind, from the tables of `results` to a matplotlib Figure.

Colours are those of Okabe and Ito, which the colour-blind tell apart, and lines differ in their dashes
too, so that a print in grey can be read. A band is one standard deviation over the seeds.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple

import matplotlib as mpl
import numpy as np
import pandas as pd

# The object interface draws off screen and leaves pyplot's global state alone.
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from rayfl.errors import ConfigError
from tuning.groups import Key, groups, summarize
from tuning.metrics import metric
from tuning.results import axes as varying
from tuning.tables import shown

Abscissa = Literal["rounds", "bytes", "seconds"]

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
DASHES = ("-", "--", "-.", ":")
MOST_LINES = 10
MOST_PANELS = 12

_DPI = 150
_X = {
    "rounds": ("round", (), 1.0),
    "bytes": ("traffic up and down (MB)", ("cost/bytes_up", "cost/bytes_down"), 1e-6),
    "seconds": ("training time (s)", ("time/round_s",), 1.0),
}
_LEGEND_BELOW = 4  # lines up to which the legend is below the axes
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


def curve_metrics(x: str) -> list[str]:
    """Metrics by round that `curves` needs."""
    return ["test/accuracy", *_X[x][1]]


def trace_metrics(runs: pd.DataFrame) -> list[str]:
    """The scalars that the servers of these runs keep, such as `server/alpha`."""
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
    """The runs whose histories `curves` needs, or `traces` of these scalars."""
    chosen, _, _ = _chosen(_keeping(runs, scalars), by, name)
    return pd.concat([members for _, members in chosen])


def curves(
    runs: pd.DataFrame,
    rounds: pd.DataFrame,
    by: Sequence[str] | None = None,
    x: Abscissa = "rounds",
    name: str = "last10",
) -> Drawing:
    """Test accuracy against rounds, traffic or time: mean over the seeds, one line a group.

    `rounds` are the histories of the runs' `curve_metrics(x)`. Traffic and time add up over the rounds, and
    are averaged over the seeds of a group at each round. `name`: metric by which the best groups are chosen
    if there are too many.
    """
    label, costs, scale = _X[x]
    chosen, by, notes = _chosen(runs, by, name)
    spent = rounds.sort_values(["run_id", "round"])
    if costs:
        total = spent[list(costs)].sum(axis=1).groupby(spent["run_id"]).cumsum() * scale
        spent = spent.assign(_x=total)
    else:
        spent = spent.assign(_x=spent["round"].astype(float))
    figure = Figure(figsize=(_width(chosen), 4), dpi=_DPI, layout="constrained")
    axes = figure.subplots()
    for i, (key, members) in enumerate(chosen):
        of_group = spent.loc[spent["run_id"].isin(members["run_id"])].dropna(subset="test/accuracy")
        _line(axes, of_group, "test/accuracy", i, _name(by, key, len(members)))
    axes.set(xlabel=label, ylabel="test accuracy")
    _finish(figure, axes, by, chosen)
    return Drawing(figure, notes)


def traces(
    runs: pd.DataFrame,
    rounds: pd.DataFrame,
    by: Sequence[str] | None = None,
    name: str = "last10",
) -> Drawing:
    """What the server keeps as a scalar (an adaptive alpha, a cosine) by round: one panel each.

    `rounds` are the histories of the runs' `trace_metrics`.
    """
    scalars = [c for c in rounds.columns if c.startswith("server/")]
    chosen, by, notes = _chosen(_keeping(runs, scalars), by, name)
    size = (_width(chosen), 1.2 + 2.4 * len(scalars))
    figure = Figure(figsize=size, dpi=_DPI, layout="constrained")
    panels = figure.subplots(len(scalars), 1, sharex=True, squeeze=False)[:, 0]
    spent = rounds.assign(_x=rounds["round"].astype(float))
    for axes, scalar in zip(panels, scalars, strict=True):
        for i, (key, members) in enumerate(chosen):
            of_group = spent.loc[spent["run_id"].isin(members["run_id"])].dropna(subset=scalar)
            _line(axes, of_group, scalar, i, _name(by, key, len(members)))
        axes.set(ylabel=scalar)
        _plain(axes)
    panels[-1].set(xlabel="round")
    _finish(figure, panels[-1], by, chosen)
    return Drawing(figure, notes)


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
    figure = Figure(figsize=(wide * columns + 1.2, tall * height), dpi=_DPI, layout="constrained")
    panes = figure.subplots(height, columns, squeeze=False, sharex=True, sharey=True)
    image = None
    for axes, (key, _), cell in zip(panes.flat, panels, cells, strict=False):
        image = _grid(axes, cell.rows, (across, up), (xs, ys), name, (means.min(), means.max()))
        axes.set_title(_name(others, key) if others else "", fontsize=9)
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
    figure = Figure(figsize=(1.5 * (len(summary.by) + 1) + 1.5, 4), dpi=_DPI, layout="constrained")
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


def _keeping(runs: pd.DataFrame, scalars: Sequence[str]) -> pd.DataFrame:
    return runs.loc[runs[list(scalars)].notna().any(axis=1)] if scalars else runs


def _chosen(
    runs: pd.DataFrame, by: Sequence[str] | None, name: str
) -> tuple[list[tuple[Key, pd.DataFrame]], list[str], tuple[str, ...]]:
    """The groups to draw, the keys that make them, and a note if those are not all groups."""
    done = finished(runs)
    by = varying(done) if by is None else list(by)
    grouped, summary = groups(done, by), summarize(done, by, [name])
    notes = summary.notes
    if len(grouped) > MOST_LINES:
        ranked = summary.rows.loc[:, name].sort_values(
            ascending=not metric(name).higher, kind="stable"
        )
        kept = sorted(ranked.index[:MOST_LINES])
        note = f"drawn are the {MOST_LINES} best of {len(grouped)} groups by {name}"
        grouped, notes = [grouped[i] for i in kept], (note, *notes)
    return grouped, by, notes


def _line(axes: Axes, rounds: pd.DataFrame, column: str, i: int, label: str) -> None:
    """Mean of the runs at each round, with its band; nothing if no run has the column."""
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


def _name(by: Sequence[str], key: Key, n: int | None = None) -> str:
    """A group in words: names bare, other keys by their last part; what it does not have is left out."""
    parts = [
        shown(value) if name.endswith(".name") else f"{_short(name, by)}={shown(value)}"
        for name, value in zip(by, key, strict=True)
        if value is not None
    ]
    text = ", ".join(parts) or "all runs"
    return text if n is None else f"{text} (n={n})"


def _short(key: str, among: Sequence[str]) -> str:
    """The last part of a dotted key, unless it is ambiguous; the Dirichlet parameter is never bare."""
    last = key.rpartition(".")[2]
    same = [other for other in among if other.rpartition(".")[2] == last]
    return key if len(same) > 1 or last == "alpha" else last


def _width(chosen: Sequence[Any]) -> float:
    """Inches: with room for the legend, if it is beside the axes."""
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
    axes.set_xticks(range(len(xs)), [shown(x) for x in xs], fontsize=8)
    axes.set_yticks(range(len(ys)), [shown(y) for y in ys], fontsize=8)
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
    texts = [f"{v:.4g}" if isinstance(v, float) else shown(v) for v in ticks]
    of_rows = [place[key] for key in (_distinct(column.loc[[i]])[0] for i in column.index)]
    return of_rows, [(place[v], text) for v, text in zip(ticks, texts, strict=True)]
