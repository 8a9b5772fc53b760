"""Shared fixtures: one Ray instance for the whole session, small real data, small experiments."""

import contextlib
import gc
import inspect
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile

# Before anything imports torch, ray or mlflow. Small tensors gain nothing from a second thread, and lose much
# where tests run beside each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_worker_niceness", "0")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.pop("MLFLOW_TRACKING_URI", None)  # the tests' stores are where they say

from collections.abc import Callable, Iterable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

# Millions of lasting objects are made while torch, ray and mlflow are imported: see `rayfl.cli.main`.
gc.set_threshold(100_000)

ROOT = Path(__file__).parent.parent


def each(**cases: Mapping[str, Any] | Iterable[Any]) -> Callable:
    """Run the decorated test once for every combination of these values, each as a subtest.

    `each(algorithm={"fedavg": FedAvg()}, dtype=[float32])` calls `test(algorithm=..., dtype=...)`. One test
    instead of hundreds: the names that failed are listed all the same. Fixtures are shared by the subtests.
    """
    named = [
        c.items() if isinstance(c, Mapping) else [(str(v), v) for v in c] for c in cases.values()
    ]
    combinations = [tuple(zip(*chosen, strict=True)) for chosen in itertools.product(*named)]

    def decorate(test: Callable) -> Callable:
        def all_of_them(subtests: pytest.Subtests, **fixtures: Any) -> None:
            for names, values in combinations:
                with subtests.test(" ".join(names)):
                    test(**dict(zip(cases, values, strict=True)), **fixtures)

        signature = inspect.signature(test)
        fixtures = [p for name, p in signature.parameters.items() if name not in cases]
        subtests = inspect.Parameter("subtests", inspect.Parameter.KEYWORD_ONLY)
        fixtures = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in fixtures]
        all_of_them.__signature__ = signature.replace(parameters=[subtests, *fixtures])
        all_of_them.__name__, all_of_them.__doc__ = test.__name__, test.__doc__
        all_of_them.__module__ = test.__module__
        return all_of_them

    return decorate


def rarely(values: Iterable[Any]) -> list[Any]:
    """Parameters of a test that the default suite leaves to `pytest -m slow`."""
    return [pytest.param(value, marks=pytest.mark.slow) for value in values]


def pytest_collection_finish() -> None:
    """Spare the garbage collector what the imports made: it would walk through it again and again."""
    gc.freeze()


# Fixtures that take seconds to make.
COSTLY = ("ray_session", "stored", "finished", "study", "interrupted")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that use the session's Ray: `-m "not ray"` leaves them out.

    With `-n 2 --dist loadgroup` one process has all of them, and one has all tests of a costly fixture.
    """
    for item in items:
        fixtures = getattr(item, "fixturenames", ())
        if "ray_session" in fixtures:
            item.add_marker("ray")
        for shared in COSTLY:
            if shared in fixtures:
                item.add_marker(pytest.mark.xdist_group(shared))
                break


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory):
    """Decoded images of the tests are kept for the session, and not among the user's own."""
    os.environ["RAYFL_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(autouse=True)
def environment_of_a_command():
    """Forget what a command in this process has set for a Ray of its own: with it none joins a cluster."""
    yield
    os.environ.pop("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", None)


@pytest.fixture(scope="session")
def ray_session():
    """A Ray instance with room for three client actors, whatever the machine has."""
    import ray

    # Ray's workers find the driver's working directory, not what pytest puts on sys.path.
    paths = [str(ROOT / "tests" / name) for name in ("runtime", "federation")]
    given = os.environ.get("PYTHONPATH", "")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [*paths, given]))
    ray.init(
        address="local",
        num_cpus=3,
        num_gpus=0,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
    )
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def empty_store(request, tmp_path_factory):
    """An MLflow database without runs; to copy it is seconds faster than to have MLflow make one."""
    cache, name = getattr(request.config, "cache", None), f"mlflow-{version('mlflow')}"
    folder = cache.mkdir(name) if cache else tmp_path_factory.mktemp(name)
    if not (folder / "mlflow.db").exists():
        from mlflow.tracking import MlflowClient

        with tempfile.TemporaryDirectory(dir=folder) as made:
            MlflowClient(f"sqlite:///{made}/mlflow.db").search_experiments()
            os.replace(f"{made}/mlflow.db", folder / "mlflow.db")
    return folder / "mlflow.db"


@pytest.fixture
def small():
    """A small experiment on digits as a mapping for `load_config`; change it freely."""
    return small_config()


