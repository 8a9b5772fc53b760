"""Every command and every program in the README is run here (the two of its start, by CI)."""

import json
import re
import shutil
import sys

import pytest
from conftest import ROOT, head
from pages import blocks, commands_of, shell

README = (ROOT / "README.md").read_text()

RUN_BY_CI = {
    "pip install . && rayfl run quickstart",
    "pip install -e '.[test]' && pytest",
}
ON_A_CLUSTER = ["ray start --head", "rayfl run quickstart ray.address=auto"]
# Needs a network: the same command on files that are there.
DOWNLOADS = "rayfl run cifar10_lenet5 data.download=true"
# In one folder, one after the other: the answers are those of the sweep.
SWEEP = "rayfl sweep rho_beta_alpha"
ANSWERS = ("rayfl results ", "rayfl compare ", "rayfl plot ", "rayfl report ")
PRESET = "rayfl reproduce fedwmsam/table6"
FULL_PRESET = f"{PRESET} --scale full base.data.download=true"
RESUME = "rayfl run quickstart --resume latest"
FLATNESS = "rayfl flatness latest -o pictures"
FLAT_SWEEP = "rayfl sweep flatness_digits"
FLATNESS_OF_SWEEP = "rayfl flatness flatness_digits "
OWN_METHOD = "rayfl run quickstart algorithm.name=mymethod:MySAM algorithm.rho=0.1"


def commands():
    return commands_of(README)


def python_block(marker):
    (found,) = (block for block in blocks(README, "python") if marker in block)
    return found


@pytest.fixture
def folder(tmp_path):
    """An otherwise empty working directory with the README's own method and a config of one's own."""
    shutil.copy(ROOT / "configs/quickstart.yaml", tmp_path / "mine.yaml")
    (tmp_path / "mymethod.py").write_text(python_block("class MySAM"))
    return tmp_path


def test_every_command_is_accounted_for():
    known = {*RUN_BY_CI, *ON_A_CLUSTER, DOWNLOADS, OWN_METHOD, FLATNESS}
    others = [command for command in commands() if command not in known]
    assert known <= set(commands())
    assert all(command.startswith("rayfl ") for command in others)
    assert len(others) >= 5


@pytest.mark.slow
@pytest.mark.parametrize(
    "command",
    [
        c
        for c in commands()
        if c.startswith("rayfl ")
        and c not in (DOWNLOADS, ON_A_CLUSTER[1], SWEEP, PRESET, FULL_PRESET, RESUME, FLATNESS)
        and not c.startswith((*ANSWERS, FLAT_SWEEP, FLATNESS_OF_SWEEP))
    ],
)
def test_command(command, folder):
    """Runs are shortened, and without Ray, whose start takes longer: other tests have that."""
    if command.startswith("rayfl run"):
        command = f"{command.removesuffix(' --local')} federation.rounds=5 --local"
    out = shell(command, folder)
    if " > " in command:
        out = (folder / command.split(" > ")[1]).read_text()
    assert out.strip()


@pytest.mark.slow
def test_a_sweep_and_its_answers(folder):
    shell(f"{SWEEP} base.federation.rounds=4", folder)
    answers = [command for command in commands() if command.startswith(ANSWERS)]
    assert len(answers) == 6
    for command in answers:
        shell(command, folder)
    assert (folder / "curves.png").read_bytes()[:4] == b"\x89PNG"
    assert "</html>" in (folder / "report.html").read_text()
    program = python_block("runs.load(") + "\nassert len(table) == 18\n"
    shell(f"{sys.executable} - <<'PY'\n{program}PY", folder)


@pytest.mark.slow
def test_the_flatness_of_a_sweep(folder):
    """Of two of its methods and two of its seeds, a few rounds each."""
    few = "seeds=[0,1] base.federation.rounds=4 'space.algorithm.name.grid=[fedavg,fedsam]'"
    shell(f"{FLAT_SWEEP} {few}", folder)
    measured, *others = [c for c in commands() if c.startswith(FLATNESS_OF_SWEEP)]
    effort = "--draws 2 --lanczos 10 --measures gap,hessian"
    assert "lambda1" in shell(f"{measured} {effort}", folder)
    assert {path.stem for path in (folder / "pictures").iterdir()} == {"accuracy", "densities"}
    (compared,) = others
    assert "minus algorithm.name=fedavg" in shell(f"{compared} {effort}", folder)


@pytest.mark.slow
def test_a_preset(folder):
    """At the small scale; the other one needs a network and GPUs."""
    assert "published" in shell(f"{PRESET} base.federation.rounds=2", folder)


@pytest.mark.slow
def test_the_full_preset_on_local_files(folder, cifar10):
    data = f"base.data.name=parquet base.data.path={cifar10}"
    plan = FULL_PRESET.replace("base.data.download=true", f"{data} --plan")
    assert "33 trials" in shell(plan, folder)


@pytest.mark.slow
def test_a_run_goes_on(folder):
    """The last round is in a checkpoint too, so that a finished run can be asked again."""
    first = shell("rayfl run quickstart --json", folder)
    again = shell(f"{RESUME} --json", folder)
    assert digest(first) == digest(again)
    assert "lambda 1" in shell(FLATNESS, folder)
    assert len(list((folder / "pictures").glob("*.png"))) == 2


@pytest.mark.parametrize(
    ("rounds", "accuracy"),
    [
        pytest.param(2, 0.05, marks=pytest.mark.slow),
        pytest.param(20, 0.2, marks=pytest.mark.long),  # then it has learnt something
    ],
)
def test_cifar10_command_on_local_files(rounds, accuracy, folder, cifar10):
    """Shortened to some rounds of one epoch."""
    local = DOWNLOADS.replace("data.download=true", f"data.name=parquet data.path={cifar10}")
    shortened = f" federation.rounds={rounds} federation.local_epochs=1 --json"
    result = json.loads(shell(local + shortened, folder))
    assert result["rounds"] == rounds
    assert result["accuracy"]["best"] > accuracy


@pytest.mark.slow
def test_python_api_and_query(folder):
    program = python_block("result.state_dict") + python_block("mlflow.search_runs")
    (folder / "program.py").write_text(program + "\nassert len(runs) == 1\n")
    assert "0.9" in shell(f"{sys.executable} program.py", folder)


@pytest.mark.slow
def test_a_running_cluster_gives_the_same_bits(folder):
    """`ray start --head` was run before; what the run leaves is what a run of its own leaves."""
    own = shell("rayfl run quickstart --json federation.rounds=10", folder)
    with head(*ON_A_CLUSTER[0].split()[2:], "--num-cpus=2") as address:
        command = ON_A_CLUSTER[1].replace("auto", address)
        joined = shell(f"{command} --json federation.rounds=10", folder)
        again = shell(f"{command} --json federation.rounds=10", folder)  # the first left no actor
    assert digest(own) == digest(joined) == digest(again)


def digest(output):
    return re.search(r'"model_sha256": "(\w{64})"', output).group(1)
