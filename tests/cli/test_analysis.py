"""The commands that ask MLflow, as a user types them."""

import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from conftest import ROOT, rarely

from rayfl.cli import main

RAYFL = Path(sys.executable).parent / "rayfl"


@pytest.fixture
def ask(monkeypatch, capsys, tmp_path, stored):
    """Calls the command on the stored runs, in an empty directory: exit code, stdout and stderr."""
    monkeypatch.delenv("COLUMNS", raising=False)  # which some library may have set
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path[:])

    def call(*arguments, uri=("--uri", stored.uri)):
        monkeypatch.setattr(sys, "argv", ["rayfl", *arguments, *uri])
        with pytest.raises(SystemExit) as ended:
            main.main()
        out, err = capsys.readouterr()
        return ended.value.code, out, err

    return call


def test_results_table(ask, stored):
    code, out, _ = ask("results", "--experiment", "rayfl", "--where", "state in [finished,running]")
    assert code == 0
    header, *rows = [
        line.split() for line in out.splitlines() if line.startswith("  ") and line.strip()
    ][:7]
    assert header[:3] == ["algorithm.name", "algorithm.rho", "partition.alpha"]
    best = stored.known[(stored.known["rho"] == 0.1) & (stored.known["alpha"] == 0.5)]["last10"]
    expected = f"fedwmsam 0.1 0.5 {best.mean():.4f} ± {best.std():.4f} 3 12 1 *"
    assert rows[-1] == expected.split()
    assert out.count("*") == 3  # a row for each alpha, and what it means


WIDE = "last10,loss,seconds,bytes,rounds_to_0.5"


@pytest.mark.parametrize("width", [60, 80, 120])
@pytest.mark.parametrize(
    "command",
    [
        ("results", "--metric", WIDE),
        ("compare", "algorithm.name=fedwmsam,algorithm.rho=0.1", "fedavg"),
    ],
)
def test_no_number_is_cut_on_a_narrow_terminal(ask, monkeypatch, width, command):
    _, whole, _ = ask(*command, "--experiment", "rayfl")
    monkeypatch.setenv("COLUMNS", str(width))
    code, out, _ = ask(*command, "--experiment", "rayfl")
    assert code == 0
    tables = [line for line in out.splitlines() if line.startswith("  ")]
    assert max(map(len, tables)) <= width
    numbers = re.compile(r"-?\d+\.\d+(?: ± \d+\.\d+)?")
    assert set(numbers.findall(whole)) <= set(numbers.findall(out))
    assert "…" not in out
    if "results" in command:
        assert ("parts: they need more than" in out) == (len(whole.splitlines()[1]) > width)


def test_one_run_says_which_it_is(ask, stored):
    code, out, _ = ask(
        "results",
        "--experiment",
        "rayfl",
        "--where",
        "algorithm.rho=0.1 and partition.alpha=0.5 and seed=0",
    )
    assert code == 0
    note = re.search(r"^note: run (.+), id ([0-9a-f]{32})$", out, re.MULTILINE)
    assert note
    assert re.search(rf"^ +run +last10 .*\n.*\n  {note[2][:8]} ", out, re.MULTILINE)


def test_versions_are_shown_without_importing_anything():
    code = "import sys; sys.argv = ['rayfl', '--version']; from rayfl.cli.main import script\n"
    code += "try: script()\nfinally: assert not {'torch', 'ray', 'mlflow'} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    lines = done.stdout.splitlines()
    assert (done.returncode, done.stderr) == (0, "")
    assert [line.split()[0] for line in lines] == ["rayfl", "Python", "torch", "ray", "mlflow"]
    assert all(re.fullmatch(r"\w+ \d+\.\d+\S*", line) for line in lines)


@pytest.mark.parametrize("form", ["csv", "json"])
def test_results_for_programs(ask, stored, form):
    command = ["results", "--experiment", "rayfl", "--metric", "last10,bytes", "--format", form]
    by = ("--by", "algorithm.name,partition.alpha", "--over", "algorithm.rho")
    code, out, err = ask(*command, *by)
    assert code == 0
    rows = pd.DataFrame(json.loads(out)) if form == "json" else pd.read_csv(io.StringIO(out))
    assert list(rows["n"]) == [3, 3, 6, 6]
    expected = stored.known.groupby(["algorithm", "alpha"])["last10"].agg(["mean", "std"])
    assert list(rows["last10"]) == pytest.approx(list(expected["mean"]))
    assert list(rows["last10_std"]) == pytest.approx(list(expected["std"]))
    assert rows["is_best"].tolist() == [False, True, True, False]  # all its seeds have finished
    assert "means are over other keys than the seed too: algorithm.rho" in err


@pytest.mark.parametrize(
    "command",
    [
        ("results", "--by", "algorithm.name"),
        *rarely(
            [("results", "--rows", "algorithm.name", "--columns", "seed", "--format", "latex")]
        ),
        ("plot", "curves", "--by", "algorithm.name"),
        *rarely([("plot", "parallel", "--by", "algorithm.name")]),
    ],
)
def test_no_mean_is_over_more_than_seeds_unless_asked_for(ask, command):
    """Neither a table nor a figure: what is asked for makes the keys that stay the rows."""
    command = (*command, "--experiment", "rayfl")
    code, out, err = ask(*command)
    assert (code, out) == (2, "")
    assert "differ in more than the seed: partition.alpha is 0.1, 0.5; algorithm.rho is" in err
    assert "or say --over partition.alpha,algorithm.rho if you mean it" in err
    assert ask(*command, "--where", "partition.alpha=0.1 and fedavg")[0] == 0
    code, out, err = ask(*command, "--over", "partition.alpha,algorithm.rho")
    assert code == 0
    assert (
        "means are over other keys than the seed too: algorithm.rho, partition.alpha" in out + err
    )


