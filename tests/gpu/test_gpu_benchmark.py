"""The GPU benchmark, rehearsed on the CPU: every part in small, and parts and drivers that end badly."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pyarrow
import pyarrow.parquet
import pytest
from conftest import ROOT
from PIL import Image

from benchmarks.gpu_parts.log import Log, read
from benchmarks.gpu_parts.plan import PARTS
from rayfl.algorithms import ALGORITHMS

HERE = Path(__file__).parent


def start(script, *arguments, out, device="cpu"):
    """The driver as a process; its tables go to OUT.txt."""
    paths = os.pathsep.join([str(ROOT), str(HERE), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, script, "--device", device, "--out", out, *arguments]
    with open(f"{out}.txt", "w") as file:
        return subprocess.Popen(
            [*map(str, command)],
            stdout=file,
            stderr=subprocess.STDOUT,
            env=os.environ | {"PYTHONPATH": paths},
        )


def table(out):
    return Path(f"{out}.txt").read_text()


def by_part(out, kind):
    """The lines of a kind, by part."""
    found = {}
    for line in read(out):
        if line.kind == kind:
            found.setdefault(line.part, []).append(line)
    return found


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """A folder of parquet files as CIFAR-10 has them, with a few random images."""
    folder = tmp_path_factory.mktemp("cifar10")
    rng = np.random.default_rng(0)
    for split, n in (("train", 120), ("test", 40)):
        rows = []
        for i in range(n):
            file = io.BytesIO()
            Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(file, "png")
            rows.append({"img": {"bytes": file.getvalue(), "path": f"{i}.png"}, "label": i % 10})
        pyarrow.parquet.write_table(
            pyarrow.Table.from_pylist(rows), folder / f"{split}-00000-of-00001.parquet"
        )
    return folder


@pytest.mark.long
def test_every_part_in_small(images, tmp_path):
    out, scratch = tmp_path / "out", tmp_path / "scratch"
    given = ["--cifar10", images, "--scratch", scratch, "--limit", "500"]
    driver = start(ROOT / "benchmarks/gpu.py", *given, out=out)
    code = driver.wait(550)
    assert code == 0, table(out)
    statuses = {
        part: [line.what for line in lines] for part, lines in by_part(out, "status").items()
    }
    assert statuses == {part.title: ["done"] for part in PARTS}
    checks = by_part(out, "check")
    assert {line.what.split(":")[0] for line in checks["bits"]} >= set(ALGORITHMS)
    assert {line.what for line in checks["ray_runs"]} == {
        "1 x 1.0: ends",
        "2 x 0.5, one killed: an actor was killed in a round",
        "2 x 0.5, one killed: bits of 1 x 1.0",
    }
    assert {line.what for line in checks["speed"]} == {
        f"{method}: two steps of both sides are the same" for method in ("fedwmsam", "fedavg")
    }
    values = {line.what for lines in by_part(out, "value").values() for line in lines}
    assert {"fedwmsam over the bare loop", "round, mean", "kernels a step"} <= {
        what.replace("operations (no GPU: of the CPU)", "kernels") for what in values
    }
    curves = (out / "curves.csv").read_text().splitlines()
    assert curves[0] == "method,round,accuracy,loss,seconds"
    assert [row.split(",")[:2] for row in curves[1:]] == [
        [method, round] for method in ("fedwmsam", "fedavg", "fednsam") for round in "12"
    ]
    assert "missed" not in table(out)  # a rehearsal has no targets
    (decoded,) = scratch.glob("*.npz")
    assert np.load(decoded)["x_train"].shape == (120, 32, 32, 3)


@pytest.fixture(scope="module")
def faulty(tmp_path_factory):
    """The folder and exit code of a driver whose parts go wrong, with the limits of a GPU."""
    out = tmp_path_factory.mktemp("faulty") / "out"
    return out, start(HERE / "faulty_parts.py", out=out, device="cuda").wait(120)


@pytest.mark.slow
def test_parts_that_go_wrong_leave_the_others_and_what_they_had(faulty):
    out, code = faulty
    assert code == 1
    ended = {part: line.what for part, (line,) in by_part(out, "status").items()}
    assert ended == {
        "fine": "done",
        "hangs": "stopped after its 2 s",
        "crashes": f"failed with exit code {-signal.SIGSEGV}",
        "raises": "failed with exit code 1",
        "checks": "done",
        "last": "done",
    }
    assert by_part(out, "value").keys() == ended.keys()
    (raised,) = by_part(out, "status")["raises"]
    assert raised.note == "ValueError: one line that says why"
    failed = [(line.part, line.what) for line in read(out) if line.failed]
    assert failed == [
        ("hangs", "stopped after its 2 s"),
        ("crashes", "failed with exit code -11"),
        ("raises", "failed with exit code 1"),
        ("checks", "what must hold"),
    ]


@pytest.mark.slow
def test_the_last_table_has_everything(faulty):
    out, _ = faulty
    shown = subprocess.run(
        [sys.executable, ROOT / "benchmarks/gpu.py", "--show", out], capture_output=True, text=True
    )
    assert shown.returncode == 1
    assert table(out).endswith(shown.stdout)
    rows = [line.split() for line in shown.stdout.splitlines() if line.strip()]
    assert [row[0] for row in rows if "begun" in row] == [*by_part(out, "status")]
    assert rows[2] == ["fine", "begun", "1", "s", "<=", "0.5", "missed"]


def test_a_driver_that_passes_says_so(tmp_path):
    out = tmp_path / "out"
    assert start(HERE / "faulty_parts.py", "--parts", "fine,last", out=out).wait(60) == 0


@pytest.mark.slow
def test_a_part_without_time_is_skipped(tmp_path):
    out = tmp_path / "out"
    arguments = ["--parts", "hangs,last", "--limit", "8", out]
    assert start(HERE / "faulty_parts.py", *arguments[:-1], out=out).wait(60) == 1
    (skipped,) = by_part(out, "status")["last"]
    assert (skipped.what, skipped.ok) == ("skipped", None)


@pytest.mark.slow
@pytest.mark.parametrize("with_signal", [signal.SIGKILL, signal.SIGTERM])
def test_a_driver_that_is_killed_leaves_its_results_and_no_process(tmp_path, with_signal):
    out = tmp_path / "out"
    driver = start(HERE / "faulty_parts.py", "--parts", "fine,hangs,last", out=out)
    deadline = time.monotonic() + 60
    while "hangs" not in by_part(out, "value"):
        assert time.monotonic() < deadline, table(out)
        time.sleep(0.05)
    parts = psutil.Process(driver.pid).children(recursive=True)
    assert len(parts) >= 1
    driver.send_signal(with_signal)
    driver.wait(20)
    _, alive = psutil.wait_procs(parts, timeout=20)
    assert alive == []
    assert by_part(out, "value").keys() == {"fine", "hangs"}
    shown = subprocess.run(
        [sys.executable, ROOT / "benchmarks/gpu.py", "--show", out], capture_output=True, text=True
    )
    assert "hangs" in shown.stdout
    if with_signal == signal.SIGTERM:  # as `timeout` sends it: there is time for the table
        assert shown.stdout in table(out)


def test_a_line_that_was_cut_off_is_left_out(tmp_path):
    log = Log(tmp_path, "part")
    log.value("first", 1.0)
    log.check("second", True)
    path = tmp_path / "results.jsonl"
    path.write_text(path.read_text()[:-20])
    assert [line.what for line in read(tmp_path)] == ["first"]
    assert json.loads(path.read_text().splitlines()[0])["part"] == "part"


def test_a_value_meets_its_limit_or_not(tmp_path):
    log = Log(tmp_path, "part")
    log.value("at most 2", 2.0, limit=2)
    log.value("more", 2.1, limit=2)
    Log(tmp_path, "rehearsal", targets=False).value("no matter", 2.1, limit=2)
    assert [line.ok for line in read(tmp_path)] == [True, False, None]
    assert not any(line.failed for line in read(tmp_path))  # slow is not wrong


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--parts", "sped"], "unknown: sped; there are machine,"),
        (["--cifar10", "/"], "no parquet"),
    ],
)
def test_bad_input_is_one_line(tmp_path, arguments, said):
    out = tmp_path / "out"
    assert start(ROOT / "benchmarks/gpu.py", *arguments, out=out).wait(60) == 2
    assert said in table(out).splitlines()[-1]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [([], "gpu_bundle.sh FOLDER CIFAR10"), (["to", "."], "no parquet files in")],
)
def test_the_bundle_says_what_it_needs(tmp_path, arguments, said):
    arguments = [str(tmp_path / argument) for argument in arguments]
    script = ROOT / "benchmarks/gpu_bundle.sh"
    done = subprocess.run([script, *arguments], capture_output=True, text=True)
    assert done.returncode == 2
    assert said in done.stdout + done.stderr
    assert list(tmp_path.iterdir()) == []
