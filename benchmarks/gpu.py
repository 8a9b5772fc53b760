"""The proof of the GPU path: one command for a GPU that is there for some minutes.

    python benchmarks/gpu.py --device cuda --cifar10 DIR --out DIR    # nine minutes; DIR: parquet files
    python benchmarks/gpu.py --device cpu --out DIR                   # a rehearsal in small, one minute
    python benchmarks/gpu.py --out DIR --parts curves                 # some of it
    python benchmarks/gpu.py --show DIR                               # the table of what has been measured

Each part is a process with a limit of its own, since a CUDA error taints the process that it is in. A result
is in OUT/results.jsonl, on disk, before the next is measured, so that whatever ends the benchmark leaves what
it had. The exit code is 0 unless a check failed or a part did not end.
"""

import argparse
import hashlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).parents[1]
if __name__ == "__main__":
    sys.path[0] = str(ROOT)  # this folder's modules have common names

from benchmarks.gpu_parts.log import RESULTS, Log, read, show  # noqa: E402
from benchmarks.gpu_parts.plan import PARTS, Part  # noqa: E402

STARTING = 90  # seconds that the imports of a part may take
LAST = 3  # seconds that are kept for the table
REHEARSED = 4  # times as long may a part take on a CPU, which has other work too


class Process:
    """The process of one part, which imports at once and begins when it is told to."""

    def __init__(self, part: Part, out: Path):
        self.errors = out / f"{part.title.replace(' ', '_')}.log"
        command = [sys.executable, "-m", "benchmarks.gpu_parts", part.module]
        with self.errors.open("w") as file:
            self._process = subprocess.Popen(
                [*command, "ray" if part.needs_ray else "alone"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=file,
                text=True,
                env=_environment(),
            )

    def run(self, order: dict[str, Any], limit: float, end: float) -> tuple[str, bool]:
        """Let it do its part: how it ended, and whether that is well.

        `limit`: seconds from the end of its imports; `end`: when it must be over, whatever it imports.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        starting = min(STARTING, end - time.time())
        if not select.select([self._process.stdout], [], [], starting)[0]:
            return f"stopped: its imports took more than {starting:.0f} s", False
        limit = min(limit, end - time.time())
        if self._process.stdout.readline().strip() == "ready":
            # The part stops measuring somewhat before it is stopped.
            order = order | {"deadline": time.time() + max(0.9 * limit, limit - 3)}
            self._process.stdin.write(json.dumps(order) + "\n")
            self._process.stdin.close()
        try:
            code = self._process.wait(limit)
        except subprocess.TimeoutExpired:
            return f"stopped after its {limit:.0f} s", False
        return ("done", True) if code == 0 else (f"failed with exit code {code}", False)

    def end(self) -> None:
        """Kill it and whatever it started."""
        if self._process.poll() is None:
            parent = psutil.Process(self._process.pid)
            for process in [parent, *parent.children(recursive=True)]:
                try:
                    process.kill()
                except psutil.NoSuchProcess:
                    continue
        self._process.wait()

    def last_words(self) -> str:
        """The last line that it wrote."""
        lines = self.errors.read_text(errors="replace").strip().splitlines()
        return lines[-1][:300] if lines else ""


class Images:
    """The images of the benchmark, which a process decodes while the first parts run."""

    def __init__(self, cifar10: Path | None, scratch: Path):
        command = [sys.executable, "-m", "benchmarks.gpu_parts.images"]
        name, given = "random", []
        if cifar10 is not None:
            files = sorted((p.name, p.stat().st_size) for p in cifar10.glob("*.parquet"))
            name = hashlib.sha256(f"{cifar10.resolve()} {files}".encode()).hexdigest()[:12]
            given = [str(cifar10)]
        self.path = scratch.resolve() / f"{name}.npz"
        self._process = None
        if not self.path.exists():
            self._process = subprocess.Popen(
                [*command, str(self.path), *given],
                stderr=subprocess.PIPE,
                text=True,
                env=_environment(),
            )

    def wait(self, limit: float) -> str | None:
        """What is wrong with them, or None."""
        if self._process is None:
            return None
        try:
            _, said = self._process.communicate(timeout=max(limit, 0.1))
        except subprocess.TimeoutExpired:
            return "the images are not decoded yet"
        return None if self._process.returncode == 0 else f"no images: {said.strip()[-300:]}"

    def end(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait()


def run(parts: Sequence[Part], arguments: argparse.Namespace) -> None:
    """Run the parts one after the other; its lines are printed after each."""
    out, end = arguments.out, time.time() + arguments.limit - LAST
    images = Images(arguments.cifar10, arguments.scratch)
    current: Process | None = None
    following: Process | None = None
    try:
        for i, part in enumerate(parts):
            log, began = Log(out, part.title), time.time()
            wrong = images.wait(end - time.time()) if part.needs_data else None
            left = end - time.time()
            shares = sum(p.limit is None for p in parts[i:])
            most = left / shares if part.limit is None else part.limit
            limit = min(left, most * (REHEARSED if arguments.device == "cpu" else 1))
            if wrong or limit < min(part.least, most):
                why = wrong or f"{max(left, 0):.0f} s are left"
                log.status("skipped", 0.0, False if wrong else None, why)
                continue
            current, following = following or Process(part, out), None
            if i + 1 < len(parts):
                following = Process(parts[i + 1], out)
            order = {
                "title": part.title,
                "device": arguments.device,
                "npz": str(images.path),
                "out": str(out),
                "argument": part.argument,
                "curve_rounds": arguments.curve_rounds,
            }
            ended, well = current.run(order, limit, end)
            current.end()
            log.status(ended, time.time() - began, well, "" if well else current.last_words())
            show(line for line in read(out) if line.part == part.title)
    finally:
        for process in (current, following, images):
            if process is not None:
                process.end()


def main(arguments: Sequence[str] | None = None, parts: Sequence[Part] = PARTS) -> int:
    given = _arguments(arguments, parts)
    if given.show is not None:
        show(read(given.show))
        return int(any(line.failed for line in read(given.show)))
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / RESULTS).touch()
    before = len(read(given.out))  # of an earlier call, whose lines stay
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        run([part for part in parts if part.name in given.parts], given)
    finally:
        lines = read(given.out)
        show(lines)
    return int(any(line.failed for line in lines[before:]))


def _arguments(arguments: Sequence[str] | None, parts: Sequence[Part]) -> argparse.Namespace:
    names = list(dict.fromkeys(part.name for part in parts))
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="default: cuda")
    parser.add_argument("--cifar10", type=Path, help="folder with CIFAR-10 as parquet; else random")
    parser.add_argument("--out", type=Path, default=Path("gpu-results"), help="where results go")
    scratch = Path(tempfile.gettempdir(), f"rayfl-gpu-{os.getuid()}")
    parser.add_argument("--scratch", type=Path, default=scratch, help="where images are decoded to")
    parser.add_argument("--limit", type=float, default=540, help="seconds for all; default: 540")
    parser.add_argument("--parts", default=",".join(names), help=f"some of {','.join(names)}")
    parser.add_argument("--curve-rounds", type=int, default=100, help="default: 100")
    parser.add_argument("--show", type=Path, metavar="OUT", help="print the table of OUT, no more")
    given = parser.parse_args(arguments)
    given.parts = given.parts.split(",")
    if unknown := set(given.parts) - set(names):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; there are {', '.join(names)}")
    if given.cifar10 is not None and not any(given.cifar10.glob("*.parquet")):
        parser.error(f"no parquet files in {given.cifar10}")
    return given


def _environment() -> dict[str, str]:
    """This process's, with the repository among what Python imports from."""
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return os.environ | {"PYTHONPATH": os.pathsep.join(paths)}


if __name__ == "__main__":
    sys.exit(main())
