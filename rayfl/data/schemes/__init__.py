"""The partition schemes: one dataclass each, its fields are the options of `partition:`."""

from rayfl.data.partition import Scheme
from rayfl.data.schemes.by_group import ByGroup
from rayfl.data.schemes.dirichlet import Dirichlet, DirichletPerClass
from rayfl.data.schemes.pathological import Pathological, Shards
from rayfl.data.schemes.sizes import IID, Quantity

SCHEMES: dict[str, type[Scheme]] = {
    "iid": IID,
    "dirichlet": Dirichlet,
    "dirichlet_per_class": DirichletPerClass,
    "pathological": Pathological,
    "shards": Shards,
    "quantity": Quantity,
    "by_group": ByGroup,
}
