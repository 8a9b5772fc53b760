"""Draws docs/quickstart.png: five methods on configs/quickstart.yaml, three seeds each."""

from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from rayfl import load_config, run

ROOT = Path(__file__).parent.parent
METHODS = ["fedavg", "fedcm", "scaffold", "fednsam", "fedwmsam"]
SEEDS = [0, 1, 2]


def accuracies(method: str) -> pd.DataFrame:
    """Test accuracy by round, one column a seed."""
    columns = {}
    for seed in SEEDS:
        overrides = [f"algorithm.name={method}", f"seed={seed}", "tracking.enabled=false"]
        config = load_config(ROOT / "configs/quickstart.yaml", overrides)
        columns[seed] = run(config).history["test/accuracy"]
    return pd.DataFrame(columns)


def main() -> None:
    figure = Figure(figsize=(7, 3.6), layout="constrained")
    axes = figure.subplots()
    for method in METHODS:
        curve = accuracies(method)
        (line,) = axes.plot(curve.mean(axis=1), label=method)
        axes.fill_between(
            curve.index, curve.min(axis=1), curve.max(axis=1), alpha=0.15, color=line.get_color()
        )
    axes.set(xlabel="round", ylabel="test accuracy", ylim=(0.4, 1.0))
    axes.set_title("digits, 20 clients, Dirichlet 0.1, 5 clients a round", fontsize=10)
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right", fontsize=9)
    figure.savefig(ROOT / "docs/quickstart.png", dpi=130)


if __name__ == "__main__":
    main()
