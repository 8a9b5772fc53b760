"""What is done with a run that has ended: `export("latest", "model.safetensors")` writes its model."""

from rayfl.finished.export import export

__all__ = ["export"]
