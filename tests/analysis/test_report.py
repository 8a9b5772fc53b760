"""The page, and the commands on it."""

import base64
import html
import re
import shlex

import pytest

from rayfl.analysis import report
from rayfl.analysis import runs as store
from rayfl.analysis.rerun import RerunCommands, override
from rayfl.config.schema import load_config


@pytest.fixture(scope="module")
def runs(stored):
    return store.load("rayfl", stored.uri)


@pytest.fixture(scope="module")
def page(stored):
    return report.render("rayfl", stored.uri, title="<Momentum> & SAM")


def test_commands_give_the_same_experiments_again(runs, tmp_path):
    """The identity of what a command runs is the identity that was recorded."""
    again = RerunCommands(runs)
    (tmp_path / "base.yaml").write_text(again.base_yaml)
    for i, recorded in enumerate(runs["config_hash"]):
        rayfl, run, base, *overrides = shlex.split(again.command(i))
        assert (rayfl, run, base) == ("rayfl", "run", "base.yaml")
        assert load_config(tmp_path / base, overrides).hash == recorded


def test_commands_say_what_differs_and_no_more(runs):
    again = RerunCommands(runs[runs["algorithm.name"] == "fedavg"])
    assert again.overrides(1) == ["partition.alpha=0.1", "seed=1"]
    assert "algorithm:\n  name: fedavg\n" in again.base_yaml


@pytest.mark.parametrize(
    "value",
    [
        "word",
        "true",
        "null",
        "1e3",
        "0x10",
        "a: b",
        "[1",
        "",
        " x ",
        "é",
        1e-05,
        (1, 2),
        None,
        True,
    ],
)
def test_overrides_are_read_as_they_were_meant(value):
    from rayfl.config.layers import parse_overrides

    expected = list(value) if isinstance(value, tuple) else value
    assert parse_overrides([override("a.b", value)]) == {"a": {"b": expected}}


def test_the_page_is_alone_in_the_world(page):
    """No address that a browser would fetch; figures are inside."""
    outside = re.sub(r"base64,[A-Za-z0-9+/=]+", "", page)
    assert not re.findall(r"(?:src|href)\s*=\s*[\"'](?!data:)", outside)
    assert "http" not in outside
    assert "@import" not in outside
    assert "url(" not in outside
    figures = re.findall(r"data:image/svg\+xml;base64,([A-Za-z0-9+/=]+)", page)
    assert len(figures) == 6  # three curves, a heatmap, parallel coordinates, traces
    for figure in figures:
        assert b"<svg" in base64.b64decode(figure)
        assert b"<script" not in base64.b64decode(figure)


def test_texts_are_escaped(page):
    assert "<Momentum>" not in page
    assert "&lt;Momentum&gt; &amp; SAM" in page
    assert "<b>is</b> not" not in page
    assert "the loss &lt;b&gt;is&lt;/b&gt; not finite &amp; more" in page


def test_the_page_has_the_numbers(page, stored):
    known = stored.known[(stored.known["rho"] == 0.1) & (stored.known["alpha"] == 0.5)]["last10"]
    assert f"{known.mean():.4f} ± {known.std():.4f}" in page
    for count, state in ((18, "finished"), (1, "failed"), (1, "stopped early"), (1, "infeasible")):
        assert f"<b>{count}</b> {state}" in page
    for reason in (
        "ASHA: below the half at round 4",
        "partition.alpha = 1e-9: no client has a sample",
    ):
        assert reason in page


@pytest.mark.slow
def test_the_commands_of_figures_work(page, stored, tmp_path, monkeypatch):
    """As shown on the page, each draws the figure."""
    from typer.testing import CliRunner

    from rayfl.cli.main import app

    monkeypatch.chdir(tmp_path)
    shown = [
        html.unescape(c) for c in re.findall(r"<code>(rayfl (?:plot|results) .*?)</code>", page)
    ]
    assert len(shown) == 7
    for command in shown:
        done = CliRunner().invoke(app, shlex.split(command)[1:], catch_exceptions=False)
        assert done.exit_code == 0, command
    assert sorted(p.name for p in tmp_path.glob("*.png")) == [
        "curves.png",
        "heatmap.png",
        "parallel.png",
        "traces.png",
    ]


def test_a_page_without_a_finished_run(stored):
    page = report.render("rayfl", stored.uri, where="state=running")
    assert "No run has finished" in page
    assert "<b>1</b> running" in page
