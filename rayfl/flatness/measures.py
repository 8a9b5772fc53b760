"""Everything that is measured around one point, as metrics by name.

Names: `loss`, `gradient_norm`, `gap_RHO`, `worst_gap_RHO`, `average_gap_RHO`, `lambda1` to `lambda5`,
`lambda_min`, `lambda_ratio` (lambda1 / lambda5) and `trace`. `NAME_se` is the standard error of NAME.
Those of the scale-free geometry begin with `scale_free/`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from rayfl.algorithms.base import TensorInfo
from rayfl.flatness import draws, gaps, spectrum
from rayfl.flatness.objective import Objective

TOPS = 5  # eigenvalues


@dataclass(frozen=True, kw_only=True)
class Effort:
    """The measures that are taken, and with how much effort."""

    rhos: tuple[float, ...] = (0.01, 0.05, 0.1)
    scale_free_rhos: tuple[float, ...] = (0.1, 0.5, 1.0)
    """Sizes in the scale-free geometry, ten times the others by default, as adaptive SAM takes them."""
    draws: int = 20
    """Draws of noise, and vectors for the trace."""
    lanczos_steps: int = 40
    """Hessian-vector products for the eigenvalues, at most."""
    minibatches: int = 20
    """Draws of a minibatch at each client, for the variance."""
    grid: int = 21
    """Points along each side of a landscape."""


@dataclass
class Around:
    """Measurements around one point."""

    metrics: dict[str, float] = field(default_factory=dict)
    spectra: dict[str, spectrum.Spectrum] = field(default_factory=dict)
    """By prefix: empty, or `scale_free/`."""


def measure_gaps(objective: Objective, tensors: Sequence[TensorInfo], effort: Effort) -> Around:
    """Loss, gradient norm, and the gaps of both geometries."""
    loss, gradient = objective.gradient()
    found = Around({"loss": loss})
    w = objective.w
    for prefix, geometry, rhos in (
        ("", gaps.EUCLIDEAN, effort.rhos),
        ("scale_free/", gaps.Geometry.scale_free(w), effort.scale_free_rhos),
    ):
        generator = draws.generator("noise")
        metrics = {"gradient_norm": geometry.gradient_norm(gradient)}
        rises = gaps.sam_gaps(objective, gradient, rhos, geometry)
        metrics |= {f"gap_{rho:g}": rise for rho, rise in zip(rhos, rises, strict=True)}
        worst = gaps.worst_gaps(objective, gradient, rhos, geometry)
        metrics |= {f"worst_gap_{rho:g}": rise for rho, rise in zip(rhos, worst, strict=True)}
        for rho in rhos:

            def noise(rho: float = rho, prefix: str = prefix, drawn=generator) -> Tensor:
                if prefix:
                    return gaps.filter_noise(w, tensors, rho, drawn)
                return gaps.euclidean_noise(w, rho, drawn)

            mean = gaps.average_gap(objective, noise, effort.draws)
            metrics[f"average_gap_{rho:g}"], metrics[f"average_gap_{rho:g}_se"] = mean
        found.metrics |= {prefix + name: value for name, value in metrics.items()}
    return found


def measure_hessian(objective: Objective, effort: Effort) -> Around:
    """Eigenvalues and trace of the Hessian H, and of T H T with T = diag(|w|)."""
    found, w = Around(), objective.w
    for prefix, products in (
        ("", objective.products),
        ("scale_free/", spectrum.scaled(objective.products, w.abs())),
    ):
        eigen = spectrum.lanczos(
            products,
            draws.lanczos_start(w),
            effort.lanczos_steps,
            TOPS,
            tolerance=spectrum.TOLERANCE,
        )
        values = eigen.eigenvalues
        metrics = {f"lambda{i + 1}": float(v) for i, v in enumerate(values[:TOPS])}
        metrics["lambda_min"] = float(values[-1])
        if len(values) >= TOPS and values[TOPS - 1] > 0:
            metrics["lambda_ratio"] = float(values[0] / values[TOPS - 1])
        trace = spectrum.trace(products, w, effort.draws, draws.generator("trace"))
        metrics["trace"], metrics["trace_se"] = trace
        found.metrics |= {prefix + name: value for name, value in metrics.items()}
        found.spectra[prefix] = eigen
    return found


# Forward passes that a gradient takes as long as, and a Hessian-vector product.
COSTS = {"losses": 1.0, "gradient": 4.0, "products": 11.0}


def cost_of(measure: str, effort: Effort) -> float:
    """About how many forward passes over the samples the measure takes, in both geometries."""
    if measure == "landscape":
        return 2.0 * effort.grid**2
    if measure == "tops":
        return COSTS["gradient"] + COSTS["products"] * effort.lanczos_steps
    if measure == "hessian":
        return 2 * COSTS["products"] * (effort.lanczos_steps + effort.draws)
    rhos = len(effort.rhos) + len(effort.scale_free_rhos)
    ascent = gaps.ASCENT_STEPS * COSTS["gradient"] + 2
    return COSTS["gradient"] + 2 + rhos * (1 + ascent + (2 + 1 / gaps.AT_ONCE) * effort.draws)
