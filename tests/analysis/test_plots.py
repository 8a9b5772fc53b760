"""Figures: what is drawn is what the runs hold."""

import io

import numpy as np
import pytest
from conftest import rarely
from stored import ROUNDS, SEEDS, rounds, top

from rayfl.analysis import curves, plots
from rayfl.analysis import runs as store
from rayfl.analysis.metrics import COSTS
from rayfl.errors import ConfigError

TABLE = ("fedavg", "fedwmsam")
RHO = "algorithm.name=fedwmsam and algorithm.rho=0.1 and partition.alpha=0.5"


@pytest.fixture(scope="module")
def runs(stored):
    return store.load("rayfl", stored.uri, metrics=["last10", "rounds_to_0.7"])


@pytest.fixture(scope="module")
def history(runs, stored):
    metrics = {name for x in COSTS for name in curves.curve_metrics(x)} | {"server/alpha"}
    return store.histories(runs, sorted(metrics), stored.uri)


def lines(axes):
    return {line.get_label(): line.get_xydata() for line in axes.get_lines()}


@pytest.mark.parametrize("x", [*COSTS])
def test_curves_are_means_over_seeds(runs, history, x):
    drawing = curves.curves(runs, history, x=x)
    found = lines(drawing.figure.axes[0])
    assert len(found) == 6
    points = found[
        "fedwmsam, rho=0.1, partition.alpha=0.5 (n=3)"
    ]  # without runs that did not finish
    seeds = [rounds(top("fedwmsam", 0.1, 0.5, s), s) for s in SEEDS]
    accuracy = [np.mean([s[r]["test/accuracy"] for s in seeds]) for r in range(1, ROUNDS + 1)]
    np.testing.assert_allclose(points[:, 1], accuracy)
    cost = {
        "rounds": lambda m: 1.0,
        "bytes": lambda m: (m["cost/bytes_up"] + m["cost/bytes_down"]) / 1e6,
        "seconds": lambda m: m["time/round_s"],
        "backward_passes": lambda m: m["cost/backward_passes"],
    }[x]
    spent = np.cumsum([np.mean([cost(s[r]) for s in seeds]) for r in range(1, ROUNDS + 1)])
    np.testing.assert_allclose(points[:, 0], spent)


@pytest.mark.parametrize(
    ("name", "drawn"),
    [("train/loss", "train/loss"), ("loss", "test/loss"), ("final", "test/accuracy")],
)
def test_curves_are_of_the_metric_asked_for(stored, name, drawn):
    runs = store.load("rayfl", stored.uri, RHO, metrics=[name])
    history = store.histories(runs, curves.curve_metrics("rounds", name), stored.uri)
    axes = curves.curves(runs, history, name=name).figure.axes[0]
    seeds = [rounds(top("fedwmsam", 0.1, 0.5, s), s) for s in SEEDS]
    expected = [np.mean([s[r][drawn] for s in seeds]) for r in range(1, ROUNDS + 1)]
    np.testing.assert_allclose(axes.get_lines()[0].get_ydata(), expected)
    assert axes.get_ylabel() == drawn.replace("/", " ")


def test_dollar_signs_are_no_mathematics(runs, history):
    """Text between two dollar signs would be drawn as a formula, or end in a traceback."""
    renamed = runs.assign(**{"algorithm.name": "$\\frac$ $x$"})
    drawings = (
        curves.curves(renamed, history, by=["algorithm.name", "algorithm.rho"]),
        curves.traces(renamed, history, by=["algorithm.name", "algorithm.rho"]),
        plots.heatmap(renamed, by=["algorithm.name", "algorithm.rho"]),
        plots.parallel(renamed, by=["algorithm.name", "algorithm.rho"]),
    )
    for drawing in drawings:
        stream = io.BytesIO()
        plots.save(drawing.figure, stream, "svg")
        assert b"$\\frac$ $x$" in stream.getvalue()


def test_rounds_are_counted_in_whole_numbers(runs, history):
    few = history[history["round"] <= 3]
    for drawing in (curves.curves(runs, few), curves.traces(runs, few)):
        axes = drawing.figure.axes[-1]
        assert all(tick == int(tick) for tick in axes.get_xticks())


def test_lines_can_be_told_apart_without_colour(runs, history):
    drawing = curves.curves(runs, history)
    styles = [
        (line.get_color(), line.get_linestyle()) for line in drawing.figure.axes[0].get_lines()
    ]
    assert len(set(styles)) == 6
    assert len({dash for _, dash in styles}) == 4


