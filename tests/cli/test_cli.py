"""The command line in this process where that is enough; no run here starts Ray."""

import io
import json
import os
import re
import signal
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import ROOT
from PIL import Image
from rich.console import Console

from rayfl.cli import main
from rayfl.cli.run_display import RunDisplay, describe_sizes
from rayfl.config.schema import load_config
from rayfl.errors import ClientError, RunError
from rayfl.federation.metrics import EvaluationMetrics, RoundMetrics
from rayfl.prepare import prepare
from rayfl.training.shortcuts import Shortcuts

QUICKSTART = str(ROOT / "configs/quickstart.yaml")


@pytest.fixture
def rayfl(monkeypatch, capfd, tmp_path):
    """Calls the command in an empty directory: exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path[:])
    signals = [(number, signal.getsignal(number)) for number in (signal.SIGINT, signal.SIGTERM)]
    hook = sys.unraisablehook

    def call(*arguments: str) -> tuple[object, str, str]:
        monkeypatch.setattr(sys, "argv", ["rayfl", *arguments])
        with pytest.raises(SystemExit) as ended:
            main.main()
        out, err = capfd.readouterr()
        return ended.value.code, out, err

    yield call
    sys.unraisablehook = hook
    for number, handler in signals:
        signal.signal(number, handler)


@pytest.fixture
def no_ray(monkeypatch):
    """Fails if anything tries to connect to Ray."""

    def connected(address):
        raise AssertionError("connects to Ray")

    monkeypatch.setattr("rayfl.runtime.cluster.connected", connected)


def test_help_shows_every_command_on_one_line(rayfl):
    code, out, _ = rayfl("--help")
    assert code == 0
    for command in ("run", "config", "partition", "results", "report", "algorithms", "models"):
        assert re.search(rf"^│ {command} +[A-Z].*\.\s*│$", out, re.MULTILINE), command
    assert rayfl("run", "-h")[0] == 0


@pytest.mark.slow
def test_the_command_ends_in_silence_where_torchvision_was_imported(tmp_path):
    """It brings triton, which calls all leaked that Python did not tidy up at its end."""
    command = "from rayfl.cli.main import script; script()"
    options = ["heterogeneity.rotation=30", "heterogeneity.client_groups=2"]
    done = subprocess.run(
        [sys.executable, "-c", command, "partition", QUICKSTART, *options],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.usefixtures("no_ray")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nope.yaml"], "config file 'nope.yaml': there is no such file"),
        (["seed=1", QUICKSTART], "'seed=1': the config file comes first, then the overrides"),
        ([QUICKSTART, "seed"], "override 'seed': must look like algorithm.rho=0.05"),
        ([QUICKSTART, "seed=x"], "seed = 'x': must be an integer of at least 0"),
        (
            [QUICKSTART, "federation.cohort=21"],
            "federation.cohort = 21: must be at most federation.clients = 20",
        ),
        (
            [QUICKSTART, "federation.clients=9999"],
            "federation.clients = 9999: must be from 1 to the number of training samples, 1442",
        ),
        (
            [QUICKSTART, "data={name: npz, path: x.npz}"],
            "data.path = 'x.npz': cannot read ",
        ),
        ([QUICKSTART, "algorithm.name=no_such:cat:X"], "algorithm.name = 'no_such:cat:X'"),
    ],
)
def test_bad_input_is_one_line_and_code_2(rayfl, arguments, message):
    code, out, err = rayfl("run", *arguments)
    assert (code, out) == (2, "")
    *phases, error = err.splitlines()
    assert error.startswith(f"error: {message}")
    assert all(re.search(r" \(\d+ s\)$", phase) for phase in phases)


@pytest.mark.slow
def test_bad_input_in_a_process_of_its_own(tmp_path):
    command = [sys.executable, "-c", "from rayfl.cli.main import main; main()", "run", QUICKSTART]
    done = subprocess.run(
        [*command, "algorithm.rho=-1"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stdout == ""
    phase, *error = done.stderr.splitlines()
    assert re.fullmatch(r"importing PyTorch \(\d+ s\)", phase)
    assert error == ["error: algorithm.rho = -1: must be a number of at least 0"]
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["partition", QUICKSTART, "partition={name: dirichlet, alpha: 0.1}"], 0),
        (["config", QUICKSTART, "tracking.run_name=é·€"], 0),
        (["run", QUICKSTART, "data.é·=x"], 2),
    ],
)
def test_streams_that_are_not_unicode(arguments, code, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", "from rayfl.cli.main import main; main()", *arguments],
        cwd=tmp_path,
        env=os.environ | {"PYTHONIOENCODING": "ascii", "COLUMNS": "80"},
        capture_output=True,
    )
    assert done.returncode == code, done.stderr
    assert b"Traceback" not in done.stderr
    done.stderr.decode("ascii")
    if arguments[0] == "config":  # a config file is UTF-8 wherever it is written
        (tmp_path / "again.yaml").write_bytes(done.stdout)
        assert load_config(tmp_path / "again.yaml").tracking.run_name == "é·€"
    else:
        text = (done.stdout + done.stderr).decode("ascii")
        assert "?" not in text.replace("(did you mean", "").replace("'?)", "")
        assert re.search(r"\| +\. \|", text) or "data.\\xe9. = 'x': unknown key" in text


@pytest.mark.slow
def test_a_user_without_a_home(tmp_path):
    """As with `docker run --user 12345`: no HOME, and no line in /etc/passwd."""
    (tmp_path / "homeless.py").write_text(
        "import os, pwd\n"
        "def unknown(uid): raise KeyError(uid)\n"
        "pwd.getpwuid = unknown\n"
        "from rayfl.cli.main import main\n"
        "try: main()\n"
        "finally: import rayfl.runtime.cluster, rayfl.tracking.mlflow, matplotlib.pyplot\n"
    )
    environment = {key: value for key, value in os.environ.items() if key != "HOME"}
    done = subprocess.run(
        [sys.executable, "homeless.py", "config", QUICKSTART],
        cwd=tmp_path,
        env=environment | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("arguments", [["rnu"], ["run"], ["run", QUICKSTART, "--jsn"]])
def test_bad_usage_is_code_2(rayfl, arguments):
    code, out, err = rayfl(*arguments)
    assert (code, out) == (2, "")
    assert "Error" in err
    assert "Traceback" not in err


def test_own_code_is_found_in_the_working_directory(rayfl, tmp_path):
    (tmp_path / "mine_in_cwd.py").write_text(
        "from dataclasses import dataclass\nfrom rayfl.algorithms import Algorithm\n"
        "@dataclass(frozen=True, kw_only=True)\nclass Mine(Algorithm):\n    reach: float = 0.5\n"
    )
    code, out, _ = rayfl("config", QUICKSTART, "algorithm.name=mine_in_cwd:Mine")
    assert code == 0
    assert "name: mine_in_cwd:Mine\n" in out
    assert "  reach: 0.5\n" in out


def test_config_is_a_config_file_again(rayfl, tmp_path):
    code, out, _ = rayfl("config", QUICKSTART, "algorithm.rho=0.3", "seed=7")
    (tmp_path / "again.yaml").write_text(out)
    again = load_config(tmp_path / "again.yaml")
    assert code == 0
    assert again == load_config(QUICKSTART, ["algorithm.rho=0.3", "seed=7"])
    assert out.endswith(f"# config hash: {again.hash}\n")


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        (
            "algorithms",
            r"^fedsam  Qu et al\., .*\n(.*\n)*    algorithm\.rho = 0\.05  .*at least 0$",
        ),
        ("datasets", r"^npz  Arrays .*\n.*\n.*\n    data\.path = \(required\)  the \.npz file"),
        ("partitions", r"^iid  Equal sizes"),
        (
            "models",
            r"^mlp  Fully .*\n    model\.init = null .*\n    model\.hidden = \[200, 200\]  widths ",
        ),
    ],
)
def test_lists(rayfl, command, expected):
    code, out, _ = rayfl(command)
    assert code == 0
    assert re.search(expected, out, re.MULTILINE)


def test_configs_are_listed_and_printed(rayfl, tmp_path):
    code, out, _ = rayfl("configs")
    assert code == 0
    assert re.search(r"^ +quickstart +rayfl run +FedWMSAM on .*$", out, re.MULTILINE)
    assert re.search(r"^ +rho_beta_alpha +rayfl sweep +Which rho ", out, re.MULTILINE)
    code, out, err = rayfl("configs", "quickstart")
    assert (code, err) == (0, "")
    (tmp_path / "mine.yaml").write_text(out)
    assert load_config(tmp_path / "mine.yaml") == load_config(QUICKSTART)
    code, out, err = rayfl("configs", "quikstart")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "did you mean 'quickstart'" in err


def test_the_partition_table_adds_up(rayfl, tmp_path):
    code, out, _ = rayfl("partition", QUICKSTART, "--plot", "heat map.png")
    rows = [re.findall(r"\d+|·", line) for line in out.splitlines() if re.match(r"│ +\d+", line)]
    table = pd.DataFrame(rows).replace("·", "0").astype(int)
    client, samples, classes, counts = table[0], table[1], table[2], table.loc[:, 3:]
    assert code == 0
    assert client.tolist() == list(range(20))
    assert counts.shape[1] == 10
    assert (counts.sum(axis=1) == samples).all()
    assert ((counts > 0).sum(axis=1) == classes).all()
    assert f"20 clients, {samples.sum()} samples, {samples.min()} to {samples.max()} each" in out
    assert samples.sum() == 1442
    assert (tmp_path / "heat map.png").read_bytes().startswith(b"\x89PNG")


def table_rows(out: str) -> list[list[str]]:
    return [
        re.split(r" *│ *", line)[1:-1] for line in out.splitlines() if re.match(r"│ +\d+", line)
    ]


def test_the_partition_table_names_the_domains(rayfl, tmp_path):
    for domain, samples in (("Art", 20), ("Real World", 10)):
        for label in ("Bed", "Mug"):
            (tmp_path / "office" / domain / label).mkdir(parents=True)
            for i in range(samples):
                Image.new("L", (4, 4)).save(tmp_path / "office" / domain / label / f"{i}.png")
    office = ("data.name=domain_folder", "data.path=office", "data.size=4")
    code, out, _ = rayfl(
        "partition", QUICKSTART, *office, "partition.name=by_group", "federation.clients=6"
    )
    assert code == 0
    assert [row[1] for row in table_rows(out)] == ["Art"] * 4 + ["Real World"] * 2
    assert {row[2] for row in table_rows(out)} == {"8"}  # of 32 and 16 train samples
    code, out, _ = rayfl("partition", QUICKSTART, *office, "partition.name=iid")
    assert {row[1] for row in table_rows(out)} <= {"Art", "Real World", "2 groups"}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("[red]", "[red]"),
        (":dog:", ":dog:"),
        ("a\nb", r"a\nb"),
        ("\udcff", r"\udcff"),
        ("$x$", "$x$"),
        ("\x1b[31m", r"\x1b[31m"),
        ("x" * 250, f"{'x' * 19}...{'x' * 18}"),
    ],
)
def test_the_partition_table_shows_names_as_they_are(rayfl, tmp_path, name, expected):
    for split in ("train", "test"):
        for label in (name, "other"):
            (tmp_path / "[bold]" / split / label).mkdir(parents=True)
            Image.new("L", (4, 4)).save(tmp_path / "[bold]" / split / label / "0.png")
    folder = ("data.name=image_folder", "data.path='[bold]'", "data.size=4", "federation.clients=1")
    options = (*folder, "federation.cohort=1", "--plot", "a.svg")
    code, out, err = rayfl("partition", QUICKSTART, "partition.name=iid", *options)
    assert (code, err) == (0, "")
    assert f" {expected} " in out.splitlines()[1]
    assert f"2 classes ({expected}, other)" in out or f"2 classes (other, {expected})" in out


def test_the_partition_table_counts_the_labels_that_are_trained_on(rayfl):
    one_class = ("partition.name=pathological", "partition.classes_per_client=1")
    ten = (*one_class, "federation.clients=10", "heterogeneity.label_noise=1")
    code, out, _ = rayfl("partition", QUICKSTART, *ten)
    assert code == 0
    assert [row[2] for row in table_rows(out)] == ["9"] * 10  # all but its own
    code, out, _ = rayfl("partition", QUICKSTART, "heterogeneity.imbalance_factor=100")
    assert code == 0
    totals = np.sum(
        [[int(n.replace("·", "0")) for n in row[3:]] for row in table_rows(out)], axis=0
    )
    assert totals[0] > 140
    assert totals[-1] == 1
    assert (np.diff(totals) < 0).all()


@pytest.mark.parametrize(
    ("plot", "message"),
    [
        ("a.jpg", "--plot = 'a.jpg': must end in .png or .svg"),
        ("nowhere/a.png", "--plot = 'nowhere/a.png': cannot be written (No such file or dir"),
    ],
)
def test_plots_that_cannot_be_written(rayfl, plot, message):
    code, _, err = rayfl("partition", QUICKSTART, "--plot", plot)
    assert code == 2
    assert err.startswith(f"error: {message}")


# What `run` shows, on records that need no actors.


class Placement:
    def __str__(self) -> str:
        return "1 server actor, 2 client actors"


def summary() -> dict[str, float]:
    accuracies = {"accuracy_final": 0.91, "accuracy_best": 0.92, "accuracy_last10": 0.9}
    costs = {"backward_passes": 1500.0, "bytes_up": 2e6, "bytes_down": 3e6}
    return accuracies | costs | {"loss_final": 0.3, "rounds": 3.0, "seconds_per_round": 0.25}


@pytest.fixture
def fake_run(monkeypatch):
    """Replaces `experiment.run`: three rounds at once, then whatever `then` does."""

    def fake(then):
        def run(config, on_start, on_metrics, resume, local, on_actors, on_phase):
            from rayfl.prepare import prepare

            prepared = prepare(config, on_phase=on_phase)
            saved = None if config.checkpoint.every is None else SimpleNamespace(round=2)
            start = {"prepared": prepared, "placement": Placement(), "resumed_round": 0}
            mlflow = {"run_id": "abc", "ui_command": "mlflow ui", "page": "http://page"}
            writer = saved and SimpleNamespace(latest=lambda: saved, round=2, every=2)
            on_start(SimpleNamespace(**start, **mlflow, checkpoints=writer))
            for round in (1, 2, 3):
                metrics = {"train/loss": 1 / round, "time/round_s": 0.25, "server/alpha": 0.1}
                on_metrics(RoundMetrics(round, metrics))
            for round in (1, 2, 3):
                on_metrics(EvaluationMetrics(round, {"test/accuracy": round / 10}))
            then()
            history = pd.DataFrame({"test/accuracy": [0.91]})
            return SimpleNamespace(
                summary=summary(), history=history, run_id="abc", model_sha256="f" * 64
            )

        monkeypatch.setattr("rayfl.experiment.run", run)

    return fake


def run_three_rounds(rayfl, *options: str) -> tuple[object, str, str]:
    return rayfl("run", QUICKSTART, "federation.rounds=3", *options)


def test_a_run_without_a_terminal(rayfl, fake_run):
    fake_run(lambda: None)
    code, out, err = run_three_rounds(rayfl)
    lines = err.splitlines()
    assert code == 0
    phases = ("importing PyTorch", "reading the data", "building the model and checking it")
    for line, phase in zip(lines, phases, strict=False):
        assert re.fullmatch(rf"{phase} \(\d+ s\)", line)
    lines = lines[3:]
    assert lines[0] == "fedwmsam on digits: 20 clients, 5 a round, 3 rounds"
    assert lines[1] == "uniform mean over the clients of a round (they hold 72 to 73 samples)"
    assert re.fullmatch(r"4,810 parameters; config [0-9a-f]{16}", lines[2])
    assert lines[3] == "1 server actor, 2 client actors"
    assert lines[4] == (
        "read 1,442 train and 355 test samples from 1 file: 10 classes (0, 1, 2, ...), uint8 1 x 8 x 8 "
        "(C x H x W), values 0 to 255"
    )
    assert re.fullmatch(r"starting the actors \(\d+ s\)", lines[5])
    assert lines[-1] == (
        "round 3/3  train loss 0.3333  test accuracy 0.3000  adaptive alpha 0.100  s/round 0.250"
    )
    assert len([line for line in lines if line.startswith("round 3/3")]) == 1
    assert "accuracy        final 0.9100, mean of last 10 evaluations 0.9000, best 0.9200" in out
    assert f"model sha256    {'f' * 64}" in out
    assert "MLflow run      abc" in out
    assert "then open       http://page" in out
    assert max(len(line) for line in out.splitlines()) <= 80


def test_json_is_alone_on_stdout(rayfl, fake_run):
    fake_run(lambda: None)
    code, out, _ = run_three_rounds(rayfl, "--json")
    result = json.loads(out)
    assert code == 0
    assert "validation" not in result
    assert result["accuracy"] == {"final": 0.91, "best": 0.92, "last10": 0.9}
    assert result["run_id"] == "abc"
    assert result["config_hash"] == load_config(QUICKSTART, ["federation.rounds=3"]).hash


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_is_code_130_and_says_what_is_kept(rayfl, fake_run, number):
    fake_run(lambda: os.kill(os.getpid(), number))
    code, out, err = run_three_rounds(rayfl, "--resume=latest")
    assert (code, out) == (130, "")
    command = f"rayfl run {QUICKSTART} federation.rounds=3 --resume abc"
    kept = f"MLflow run abc\nto go on after round 2:\n  {command}\n"
    assert err.endswith(f"stopping\nstopped after 3 of 3 rounds\n{kept}")
    code, out, err = run_three_rounds(rayfl, "checkpoint.every=null")
    assert err.endswith("it cannot go on: checkpoint.every=null writes no checkpoints\n")


@pytest.mark.parametrize(
    ("error", "ending"),
    [
        (RunError("the server actor died"), "error: the server actor died\n"),
        (
            ClientError(2, (4, 5), "fedcm", "Traceback [bold]\nZeroDivisionError: oh"),
            "Traceback [bold]\nZeroDivisionError: oh\n"
            "error: round 2, clients [4, 5], algorithm 'fedcm': ZeroDivisionError: oh\n",
        ),
    ],
)
def test_a_run_that_fails_is_code_1(rayfl, fake_run, error, ending):
    def fail():
        raise error

    fake_run(fail)
    code, out, err = run_three_rounds(rayfl, "--json")
    assert (code, out) == (1, "")
    assert err.endswith(ending)


def test_clients_of_one_size_are_said_to_be():
    assert describe_sizes(np.array([100, 100])) == "100 samples each"


def test_a_run_says_which_short_cuts_it_does_not_take(small):
    small["model"] = {"name": "zoo:views_maps_as_rows"}
    config = load_config(small)
    console = Console(file=io.StringIO(), width=300)
    with RunDisplay(console) as progress:
        start = SimpleNamespace(prepared=prepare(config), placement=Placement(), resumed_round=0)
        progress.start(start)
    said = console.file.getvalue()
    assert "images and kernels lie channels first in memory: channels last, it fails (view" in said


def test_a_run_shows_what_it_validates_with(rayfl):
    tiny = "data.validation=0.1", "federation.rounds=2", "federation.local_epochs=1"
    off = "tracking.enabled=false", "checkpoint.every=null", "--local"
    code, out, err = rayfl("run", QUICKSTART, *tiny, *off)
    assert code == 0
    assert re.search(r"^14\d samples are held out to validate with$", err, re.MULTILINE)
    assert re.search(r"test accuracy 0\.\d{4}  validation accuracy 0\.\d{4}", err.splitlines()[-1])
    assert re.search(r"^validation      final 0\.\d{4}, mean of last 10 ", out, re.MULTILINE)
    assert re.search(r"^validation loss \d\.\d{4}$", out, re.MULTILINE)
    assert max(len(line) for line in out.splitlines()) <= 80
    code, out, _ = rayfl("run", QUICKSTART, *tiny, *off, "--json")
    held_out = json.loads(out)["validation"]
    assert held_out["accuracy"].keys() == {"final", "best", "last10"}
    assert held_out["loss"] > 0


def test_the_partition_counts_what_clients_train_on(rayfl):
    code, out, _ = rayfl("partition", QUICKSTART, "data.validation=0.1")
    total, held_out = re.search(
        r"20 clients, (\d+) samples, .*\n(\d+) more samples are held out to validate with", out
    ).groups()
    assert code == 0
    assert int(total) + int(held_out) == 1442
    assert sum(int(row[1]) for row in table_rows(out)) == int(total)


@pytest.mark.slow
def test_the_partition_table_of_very_many_clients_shows_a_thousand(rayfl, tmp_path):
    iid = ("partition.name=iid", "federation.clients=1200")
    code, out, _ = rayfl("partition", QUICKSTART, *iid, "--plot", "some.svg")
    shown = [int(row[0]) for row in table_rows(out)]
    assert code == 0
    assert len(shown) == 1000
    assert (shown[0], shown[-1]) == (0, 1199)
    assert shown == sorted(set(shown))
    assert re.search(
        r"^1200 clients, 1442 samples, 1 to 2 each; .*\n1000 clients are shown", out, re.M
    )
    assert "client, 1,000 of 1,200" in (tmp_path / "some.svg").read_text()


@pytest.mark.parametrize("width", [80, 120])
def test_the_live_display_fits_the_terminal(width):
    config = load_config(QUICKSTART)
    prepared = SimpleNamespace(
        config=config,
        data=SimpleNamespace(name="digits", read=()),
        model=torch.nn.Linear(1, 1),
        settings=SimpleNamespace(shortcuts=Shortcuts()),
        federation=SimpleNamespace(
            clients=20,
            cohort_size=5,
            rounds=10_000,
            sampling="uniform",
            sizes=np.array([10, 1000]),
            validation_samples=160,
        ),
    )
    console = Console(file=io.StringIO(), force_terminal=True, width=width, color_system=None)
    with RunDisplay(console) as progress:
        progress.start(
            SimpleNamespace(prepared=prepared, placement=Placement(), run_id=None, resumed_round=0)
        )
        metrics = {"train/loss": 12.3456, "test/accuracy": 1.0, "server/alpha": 0.123}
        progress.metrics(RoundMetrics(1234, metrics | {"time/round_s": 12.345}))
    plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", console.file.getvalue())
    assert "uniform mean over the clients of a round (they hold 10 to 1,000 samples)" in plain
    assert "160 samples are held out to validate with" in plain
    bar, text = plain.splitlines()[-2:]
    # 8,766 rounds of 12.345 s, known from the first round on.
    assert re.match(r"round  1234/10000 ━.* 30 h 03 min left$", bar.strip())
    shown = "train loss 12.3456  test accuracy 1.0000  adaptive alpha 0.123  s/round 12.345"
    assert text == shown
    assert len(bar.strip()) == width


def test_a_run_says_how_accurate_the_average_of_its_models_is(rayfl):
    short = ("federation.rounds=3", "tracking.enabled=false", "checkpoint.every=null", "--local")
    code, out, _ = rayfl("run", QUICKSTART, "evaluation.average.last=2", *short)
    assert code == 0
    (line,) = (line for line in out.splitlines() if line.startswith("of the average"))
    assert re.fullmatch(r"of the average  final [01]\.\d{4}", line)
