"""Work on a run that has ended: `export("latest", "model.safetensors")` writes its model."""

from rayfl.finished.clean import Folder, folders
from rayfl.finished.evaluate import Evaluated, evaluate
from rayfl.finished.export import export

__all__ = ["Evaluated", "Folder", "evaluate", "export", "folders"]
