"""Pictures that compare the points of a sweep: on the same directions, axes and colours."""

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

# The object interface draws off screen and leaves pyplot's global state alone.
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from rayfl.analysis.aggregate import groups
from rayfl.analysis.curves import COLOURS, DASHES
from rayfl.analysis.naming import row_name
from rayfl.analysis.plots import DPI, LOG_SPAN
from rayfl.diagnostics.sweep_tables import PREFIX, default_columns
from rayfl.diagnostics.tables import label
from rayfl.flatness.spectrum import density

if TYPE_CHECKING:
    from rayfl.diagnostics.sweeps import SweepReport

MOST_POINTS = 16
_COLUMNS = 4  # of panels
_ENTRY = 1.7  # inches of a legend's entry


def pictures_of_sweep(report: "SweepReport") -> dict[str, Figure]:
    """Every picture that the report has numbers for, by a name for its file; up to 16 points."""
    points = _points(report)
    if not 1 < len(points) <= MOST_POINTS:
        return {}
    found: dict[str, Figure] = {}
    if (
        "test/accuracy" in report.metrics
        and len(default_columns(report.metrics, report.question)) > 1
    ):
        found["accuracy"] = accuracy(report, points)
    last = {name: _seeds(report, members) for name, members in points.items()}
    if any(spectra for *_, spectra in last.values()):
        found["densities"] = densities({n: spectra for n, (_, spectra) in last.items()})
    planes = {name: found for name, (found, _) in last.items() if found}
    if planes:
        first = {name: every[0] for name, every in planes.items()}
        found["landscapes"] = landscapes({n: plane["random"] for n, plane in first.items()})
        found["slices"] = slices({n: [p["random"] for p in every] for n, every in planes.items()})
    return found


