"""The commands and programs of a page, and how a test runs them as a user does."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

BIN = Path(sys.executable).parent


def blocks(page, language):
    """The code blocks of a page in one language."""
    return re.findall(rf"```{language}\n(.*?)```", page, re.DOTALL)


def commands_of(page):
    """The lines of a page's bash blocks, without comments."""
    lines = [line for block in blocks(page, "bash") for line in block.strip().splitlines()]
    return [re.sub(r"\s+#.*", "", line) for line in lines]


def shell(command, folder, timeout=600):
    """Run a command in a folder with the installed package; what it wrote to stdout."""
    path = f"{BIN}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        command,
        shell=True,
        cwd=folder,
        env=os.environ | {"PATH": path, "PYTHONPATH": ""},
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


TOGETHER = """
import contextlib, io, json, shlex, sys
from rayfl.cli.main import main

said = {}
for command in json.loads(sys.argv[1]):
    sys.argv = shlex.split(command)
    out = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True)
    with contextlib.redirect_stdout(out):
        try:
            main()
        except SystemExit as end:
            assert not end.code, f"{command} ended with {end.code}"
    said[command] = out.buffer.getvalue().decode()
print(json.dumps(said))
"""


def together(commands, folder):
    """Run `rayfl` commands in one process, whose imports take longer than most of them; stdout of each."""
    program = f"{sys.executable} -c {shlex.quote(TOGETHER)} {shlex.quote(json.dumps(commands))}"
    return json.loads(shell(program, folder))


def run_program(page, folder):
    """Run the only Python program of a page in a folder, where it leaves what the page's commands use."""
    (program,) = blocks(page, "python")
    (folder / "program.py").write_text(program)
    shell(f"{sys.executable} program.py", folder)
