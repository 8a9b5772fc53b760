"""Writes the table of docs/methods.md: every method on configs/quickstart.yaml, three seeds each.

    python docs/methods.py [METHOD ...]

With names, those alone are trained anew; the other rows stay.
"""

import os
import re
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pandas as pd

from rayfl import load_config, run
from rayfl.algorithms import ALGORITHMS

PAGE = Path(__file__).with_suffix(".md")
SEEDS = (0, 1, 2)
# Where a step has a size of its own, whatever the gradient's.
OPTIONS = {
    "local_adamw": ["federation.lr=0.003"],
    "fedadamw": ["federation.lr=0.003"],
    "fedlada": ["federation.lr=0.003"],
    "fedmuon": ["federation.lr=0.02"],
}
HEAD = (
    "| method | round 20 | round 50 | round 100 | last 10 | backward passes | up | down | kept |\n"
    "|---|---|---|---|---|---|---|---|---|\n"
)


def row(method: str) -> str:
    """One row of the table."""
    given = ["tracking.enabled=false", "checkpoint.every=null", *OPTIONS.get(method, [])]
    base = load_config("quickstart").model_dump(mode="json") | {"algorithm": {"name": method}}
    runs = []
    for seed in SEEDS:
        config = load_config(base, [*given, f"seed={seed}"])
        result = run(config, local=True)
        runs.append(result.history)
    parameters = sum(v.numel() for v in result.state_dict.values())
    accuracy = pd.DataFrame({s: h["test/accuracy"] for s, h in zip(SEEDS, runs, strict=True)})
    points = [accuracy.loc[r] for r in (20, 50, 100)] + [accuracy.iloc[-10:].mean()]
    cells = [f"{100 * p.mean():.1f} ± {100 * p.std():.1f}" for p in points]
    last = runs[-1]
    messages = 4 * parameters * last["cohort/size"]
    cells.append(f"{last['cost/backward_passes'].sum() / 1000:.1f} k")
    cells += [f"{(last[f'cost/bytes_{way}'] / messages).mean():.2g}" for way in ("up", "down")]
    memory = config.algorithm.init_client(next(iter(result.state_dict.values())).flatten())
    kept = sum(len(v) > 1 for v in memory.values())
    options = "".join(f" {option.partition('.')[2]}" for option in OPTIONS.get(method, []))
    return f"| {method}{options} | {' | '.join(cells)} | {kept} |"


def main(methods: list[str]) -> None:
    page = PAGE.read_text()
    before, _, rest = page.partition(HEAD)
    table, _, after = rest.partition("\n\n")
    rows = {re.split(r"[ |]+", line)[1]: line for line in table.splitlines()}
    with ProcessPoolExecutor(2) as pool:
        for method, line in zip(methods, pool.map(row, methods), strict=True):
            rows[method] = line
            print(line, flush=True)
            known = [rows[name] for name in ALGORITHMS if name in rows]
            PAGE.write_text(before + HEAD + "\n".join(known) + "\n\n" + after)


if __name__ == "__main__":
    main(sys.argv[1:] or list(ALGORITHMS))