def accuracy(report: "SweepReport", points: dict[str, pd.DataFrame]) -> Figure:
    """Accuracy against each measure: a dot a run, a colour a point."""
    metrics = default_columns(report.metrics, report.question)[1:]
    rows, columns = -(-len(metrics) // _COLUMNS), min(len(metrics), _COLUMNS)
    figure = Figure(figsize=(3.1 * columns, 2.8 * rows + 0.8), dpi=DPI, layout="constrained")
    panes = figure.subplots(rows, columns, squeeze=False, sharey=True)
    for axes, metric in zip(panes.flat, metrics, strict=False):
        for i, (name, members) in enumerate(points.items()):
            style = {"color": COLOURS[i % len(COLOURS)], "marker": "os^Dvp"[i // len(COLOURS)]}
            axes.plot(members[metric], members["test/accuracy"], ls="", ms=5, label=name, **style)
        values = report.runs[metric].to_numpy(dtype=float)
        if values.min() > 0 and values.max() > LOG_SPAN * values.min():
            axes.set_xscale("log")
            _label_sparsely(axes.xaxis)
        axes.set_xlabel(label(metric.removeprefix(PREFIX)))
        axes.spines[["top", "right"]].set_visible(False)
    for axes in panes.flat[len(metrics) :]:
        axes.set_axis_off()
    for axes in panes[:, 0]:
        axes.set_ylabel("test accuracy")
    _legend(figure, panes.flat[0], len(points))
    return figure


def densities(spectra: dict[str, list[dict[str, Any]]]) -> Figure:
    """The mean of the seeds' spectral densities of the training loss, logarithmic."""
    figure = Figure(figsize=(7, 4.2), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    every = np.concatenate([np.asarray(s["eigenvalues"]) for of in spectra.values() for s in of])
    low, high = float(every.min()), float(every.max())
    span, highest = max(high - low, 1e-12), 1.0 / (high - low + 1e-12)
    ticks = np.linspace(low - 0.03 * span, high + 0.03 * span, 2000)
    for i, (name, of_seeds) in enumerate(spectra.items()):
        curves = [
            density(np.asarray(s["eigenvalues"]), np.asarray(s["weights"]), ticks, span / 150)
            for s in of_seeds
        ]
        if curves:
            mean = np.mean(curves, axis=0)
            highest = max(highest, float(mean.max()))
            axes.semilogy(ticks, mean, label=name, **_style(i))
    axes.set(
        xlabel="eigenvalue of the training loss's Hessian",
        ylabel="spectral density",
        ylim=(1e-6 / span, 3 * highest),
    )
    axes.spines[["top", "right"]].set_visible(False)
    _legend(figure, axes, len(spectra))
    return figure


def landscapes(planes: dict[str, dict[str, list]]) -> Figure:
    """The loss on the plane of the same two directions, filter-normalised, with one scale of colours."""
    rows, columns = -(-len(planes) // _COLUMNS), min(len(planes), _COLUMNS)
    figure = Figure(figsize=(2.6 * columns + 0.8, 2.6 * rows), dpi=DPI, layout="constrained")
    panes = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    every = np.concatenate([np.ravel(plane["losses"]) for plane in planes.values()])
    low = max(float(every.min()), 1e-8)
    levels = np.geomspace(low, max(float(np.quantile(every, 0.98)), 1.001 * low), 25)
    image = None
    for axes, (name, plane) in zip(panes.flat, planes.items(), strict=False):
        x, y, losses = (np.asarray(plane[key]) for key in ("x", "y", "losses"))
        image = axes.contourf(
            x, y, losses, levels=levels, norm="log", cmap="viridis", extend="both"
        )
        axes.contour(x, y, losses, levels=levels, colors="white", linewidths=0.25)
        axes.plot(*np.asarray(plane["points"]).T, "o", color="tab:red", ms=2.5)
        axes.plot(0, 0, "*", color="white", mec="black", ms=9)
        axes.set_title(name, fontsize=9)
        axes.set(xlim=(x[0], x[-1]), ylim=(y[0], y[-1]))
    for axes in panes.flat[len(planes) :]:
        axes.set_axis_off()
    assert image is not None
    bar = figure.colorbar(image, ax=panes, label="training loss", format="%.3g", aspect=30)
    bar.ax.minorticks_off()
    return figure


def slices(planes: dict[str, list[dict[str, list]]]) -> Figure:
    """The loss along the first of these directions, a line a point: the mean of its seeds."""
    figure = Figure(figsize=(7, 4.2), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    for i, (name, of_seeds) in enumerate(planes.items()):
        middle = [np.asarray(p["losses"])[len(p["y"]) // 2] for p in of_seeds]
        axes.plot(of_seeds[0]["x"], np.mean(middle, axis=0), label=name, **_style(i))
    axes.set(
        xlabel="along a random direction, filter-normalised",
        ylabel="training loss",
        yscale="log",
    )
    _label_sparsely(axes.yaxis)
    axes.spines[["top", "right"]].set_visible(False)
    _legend(figure, axes, len(planes))
    return figure


def _points(report: "SweepReport") -> dict[str, pd.DataFrame]:
    """The runs of each point, by its name."""
    return {row_name(report.by, key): members for key, members in groups(report.runs, report.by)}


def _seeds(
    report: "SweepReport", members: pd.DataFrame
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The planes and the spectra of a point's runs, the smallest seed first."""
    planes, spectra = [], []
    for run in members.sort_values("seed").to_dict("records"):
        found = report.reports[run["run_id"]]
        if run["round"] in found.landscapes:
            planes.append(found.landscapes[run["round"]])
        if (spectrum := found.spectra.get((run["round"], "train", ""))) is not None:
            spectra.append(spectrum)
    return planes, spectra


def _style(i: int) -> dict[str, Any]:
    return {
        "color": COLOURS[i % len(COLOURS)],
        "ls": DASHES[(i // len(COLOURS)) % len(DASHES)],
        "lw": 1.4,
    }


def _label_sparsely(axis: Axis) -> None:
    """Label a logarithmic axis twice in each decade, in plain numbers."""
    axis.set_major_locator(LogLocator(subs=(1, 3)))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter(NullFormatter())


def _legend(figure: Figure, axes: Axes, entries: int) -> None:
    columns = min(entries, math.ceil(entries / 2) if entries > _COLUMNS else entries)
    figure.legend(
        *axes.get_legend_handles_labels(),
        loc="outside lower center",
        ncols=min(columns, int(figure.get_figwidth() / _ENTRY)),
        frameon=False,
        fontsize=8,
    )
