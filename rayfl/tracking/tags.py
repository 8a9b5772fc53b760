"""Tags of an experiment's MLflow run: what it is, and the versions that it was made with."""

import importlib.metadata
import platform
import subprocess

from rayfl.config.schema import Experiment


def tags_of(experiment: Experiment) -> dict[str, str]:
    versions = {
        f"version.{package}": importlib.metadata.version(package)
        for package in ("rayfl", "ray", "torch", "numpy", "mlflow")
    }
    commit = _git_commit()
    return {
        "rayfl.algorithm": experiment.algorithm_name,
        "rayfl.seed": str(experiment.seed),
        "rayfl.config_hash": experiment.hash,
        "rayfl.kind": "experiment",
        "version.python": platform.python_version(),
        **versions,
        **({"mlflow.source.git.commit": commit} if commit else {}),
    }


def _git_commit() -> str | None:
    """Return the git commit of the working directory, which has the user's own methods."""
    try:
        done = subprocess.run(
            ["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
