"""rayfl: federated-learning experiments on Ray, with server momentum and sharpness-aware minimisation."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rayfl.algorithms import ALGORITHMS
    from rayfl.config.schema import load_config
    from rayfl.experiment import run

__all__ = ["ALGORITHMS", "load_config", "run"]
_HOMES = {
    "ALGORITHMS": "rayfl.algorithms",
    "load_config": "rayfl.config.schema",
    "run": "rayfl.experiment",
}


def __getattr__(name: str) -> Any:
    # Ray, torch and MLflow take seconds to import: not before something is used.
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'rayfl' has no attribute {name!r}")
