"""Models of the tests' own, named in configs by their import path, and the engines that take them."""

from torch import nn

from rayfl.algorithms import ALGORITHMS

# Overrides of the small experiment that have its local steps computed in each of the ways that there are.
ENGINES = {
    "BatchedMLP": [],
    "PerClientGradient": ["model.name=convolutions:with_batch_norm"],
    "VmapGradient": [
        "model.name=convolutions:plain",
        "federation.stack=2",
        "federation.clients_per_unit=3",
    ],
}
METHODS_AND_ENGINES = [(name, "BatchedMLP") for name in ALGORITHMS] + [
    ("fedwmsam", engine) for engine in ENGINES if engine != "BatchedMLP"
]
METHODS_AND_ENGINES += [("noisy:Noisy", engine) for engine in ENGINES]


def with_batch_norm(num_classes):
    return nn.Sequential(
        nn.Conv2d(1, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Dropout(0.2),
        nn.Flatten(),
        nn.Linear(4 * 6 * 6, num_classes),
    )


def plain(num_classes):
    """Its second convolution sees the centre of its kernel alone."""
    return nn.Sequential(
        nn.Conv2d(1, 4, 8),
        nn.ReLU(),
        nn.Conv2d(4, 4, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(4, num_classes),
    )
