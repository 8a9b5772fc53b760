"""The registry of algorithms: name in a config -> class. Adding a method is a file and a line here."""

from rayfl.algorithms.base import Algorithm
from rayfl.algorithms.fedavg import FedAvg
from rayfl.algorithms.fedavgm import FedAvgM
from rayfl.algorithms.fedcm import FedCM
from rayfl.algorithms.fednsam import FedNSAM, FedNSAMMomentum
from rayfl.algorithms.fedsam import FedSAM
from rayfl.algorithms.fedwmsam import FedWMSAM
from rayfl.algorithms.scaffold import Scaffold

ALGORITHMS: dict[str, type[Algorithm]] = {
    "fedavg": FedAvg,
    "fedavgm": FedAvgM,
    "fedcm": FedCM,
    "fednsam": FedNSAM,
    "fednsam_momentum": FedNSAMMomentum,
    "fedsam": FedSAM,
    "fedwmsam": FedWMSAM,
    "scaffold": Scaffold,
}

__all__ = ["ALGORITHMS", "Algorithm"]