def test_of_many_groups_the_best_are_drawn(runs, history, monkeypatch):
    monkeypatch.setattr(curves, "MOST_LINES", 2)
    runs = plots.finished(runs)
    drawing = curves.curves(runs, history)
    assert sorted(lines(drawing.figure.axes[0])) == [
        "fedwmsam, rho=0.1, partition.alpha=0.1 (n=3)",
        "fedwmsam, rho=0.1, partition.alpha=0.5 (n=3)",
    ]
    assert drawing.notes == ("drawn are the 2 best of 6 groups by last10",)
    assert len(curves.drawn(runs)) == 2 * 3


@pytest.mark.parametrize("lines", [2, 6])
def test_axes_keep_their_room_beside_long_labels(runs, history, lines):
    """Labels in rows below, in a figure that grows; short ones leave it as it was."""
    short = plots.finished(runs)
    short = short[short["algorithm.name"].eq("fedavg")] if lines == 2 else short
    names = {name: f"a_package.with_a_module:And{'A' * 130}Class{name}" for name in TABLE}
    long = short.assign(**{"algorithm.name": short["algorithm.name"].map(names)})
    by = ["algorithm.name", "algorithm.rho", "partition.alpha"]
    heights = []
    for table in (short, long):
        figure = curves.curves(table, history, by).figure
        figure.draw_without_rendering()
        (axes,), (legend,) = figure.axes, figure.legends
        heights.append(axes.get_window_extent().height)
        box, whole = legend.get_window_extent(), figure.bbox
        assert min(box.x0, box.y0) >= 0
        assert box.x1 <= whole.x1
        assert not box.overlaps(axes.get_window_extent())
    assert heights[1] == pytest.approx(heights[0], rel=0.2)


def test_traces_are_of_runs_that_have_the_scalar(runs, history):
    assert curves.trace_metrics(runs) == ["server/alpha"]
    scalars = history[["run_id", "round", "server/alpha"]]
    found = lines(curves.traces(runs, scalars).figure.axes[0])
    assert len(found) == 4
    assert not any("fedavg" in label for label in found)
    for points in found.values():
        np.testing.assert_allclose(points[:, 1], 0.1 + 0.01 * points[:, 0])
    fedavg = runs[runs["algorithm.name"] == "fedavg"].drop(columns="server/alpha")
    with pytest.raises(ConfigError, match="no server of these runs keeps a scalar"):
        curves.trace_metrics(fedavg)


def test_heatmap_holds_the_means(runs, stored):
    figure = plots.heatmap(runs, ["algorithm.rho", "partition.alpha"]).figure
    panels = {axes.get_title(): axes for axes in figure.axes if axes.get_title()}
    assert sorted(panels) == ["fedavg", "fedwmsam"]
    grid = panels["fedwmsam"].images[0].get_array()
    mean = stored.known.groupby(["rho", "alpha"])["last10"].mean()
    for x, rho in enumerate([0.05, 0.1], start=1):  # the first column is for runs without rho
        for y, alpha in enumerate([0.1, 0.5]):
            assert grid[y, x] == pytest.approx(mean[rho, alpha])
    assert np.ma.getmaskarray(grid)[:, 0].all()
    texts = {text.get_text() for text in panels["fedwmsam"].texts}
    assert texts == {f"{value:.3f}" for value in mean}


def test_parallel_has_a_line_for_each_group(runs):
    axes = plots.parallel(plots.finished(runs)).figure.axes[0]
    best = [line for line in axes.get_lines() if line.get_label() == "best"]
    paths = [line for line in axes.get_lines() if len(line.get_xdata()) == 4]
    assert len(paths) == 6
    np.testing.assert_allclose(
        best[0].get_ydata(), [1, 1, 1, 1]
    )  # the last of each axis is the best


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda r: plots.heatmap(r, ["algorithm.rho"]), "a heatmap has two axes, name two keys"),
        (lambda r: plots.heatmap(r[r["seed"] == 9]), "none of the 0 runs has finished"),
        (lambda r: plots.heatmap(r[r["algorithm.name"] == "fedavg"]), "but partition.alpha varies"),
        (lambda r: plots.parallel(r.iloc[:1]), "no config key varies"),
        (lambda r: curves.curves(r[r["state"] == "failed"], r), "none of the 1 runs has finished"),
    ],
)
def test_what_cannot_be_drawn(runs, draw, message):
    with pytest.raises(ConfigError, match=message):
        draw(runs)


@pytest.mark.parametrize("suffix", ["svg", *rarely(["png", "pdf"])])
def test_the_same_figure_is_the_same_file(runs, history, tmp_path, suffix):
    for name in ("a", "b"):
        plots.save(curves.curves(runs, history).figure, tmp_path / f"{name}.{suffix}")
    content = (tmp_path / f"a.{suffix}").read_bytes()
    assert content == (tmp_path / f"b.{suffix}").read_bytes()
    assert content.startswith({"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}[suffix])