def test_what_means_are_over_makes_no_rows(ask):
    command = ("results", "--experiment", "rayfl", "--over", "partition.alpha", "--format", "csv")
    code, out, _ = ask(*command)
    assert code == 0
    rows = pd.read_csv(io.StringIO(out))
    assert list(rows.columns[:2]) == ["algorithm.name", "algorithm.rho"]
    assert list(rows["n"]) == [6, 6, 6]
    code, out, err = ask("results", "--over", "rho")
    assert "rho: no run has this key (did you mean 'algorithm.rho'?)" in err
    assert ask("plot", "heatmap", "--over", "algorithm.rho")[0] == 2


def test_compare(ask):
    command = ["compare", "algorithm.name=fedwmsam,algorithm.rho=0.1", "fedavg"]
    code, out, _ = ask(*command, "--experiment", "rayfl")
    assert code == 0
    assert (
        len(re.findall(r"\+0\.\d{4}  +\[\+0\.\d{4}, \+0\.\d{4}\]  +3  +12  +A is better", out)) == 2
    )
    code, out, _ = ask(*command, "--experiment", "rayfl", "--format", "json")
    assert [row["partition.alpha"] for row in json.loads(out)] == [0.1, 0.5]


@pytest.mark.parametrize("suffix", [".png", ".svg", ".pdf"])
def test_plot(ask, suffix, tmp_path):
    where = "fedwmsam and seed<10"
    code, out, _ = ask("plot", "curves", "-o", f"x{suffix}", "--where", where, "--x", "bytes")
    assert (code, out) == (0, f"wrote x{suffix}\n")
    assert (tmp_path / f"x{suffix}").stat().st_size > 5000


def test_report(ask, tmp_path):
    code, out, _ = ask("report", "-o", "r.html", "--where", "fedavg", "--title", "A < B")
    assert (code, out) == (0, "wrote r.html\n")
    assert "<h1>A &lt; B</h1>" in (tmp_path / "r.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["results", "--where", "algorithm.roh=1"], "did you mean 'algorithm.rho'?"),
        (["results", "--by", "rho"], "did you mean 'algorithm.rho'?"),
        (["results", "--metric", "lats10"], "did you mean 'last10'?"),
        (["results", "--experiment", "ray"], "did you mean 'rayfl'?"),
        (["results", "--format", "xml"], "Invalid value for '--format'"),
        (["compare", "fedwmsam", "fedavg"], "name one, as in algorithm.rho=..."),
        (["plot", "curves", "-o", "x.gif"], "must end in .png or .svg or .pdf"),
        (["plot", "pie"], "Invalid value for"),
        (["report", "-o", "no/such.html"], "there is no directory 'no'"),
        (["results", "--metric", ""], "--metric"),
        (["results", "--where", ""], "filter ''"),
    ],
)
def test_bad_input_is_one_message(ask, arguments, message):
    code, out, err = ask(*arguments)
    assert (code, out) == (2, "")
    assert message in err
    assert "Traceback" not in err


def test_without_a_store(ask, tmp_path):
    code, _, err = ask("results", uri=())
    assert code == 2
    assert f"no MLflow store at sqlite:///{tmp_path}/mlflow.db" in err
    assert not list(tmp_path.iterdir())  # asking makes no store


@pytest.mark.slow
def test_asking_needs_neither_torch_nor_ray(stored):
    """They would double the time of an answer."""
    code = (
        "import sys; from rayfl.analysis import runs, aggregate, tables, compare; import rayfl.cli.analysis;"
        f"r = runs.load('rayfl', {stored.uri!r}, metrics=['last10']);"
        "tables.table_of(aggregate.summarize(r)); "
        "print(*{'torch', 'ray', 'matplotlib'} & set(sys.modules))"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.strip() == ""


@pytest.mark.long
@pytest.mark.timeout(900)
def test_answers_about_real_runs(tmp_path):
    """Two seeds of two algorithms, then every question."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}

    def rayfl(*arguments):
        done = subprocess.run(
            [RAYFL, *arguments], cwd=tmp_path, capture_output=True, text=True, env=environment
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    accuracy = {}
    for algorithm in ("fedavg", "fedsam"):
        for seed in (0, 1):
            overrides = [f"algorithm.name={algorithm}", f"seed={seed}", "federation.rounds=3"]
            out = rayfl("run", str(ROOT / "configs/quickstart.yaml"), *overrides, "--json")
            accuracy[algorithm, seed] = json.loads(out)["accuracy"]["last10"]
    rows = {r["algorithm.name"]: r for r in json.loads(rayfl("results", "--format", "json"))}
    for algorithm, row in rows.items():
        mean = (accuracy[algorithm, 0] + accuracy[algorithm, 1]) / 2
        assert (row["n"], row["last10"]) == (2, pytest.approx(mean))
    (row,) = json.loads(rayfl("compare", "fedsam", "fedavg", "--format", "json"))
    assert row["difference"] == pytest.approx(rows["fedsam"]["last10"] - rows["fedavg"]["last10"])
    rayfl("plot", "curves", "-o", "curves.svg")
    rayfl("report")
    assert "fedsam" in (tmp_path / "report.html").read_text()
