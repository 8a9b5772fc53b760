"""Questions about the geometry of a finished run: `flatness("latest")` measures what its checkpoint holds."""

from rayfl.diagnostics.measuring import Report, flatness
from rayfl.flatness.question import Question

__all__ = ["Question", "Report", "flatness"]