def small_config():
    """Return the mapping of the fixture `small`."""
    return {
        "seed": 1,
        "data": {"name": "digits"},
        "partition": {"name": "dirichlet", "alpha": 0.3},
        "model": {"name": "mlp", "hidden": [16]},
        "algorithm": {"name": "fedwmsam"},
        "federation": {
            "clients": 10,
            "cohort": 5,
            "clients_per_unit": 2,
            "rounds": 3,
            "local_epochs": 1,
            "batch_size": 16,
            "lr": 0.1,
            "weight_decay": 0.001,
            "clip_norm": 10,
        },
        "tracking": {"enabled": False},
        "checkpoint": {"every": None},
    }


def stopped(config):
    """Run until round 2, and stop as Ctrl-C does."""
    from rayfl import run

    def on_metrics(metrics):
        if metrics.round == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(config, on_metrics=on_metrics, local=True)


@pytest.fixture(scope="session")
def cifar10():
    """Directory of CIFAR-10 as parquet files; the test is skipped where there is none."""
    path = Path(os.environ.get("RAYFL_CIFAR10_PARQUET", ROOT.parent / "shared/data/cifar10"))
    if not any(path.glob("train*.parquet")):
        pytest.skip(f"no CIFAR-10 parquet files in {path}; RAYFL_CIFAR10_PARQUET may name them")
    return path


@pytest.fixture
def script(tmp_path):
    """Runs a script of tests/cluster: `script(name, *arguments, needs=tools)` -> the finished process.

    Skips the test where namespaces cannot be made, or a tool is missing. The script gets a home of its
    own, where Ray's token goes.
    """

    def run(name, *arguments, needs=()):
        missing = [tool for tool in ("ip", "unshare", *needs) if not shutil.which(tool)]
        if missing:
            pytest.skip(f"needs {', '.join(missing)}")
        mount = "unshare --net --pid --fork --mount mount -t tmpfs tmpfs /mnt"
        if subprocess.run(mount.split(), capture_output=True).returncode != 0:
            pytest.skip("needs root, and the right to make namespaces")
        venv = Path(sys.executable).parent.parent
        own = {"VENV": str(venv), "HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
        own["PATH"] = f"{venv / 'bin'}{os.pathsep}{os.environ['PATH']}"
        process = subprocess.Popen(
            [ROOT / "tests/cluster" / name, *map(str, arguments)],
            cwd=tmp_path,
            env=os.environ | own,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        try:
            out, err = process.communicate()
        finally:
            if process.poll() is None:  # the test ran out of time: let the script clean up
                os.killpg(process.pid, signal.SIGTERM)
                process.wait(60)
        return subprocess.CompletedProcess(name, process.returncode, out, err)

    return run


@contextlib.contextmanager
def node(*options):
    """A node of a cluster, as on a machine of its own: `ray start --block` with one CPU, once it is up."""
    process = subprocess.Popen(
        [Path(sys.executable).parent / "ray", "start", "--block", "--num-cpus=1", *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
        start_new_session=True,
        cwd=ROOT,
    )
    try:
        said = []
        for line in process.stdout:
            said.append(line)
            if "block forever" in line:
                break
        assert process.poll() is None, "".join(said)
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(20)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


@contextlib.contextmanager
def head(*options):
    """The head node of a cluster; yields its address."""
    port = 31000 + os.getpid() % 9000
    with node("--head", f"--port={port}", "--include-dashboard=false", *options):
        yield f"127.0.0.1:{port}"


@pytest.fixture(scope="session")
def stored(tmp_path_factory, empty_store):
    """An MLflow store of runs whose numbers are known; see tests/analysis/stored.py."""
    from stored import fill

    folder = tmp_path_factory.mktemp("stored")
    shutil.copy(empty_store, folder)
    return fill(folder)


@pytest.fixture
def store_here(tmp_path, monkeypatch, empty_store):
    """Make an empty directory with an empty MLflow store in it the working directory."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(empty_store, tmp_path)


@pytest.fixture
def sweep_file(tmp_path, small, monkeypatch):
    """Writes a sweep of small experiments in an empty working directory."""
    monkeypatch.chdir(tmp_path)
    base = small | {"tracking": {"enabled": True}}
    del base["seed"]

    def write(**given):
        content = {
            "name": "t",
            "base": base,
            "space": {"algorithm.rho": {"grid": [0.05, 0.1]}},
            **given,
        }
        (tmp_path / "t.yaml").write_text(json.dumps(content))
        return tmp_path / "t.yaml"

    return write
