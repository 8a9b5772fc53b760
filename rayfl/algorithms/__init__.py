"""The registry of algorithms: name in a config -> class. Adding a method is a file and a line here."""

from rayfl.algorithms.alone import Centralised, Local
from rayfl.algorithms.asyncsam import AsyncSAM
from rayfl.algorithms.base import Algorithm
from rayfl.algorithms.ditto import Ditto
from rayfl.algorithms.fedacg import FedACG
from rayfl.algorithms.fedadamw import FedAdamW
from rayfl.algorithms.fedasam import FedASAM
from rayfl.algorithms.fedavgm import FedAvgM
from rayfl.algorithms.fedcm import FedCM
from rayfl.algorithms.feddyn import FedDyn
from rayfl.algorithms.fedexp import FedExP
from rayfl.algorithms.fedgamma import FedGAMMA
from rayfl.algorithms.fedgf import FedGF
from rayfl.algorithms.fedgloss import FedGloSS
from rayfl.algorithms.fedgmt import FedGMT
from rayfl.algorithms.fedinit import FedInit
from rayfl.algorithms.fedlada import FedLADA
from rayfl.algorithms.fedlesam import FedLESAM, FedLESAMD, FedLESAMS
from rayfl.algorithms.fedmuon import FedMuon
from rayfl.algorithms.fednesterov import FedNesterov
from rayfl.algorithms.fednova import FedNova
from rayfl.algorithms.fednsam import FedNSAM, FedNSAMMomentum
from rayfl.algorithms.fedopt import FedAdagrad, FedAdam, FedYogi
from rayfl.algorithms.fedprox import FedProx
from rayfl.algorithms.fedrep import FedPer, FedRep
from rayfl.algorithms.fedsam import FedSAM
from rayfl.algorithms.fedsmoo import FedSMOO
from rayfl.algorithms.fedsol import FedSOL
from rayfl.algorithms.fedspeed import FedSpeed
from rayfl.algorithms.fedswa import FedMoSWA, FedSWA
from rayfl.algorithms.fedwmsam import FedWMSAM
from rayfl.algorithms.fedwmsam_released import FedWMSAMReleased
from rayfl.algorithms.fedwsam import FedWSAM
from rayfl.algorithms.igfl import IGFL
from rayfl.algorithms.local_adamw import LocalAdamW
from rayfl.algorithms.mofedsam import MoFedSAM
from rayfl.algorithms.moon import Moon
from rayfl.algorithms.scaffold import Scaffold

ALGORITHMS: dict[str, type[Algorithm]] = {
    "asyncsam": AsyncSAM,
    "centralised": Centralised,
    "ditto": Ditto,
    "fedacg": FedACG,
    "fedadagrad": FedAdagrad,
    "fedadam": FedAdam,
    "fedadamw": FedAdamW,
    "fedasam": FedASAM,
    "fedavg": Algorithm,
    "fedavgm": FedAvgM,
    "fedcm": FedCM,
    "feddyn": FedDyn,
    "fedexp": FedExP,
    "fedgamma": FedGAMMA,
    "fedgf": FedGF,
    "fedgloss": FedGloSS,
    "fedgmt": FedGMT,
    "fedinit": FedInit,
    "fedlada": FedLADA,
    "fedlesam": FedLESAM,
    "fedlesam_d": FedLESAMD,
    "fedlesam_s": FedLESAMS,
    "fedmoswa": FedMoSWA,
    "fedmuon": FedMuon,
    "fednesterov": FedNesterov,
    "fednova": FedNova,
    "fednsam": FedNSAM,
    "fednsam_momentum": FedNSAMMomentum,
    "fedper": FedPer,
    "fedprox": FedProx,
    "fedrep": FedRep,
    "fedsam": FedSAM,
    "fedsmoo": FedSMOO,
    "fedsol": FedSOL,
    "fedspeed": FedSpeed,
    "fedswa": FedSWA,
    "fedwmsam": FedWMSAM,
    "fedwmsam_released": FedWMSAMReleased,
    "fedwsam": FedWSAM,
    "fedyogi": FedYogi,
    "igfl": IGFL,
    "local": Local,
    "local_adamw": LocalAdamW,
    "mofedsam": MoFedSAM,
    "moon": Moon,
    "scaffold": Scaffold,
}

__all__ = ["ALGORITHMS", "Algorithm"]
