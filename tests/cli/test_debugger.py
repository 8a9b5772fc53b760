"""`rayfl run --local`: one process, without Ray, where a debugger stops."""

import json
import os
import subprocess
import sys

import pytest
from conftest import ROOT

METHOD = """
import sys
from dataclasses import dataclass
from rayfl.algorithms import Algorithm

def trains():
    names, frame = set(), sys._getframe()
    while frame is not None:
        names.add(frame.f_code.co_filename.rpartition("/")[2])
        frame = frame.f_back
    return "engine.py" in names

@dataclass(frozen=True, kw_only=True)
class Mine(Algorithm):
    def local_step(self, x, memory, grad, ctx):
        if trains():
            breakpoint()
        return grad(x), memory
"""


@pytest.mark.slow
def test_a_breakpoint_in_ones_own_method_stops_there(small, tmp_path):
    small["algorithm"] = {"name": "mine:Mine"}
    small["federation"]["rounds"] = 1
    small["tracking"] = {"enabled": False}
    (tmp_path / "mine.py").write_text(METHOD)
    (tmp_path / "config.yaml").write_text(json.dumps(small))
    # Ray, in a test before this one, makes its own debugger Python's.
    inherited = {key: value for key, value in os.environ.items() if key != "PYTHONBREAKPOINT"}
    rayfl = "from rayfl.cli.main import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", rayfl, "run", "config.yaml", "--local"],
        input="p 'parameters', x.shape[-1]\np 'Ray', 'ray' in sys.modules\nq\n",
        cwd=tmp_path,
        env=inherited | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert "mine.py" in done.stdout
    assert "('parameters', 1210)" in done.stdout
    assert "('Ray', False)" in done.stdout
    assert done.returncode != 0  # the debugger was left before the end
