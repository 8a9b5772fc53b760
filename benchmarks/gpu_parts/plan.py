"""The parts of the GPU benchmark, in the order of their worth. This module imports nothing slow."""

from dataclasses import dataclass

CURVES = ("fedwmsam", "fedavg", "fednsam")


@dataclass(frozen=True)
class Part:
    """One process of the benchmark."""

    name: str  # as `--parts` takes it
    module: str  # has `run(setup, log)`
    limit: float | None  # seconds that it may take; None: an even share of what is left
    needs_data: bool = True
    needs_ray: bool = False
    argument: str = ""
    least: float = 5  # seconds below which it is not worth a start

    @property
    def title(self) -> str:
        return f"{self.name} {self.argument}".rstrip()


def _part(name: str, limit: float | None, **given: bool | str | float) -> Part:
    return Part(name, f"benchmarks.gpu_parts.{name}", limit, **given)  # pyright: ignore


PARTS = (
    _part("machine", 10, needs_data=False),
    _part("speed", 60),
    _part("rounds", 60),
    _part("bits", 40, needs_data=False),
    _part("ray_runs", 100, needs_ray=True, least=30),
    _part("gradients", 30, needs_data=False),
    _part("profile", 20),
    *(_part("curves", None, argument=method) for method in CURVES),
)
