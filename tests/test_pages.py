"""Every command and program of README.md and the pages is run, once, whichever pages have it.

A page with a test module of its own, `test_page_NAME.py`, is left to that. README's start is run by CI.
"""

import json
import re
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT, head
from pages import blocks, commands_of, shell, together

DOCS = ROOT / "docs"
LEFT = {path.stem.split("_page_")[1] for path in Path(__file__).parent.glob("test_page_*.py")}
LEFT |= {"cluster"}  # tests/cluster/test_cluster_page.py
PAGES = [
    path.read_text()
    for path in [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
    if path.parent != DOCS or path.stem not in LEFT
]
COMMANDS = list(dict.fromkeys(command for page in PAGES for command in commands_of(page)))
SWEEPS = (DOCS / "sweeps.md").read_text()
STUDY = (DOCS / "tutorials/first_study.md").read_text()
OWN_METHOD = (DOCS / "tutorials/own_method.md").read_text()
OWN_DATA = (DOCS / "tutorials/own_data.md").read_text()

RUN_BY_CI = {
    "pip install . && rayfl run quickstart",
    "pip install -e '.[test]' && pytest",
    "rayfl run quickstart",
}
ON_A_CLUSTER = ["ray start --head", "rayfl run quickstart ray.address=auto"]
STATUS = "RAY_AUTH_MODE=token ray status"
LONGER = f"{ON_A_CLUSTER[1]} federation.rounds=20"
# docs/cluster.md has it too, whose commands tests/cluster/ray_up.sh runs.
JOIN = "RAY_AUTH_MODE=token ray start --address=$HEAD_ADDRESS:6379"
# Needs a network: the same command on files that are there.
DOWNLOADS = "rayfl run cifar10_lenet5 data.download=true"
# In one folder, one after the other: the answers are those of the sweep.
SWEEP = "rayfl sweep rho_beta_alpha"
ANSWERS = ("rayfl results ", "rayfl compare ", "rayfl plot ", "rayfl report ")
PRESET = "rayfl reproduce fedwmsam/table6"
FULL_PRESET = f"{PRESET} --scale full base.data.download=true"
RUN = "rayfl run quickstart --json"
RESUME = "rayfl run quickstart --resume latest"
FLATNESS = "rayfl flatness latest -o pictures"
FLAT_SWEEP = "rayfl sweep flatness_digits"
OF_FLAT_SWEEP = [c for c in COMMANDS if c.startswith("rayfl flatness flatness_digits ")]
MY_METHOD = "rayfl run quickstart algorithm.name=mymethod:MySAM algorithm.rho=0.1"
OF_THE_SWEEP = [c for c in commands_of(SWEEPS) if c.startswith(ANSWERS)]
# The tutorials' own, each in a folder of its own.
OF_THE_STUDY = [
    command
    for page in (STUDY, (DOCS / "tutorials/reading_results.md").read_text(), OWN_METHOD)
    for command in commands_of(page)
    if ("study" in command or command.startswith(ANSWERS)) and command not in OF_THE_SWEEP
]
OF_OWN_DATA = commands_of(OWN_DATA)

ELSEWHERE = {
    *RUN_BY_CI,
    *(*ON_A_CLUSTER, STATUS, LONGER, JOIN),
    RUN,
    RESUME,
    DOWNLOADS,
    SWEEP,
    PRESET,
    FULL_PRESET,
    FLATNESS,
}
ELSEWHERE |= {FLAT_SWEEP, f"{MY_METHOD} --local"}
ELSEWHERE |= {*OF_THE_SWEEP, *OF_FLAT_SWEEP, *OF_THE_STUDY, *OF_OWN_DATA}
ALONE = [command for command in COMMANDS if command not in ELSEWHERE]


def python_block(marker):
    """The only program of the pages with these words; several pages may have it."""
    (found,) = {block for page in PAGES for block in blocks(page, "python") if marker in block}
    return found


@pytest.fixture
def folder(tmp_path):
    """An otherwise empty working directory with the README's own method."""
    (tmp_path / "mymethod.py").write_text(python_block("class MySAM"))
    return tmp_path


def test_every_command_is_accounted_for():
    assert set(COMMANDS) >= ELSEWHERE
    assert JOIN in commands_of((DOCS / "cluster.md").read_text())
    assert MY_METHOD in ALONE
    assert len(ALONE) >= 12
    assert [command for command in ALONE if not command.startswith("rayfl ")] == []


@pytest.mark.slow
def test_commands_that_stand_alone(folder):
    """Runs are shortened, and without Ray, whose start takes longer: other tests have that.

    The first one writes the config of one's own that another one runs.
    """
    (written,) = [command for command in ALONE if " > " in command]
    shell(written, folder)
    assert (folder / written.split(" > ")[1]).read_text().strip()
    short = " federation.rounds=5 --local"
    others = [c + short * c.startswith("rayfl run") for c in ALONE if c != written]
    for command, out in together(others, folder).items():
        assert out.strip(), command


@pytest.mark.slow
def test_a_sweep_and_its_answers(folder):
    shell(f"{SWEEP} base.federation.rounds=2 'seeds=[0,1]'", folder)
    assert len(OF_THE_SWEEP) == 6
    together(OF_THE_SWEEP, folder)
    assert (folder / "curves.png").read_bytes()[:4] == b"\x89PNG"
    assert "</html>" in (folder / "report.html").read_text()
    program = python_block("runs.load(") + "\nassert len(table) == 12\n"
    shell(f"{sys.executable} - <<'PY'\n{program}PY", folder)


@pytest.mark.slow
def test_the_study_of_the_tutorials(folder):
    """Of the methods that are there, and of one's own, which adds its trials alone."""
    (study,) = blocks(STUDY, "yaml")
    (folder / "study.yaml").write_text(study)
    few = "'seeds=[0,1]' base.federation.rounds=2 'space.partition.alpha.grid=[0.1]'"
    plan, sweep, limited, own = [c for c in OF_THE_STUDY if "study.yaml" in c]
    assert "6 trials (3 points x 2 seeds)" in shell(f"{plan} {few}", folder)
    assert "10 trials (5 points x 2 seeds)" in shell(f"{limited} {few}", folder)
    assert "mymethod" not in shell(f"{sweep} {few}", folder)
    assert "mymethod" in shell(f"{own} {few}", folder)
    said = together([c for c in OF_THE_STUDY if "study.yaml" not in c], folder)
    assert len(said) == len(OF_THE_STUDY) - 4
    assert "mymethod:MySAM" in list(said.values())[-1]
    assert (folder / "study.png").exists()


@pytest.mark.slow
def test_own_data(tmp_path):
    makes, runs = blocks(OWN_DATA, "python")
    (config,) = blocks(OWN_DATA, "yaml")
    (tmp_path / "clinics.yaml").write_text(config)
    shell(f"{sys.executable} - <<'PY'\n{makes}PY", tmp_path)
    short = " federation.rounds=5 --local"
    together([c + short * c.startswith("rayfl run") for c in OF_OWN_DATA], tmp_path)
    assert "accuracy" in shell(f"{sys.executable} - <<'PY'\n{runs}PY", tmp_path)


@pytest.mark.slow
def test_the_flatness_of_a_sweep(folder):
    """Of two of its methods and two of its seeds, a few rounds each."""
    few = "seeds=[0,1] base.federation.rounds=4 'space.algorithm.name.grid=[fedavg,fedsam]'"
    shell(f"{FLAT_SWEEP} {few}", folder)
    measured, compared = OF_FLAT_SWEEP
    effort = "--draws 2 --lanczos 10 --measures gap,hessian"
    assert "lambda1" in shell(f"{measured} {effort}", folder)
    assert {path.stem for path in (folder / "pictures").iterdir()} == {"accuracy", "densities"}
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
    first = shell(f"{RUN} federation.rounds=20", folder)
    again = shell(f"{RESUME} --json federation.rounds=20", folder)
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
    shortened = program.replace('fednsam"]', 'fednsam", "federation.rounds=30"]')
    assert shortened != program
    (folder / "program.py").write_text(shortened + "\nassert len(runs) == 1\n")
    assert "0.9" in shell(f"{sys.executable} program.py", folder)


@pytest.mark.slow
def test_a_running_cluster_gives_the_same_bits(folder):
    """`ray start --head` was run before; what the run leaves is what a run of its own leaves."""
    own = shell("rayfl run quickstart --json federation.rounds=10", folder)
    with head(*ON_A_CLUSTER[0].split()[2:], "--num-cpus=2") as address:
        said = ""
        while "Active" not in said:  # the test's time ends it: "No cluster status" for some seconds
            time.sleep(1)
            said = shell(f"RAY_ADDRESS={address} {STATUS}", folder)
        command = LONGER.replace("auto", address)
        joined = shell(f"{command} --json federation.rounds=10", folder)
        again = shell(f"{command} --json federation.rounds=10", folder)  # the first left no actor
    assert digest(own) == digest(joined) == digest(again)


def digest(output):
    return re.search(r'"model_sha256": "(\w{64})"', output).group(1)
