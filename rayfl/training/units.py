"""Work units and what travels with them: the messages between the server and the clients.

Shapes: C clients of a unit, P parameters, Q entries of float buffers.
"""

from typing import Literal, NamedTuple

import numpy as np

Arrays = dict[str, np.ndarray]
# A model is evaluated on the test set, or on the training samples that are held out.
Split = Literal["test", "validation"]


class WorkUnit(NamedTuple):
    """Some clients of one round: what a client actor executes at a time."""

    round: int
    clients: tuple[int, ...]
    lr: float
    # Names of the memories that go into the unit, one a client (None: it has no name), and of those that
    # come out: a device that still has a memory of this name need not be sent it. They change no result.
    memories: tuple[bytes | None, ...] = ()
    name: bytes | None = None


class Broadcast(NamedTuple):
    """Vectors that travel down, float32."""

    start: np.ndarray  # `[P]`
    shared: Arrays  # `[P]` or `[1]` each
    buffers: np.ndarray  # `[Q]`
    key: bytes | None = None  # equal keys: the same vectors; None: not known

    @property
    def nbytes(self) -> int:
        """Bytes of all vectors."""
        return sum(v.nbytes for v in (self.start, self.buffers, *self.shared.values()))


class Probe(NamedTuple):
    """A question about the loss on some samples, around the start of a broadcast.

    Vectors `[j, P]` come beside it. losses: at start + coefficients @ vectors; gradient: the same, with the
    gradient there, of one point; products: the Hessian at the start times each vector.
    """

    quantity: Literal["losses", "gradient", "products"]
    split: Literal["train", "test"]
    samples: np.ndarray  # indices into the split's data, int64 `[n]`
    coefficients: np.ndarray | None = None  # float64 `[k, j]`


class ProbeResult(NamedTuple):
    """Means over the samples of a probe."""

    losses: np.ndarray  # float64 `[k]`; empty for products
    vectors: np.ndarray  # the gradient `[1, P]` or the products `[j, P]`; empty for losses


# A measure of one client; end: no more than where its training ends.
ClientMeasure = Literal["alignment", "variance", "end"]


class ClientProbe(NamedTuple):
    """A question about the loss of one client, around the server's parameters and its own last iterate.

    With it come the server's parameters as the start of a broadcast, the round's broadcast, the client's
    memory, and vectors of the pooled loss at the server's parameters: `gradient [1, P]` and top eigenvectors
    `tops [k, P]`.
    """

    unit: WorkUnit  # of this client alone: its training is run again
    measure: ClientMeasure
    samples: int  # of the client's own, at most
    rhos: tuple[float, ...]
    lanczos_steps: int
    minibatches: int  # draws for the variance


class ClientProbeResult(NamedTuple):
    """Measurements of one client."""

    metrics: dict[str, float]
    vectors: Arrays  # `[P]` each; `buffers [Q]` of its last iterate


class Personal(NamedTuple):
    """A client whose own model is evaluated on its own distribution."""

    round: int  # after which
    client: int
    lr: float
    steps: int  # of local SGD before its evaluation
    samples: np.ndarray  # of the test set, int64 `[m]`
    weights: np.ndarray  # of each in the client's accuracy, float64 `[m]`; 1 in all


class PersonalResult(NamedTuple):
    """Accuracies on the client's own distribution."""

    before: float  # of the global model
    after: float  # of the client's own


class UnitResult(NamedTuple):
    """Sums and measurements of a work unit; the clients' memories travel beside it."""

    # Each upload times its client's weight, summed over the clients in their order; `buffers [Q]` among them.
    sums: Arrays
    weights: np.ndarray  # of each client in the cohort's mean, float64 `[C]`
    losses: np.ndarray  # `[C]`, mean training loss of each client
    drifts: np.ndarray  # `[C]`, L2 norm of each client's delta, float64
    steps: np.ndarray  # K_i of each client, int64 `[C]`
    backward_passes: int
    bytes_up: int  # of all clients' uploads, as they send them
    seconds: float
    clipped: int = 0  # clients whose uploads were clipped


class EvaluationResult(NamedTuple):
    """Loss and scores of the model on a piece of a split."""

    loss: float  # summed over the samples
    # By sample `[m]`: bool, true where the class was right; or float32, the share of right tokens, or the
    # squared error of numbers.
    scores: np.ndarray
    outputs: np.ndarray | None = None  # float32 `[m, ...]`; None: nobody asked for them
