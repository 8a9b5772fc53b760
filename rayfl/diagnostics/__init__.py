"""Questions about the geometry of a finished run: `flatness("latest")` measures what its checkpoint holds."""

from rayfl.diagnostics.measuring import Question, Report, flatness

__all__ = ["Question", "Report", "flatness"]
