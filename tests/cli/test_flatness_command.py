"""`rayfl flatness` as a user types it: a run, its table, and bad input in one line."""

import io
import sys

import pandas as pd
import pytest

from rayfl.cli import main


@pytest.fixture
def rayfl(monkeypatch, capsys, tmp_path):
    """Calls the command in an empty directory: exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path[:])

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["rayfl", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main.main()
        out, err = capsys.readouterr()
        return ended.value.code, out, err

    return call


@pytest.fixture
def finished(rayfl, empty_store, tmp_path):
    """The directory of a run of three rounds."""
    (tmp_path / "mlflow.db").write_bytes(empty_store.read_bytes())
    code, *_ = rayfl("run", "quickstart", "--local", "federation.rounds=3", "--json")
    assert code == 0
    return tmp_path


FEW = ("--local", "--rho", "0.05", "--scale-free-rho", "0.5", "--draws", 2, "--lanczos", 10)


@pytest.mark.slow
def test_a_run_is_measured_and_then_known(rayfl, finished):
    code, out, err = rayfl("flatness", "latest", *FEW, "--clients", 2)
    assert code == 0
    assert "flatness of fedwmsam, seed 0" in err
    for label in (
        "SAM gap, rho 0.05",
        "scale-free worst-case gap, rho 0.5",
        "lambda 1 / lambda 5",
        "flatness distance, sharpness, rho 0.05",
        "clients' lambda 1 at y_i",
        "error / bound",
    ):
        assert label in out
    assert "no weight decay and no term of the method" in out
    code, again, err = rayfl(
        *("flatness", "latest", *FEW, "--clients", 2, "--format", "csv"),
        *("-o", "figures", "--picture", "pdf"),
    )
    assert code == 0
    assert "took nothing" in err
    assert {path.name for path in (finished / "figures").iterdir()} == {
        "density-round-3.pdf",
        "clients-round-3.pdf",
    }
    kept = {path.name for path in finished.glob("mlruns/**/artifacts/flatness/*.png")}
    assert kept == {"density-round-3.png", "clients-round-3.png"}
    rows = pd.read_csv(io.StringIO(again))
    assert rows["split"].tolist() == ["train", "test"]
    assert (rows["lambda1"] > rows["lambda2"]).all()
    code, out, err = rayfl("results", "--metric", "flatness/gap_0.05", "--format", "csv")
    found = pd.read_csv(io.StringIO(out))["flatness/gap_0.05"][0]
    assert found == pytest.approx(rows["gap_0.05"][0])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["latest"], "no MLflow store at sqlite:///"),
        (
            ["latest", "--measures", "sharpness"],
            "--measures = 'sharpness': must be of gap, hessian",
        ),
        (["latest", "--splits", ","], "--splits = ',': names nothing"),
        (["latest", "--rho", "0.1,big"], "--rho = '0.1,big': must be numbers"),
        (["latest", "--rho", "0"], "--rho = 0.0: must be greater than 0"),
        (["latest", "--samples", "0"], "--samples = 0: must be at least 1"),
        (["latest", "--average", "ten"], "--average = 'ten': must be such as last10"),
        (["latest", "--average", "last2"], "--average = last2: no client ever starts from a mean"),
        (["./nowhere", "--against", "fedavg"], "--against: is for sweeps, and './nowhere' is none"),
        (["./nowhere"], "./nowhere: no checkpoint is there"),
    ],
)
def test_bad_input_is_one_line_and_code_2(rayfl, arguments, message):
    code, out, err = rayfl("flatness", *arguments)
    assert (code, out) == (2, "")
    assert err.startswith(f"error: {message}")
    assert err.count("\n") == 1
