"""A dataset, a partition scheme and the heterogeneity options -> what the clients of an experiment hold."""

from rayfl.data.datasets import Dataset
from rayfl.data.heterogeneity import Heterogeneity, long_tail, shift
from rayfl.data.partition import Partition, Scheme, hold_out, split
from rayfl.errors import ConfigError


def federate(
    data: Dataset,
    scheme: Scheme,
    heterogeneity: Heterogeneity,
    clients: int,
    seed: int,
    validation: float | None = None,
) -> tuple[Dataset, Partition]:
    """Thin out the classes of the data, split what is left, hold some out, and shift each client's share.

    The labels of the Dataset are those that clients train on. What is held out to validate with, the share
    `validation`, is not shifted, as the test set is not: it is to foretell the test set's accuracy.
    Raises ConfigError if that cannot be.
    """
    data = long_tail(data, heterogeneity.imbalance_factor, seed)
    if scheme.by_class and data.kind != "classes":
        raise ConfigError(
            f"goes by classes, and the samples of {data.name!r} have {data.kind} to predict; take iid, "
            "quantity or by_group (inner=iid)",
            key="partition.name",
        )
    partition = split(scheme, data.categories()[0], clients, seed, data.group_train)
    if validation is not None:
        partition = hold_out(partition, validation, seed)
    return shift(data, partition, heterogeneity, seed), partition
