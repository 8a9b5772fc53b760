"""A sweep of the user's own method after the method has changed, and after it is what it was."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from rayfl.analysis.aggregate import summarize
from rayfl.analysis.runs import load

RAYFL = Path(sys.executable).parent / "rayfl"
METHOD = """
from dataclasses import dataclass
from rayfl.algorithms.base import Algorithm

@dataclass(frozen=True, kw_only=True)
class Mine(Algorithm):
    scale: float = 1.0

    def server_step(self, w, server, mean, ctx):
        return w + self.scale * mean["delta"], server
"""


@pytest.mark.slow
def test_what_was_run_with_other_code_is_no_answer(sweep_file, tmp_path):
    path = sweep_file(space={"algorithm.scale": {"grid": [1.0]}})

    def sweep(code):
        (tmp_path / "mine.py").write_text(code)
        command = [RAYFL, "sweep", path, "base.algorithm.name=mine:Mine", "--json"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        (trial,) = json.loads(done.stdout)["trials"]
        table = summarize(load(metrics=["final"]), metrics=["final"]).rows
        assert list(table["n"]) == [1]
        assert table["final"][0] == pytest.approx(trial["value"])
        return trial["run_id"], "1 trial done before" in done.stderr

    first, was_done = sweep(METHOD)
    assert not was_done
    second, was_done = sweep(METHOD.replace("w + ", "w - "))
    assert second != first
    assert not was_done
    assert sweep(METHOD) == (first, True)
