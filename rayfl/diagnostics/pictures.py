"""Pictures of a report: spectral densities, landscapes, clients' cosines, and measures against rounds."""

from typing import TYPE_CHECKING, Any

import numpy as np

# The object interface draws off screen and leaves pyplot's global state alone.
from matplotlib.figure import Figure

from rayfl.diagnostics.tables import label
from rayfl.flatness.spectrum import density as spectrum_density

if TYPE_CHECKING:
    from rayfl.diagnostics.measuring import Report

DPI = 150
_SPLITS = {"train": "tab:blue", "test": "tab:orange"}
_PLANES = {
    "random": "two random directions, filter-normalised",
    "clients": "the directions in which clients move the farthest",
}


def pictures(report: "Report") -> dict[str, Figure]:
    """Every picture that the report has numbers for, by a name for its file."""
    found: dict[str, Figure] = {}
    for round in report.rounds:
        spectra = {
            s: v for (r, s, prefix), v in report.spectra.items() if r == round and not prefix
        }
        if spectra:
            found[f"density-round-{round}"] = density(spectra, round)
        if (landscapes := report.landscapes.get(round)) is not None:
            found[f"landscape-round-{round}"] = landscape(landscapes, round)
        if (clients := report.clients.get((round, "alignment"))) is not None:
            found[f"clients-round-{round}"] = cosines(clients, round)
    if len(set(report.frame["round"])) > 1:
        found["rounds"] = rounds(report)
    return found


def density(spectra: dict[Any, dict[str, list[float]]], round: int) -> Figure:
    """The spectral density of each split's Hessian, logarithmic, as stochastic Lanczos quadrature has it."""
    figure = Figure(figsize=(6, 3.6), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    every = np.concatenate([np.asarray(s["eigenvalues"]) for s in spectra.values()])
    span = max(float(np.ptp(every)), 1e-12)
    points, width = (
        np.linspace(every.min() - 0.05 * span, every.max() + 0.05 * span, 2000),
        span / 100,
    )
    for split, spectrum in spectra.items():
        values, weights = np.asarray(spectrum["eigenvalues"]), np.asarray(spectrum["weights"])
        curve = spectrum_density(values, weights, points, width)
        axes.semilogy(points, curve, color=_SPLITS[split], label=split)
        axes.plot(values[:5], np.full(len(values[:5]), 1e-7 / span), "|", color=_SPLITS[split])
    axes.set(
        xlabel="eigenvalue of the Hessian (ticks: the five largest)",
        ylabel="spectral density",
        ylim=(1e-7 / span, None),
        title=f"round {round}",
    )
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def landscape(planes: dict[str, dict[str, list]], round: int) -> Figure:
    """The loss on each plane through w, which differ in size and so in colours; clients end at the dots."""
    figure = Figure(figsize=(5.6 * len(planes), 4.4), dpi=DPI, layout="constrained")
    panes = figure.subplots(1, len(planes), squeeze=False)[0]
    for axes, (name, plane) in zip(panes, planes.items(), strict=True):
        x, y, values = (np.asarray(plane[key]) for key in ("x", "y", "losses"))
        low = max(float(values.min()), 1e-8)
        levels = np.geomspace(low, max(float(values.max()), 1.001 * low), 25)
        image = axes.contourf(x, y, values, levels=levels, norm="log", cmap="viridis")
        axes.contour(x, y, values, levels=levels, colors="white", linewidths=0.3)
        axes.plot(*np.asarray(plane["points"]).T, "o", color="tab:red", ms=4, label="clients' ends")
        axes.plot(0, 0, "*", color="white", mec="black", ms=12, label="w")
        axes.set(title=_PLANES[name], xlim=(x[0], x[-1]), ylim=(y[0], y[-1]))
        axes.title.set_fontsize(9)
        figure.colorbar(image, ax=axes, label="training loss", format="%.3g")
    panes[0].legend(frameon=True, fontsize=8, loc="upper right")
    figure.suptitle(f"round {round}", fontsize=10)
    return figure


def cosines(clients: dict[str, Any], round: int) -> Figure:
    """The cosine of each two clients' gradients at w."""
    values, ids = np.asarray(clients["cosines"]), clients["ids"]
    size = 2.4 + 0.32 * len(ids)
    figure = Figure(figsize=(size + 1, size), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(values, cmap="RdBu", vmin=-1, vmax=1)
    axes.set_xticks(range(len(ids)), map(str, ids))
    axes.set_yticks(range(len(ids)), map(str, ids))
    axes.set(xlabel="client", ylabel="client", title=f"round {round}")
    if len(ids) <= 12:
        for (i, j), value in np.ndenumerate(values):
            shade = "white" if abs(value) > 0.6 else "black"
            axes.text(j, i, f"{value:.2f}", ha="center", va="center", color=shade, size=7)
    figure.colorbar(image, ax=axes, label="cos of the gradients at w")
    return figure


def rounds(report: "Report") -> Figure:
    """Accuracy, loss, the largest eigenvalue and the gaps against the rounds."""
    frame = report.frame
    metrics = [m for m in dict.fromkeys(frame["metric"]) if _is_drawn(m)]
    figure = Figure(figsize=(3.4 * (1 + len(metrics)), 3), dpi=DPI, layout="constrained")
    first, *panes = figure.subplots(1, 1 + len(metrics), squeeze=False)[0]
    history = report.subject.checkpoints[-1].history()
    tested = {r: row["test/accuracy"] for r, row in history.items() if "test/accuracy" in row}
    first.plot(list(tested), list(tested.values()), color=_SPLITS["test"])
    first.set(xlabel="round", title="accuracy")
    first.spines[["top", "right"]].set_visible(False)
    for axes, metric in zip(panes, metrics, strict=True):
        for split, part in frame[frame["metric"] == metric].groupby("split"):
            axes.plot(part["round"], part["value"], "o-", color=_SPLITS[str(split)], label=split)
        axes.set(xlabel="round", title=label(metric))
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[-1].legend(frameon=False)
    return figure


def _is_drawn(metric: str) -> bool:
    return metric in ("loss", "lambda1", "trace") or metric.startswith("gap_")
