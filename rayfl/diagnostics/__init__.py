"""Questions about the geometry of a finished run: `flatness("latest")` measures what its checkpoint holds."""

from rayfl.diagnostics.interpolation import Interpolation, interpolate
from rayfl.diagnostics.measuring import Report, flatness
from rayfl.diagnostics.sweeps import SweepReport, flatness_of_sweep, sweep_named
from rayfl.flatness.question import Question

__all__ = [
    "Interpolation",
    "Question",
    "Report",
    "SweepReport",
    "flatness",
    "flatness_of_sweep",
    "interpolate",
    "sweep_named",
]
