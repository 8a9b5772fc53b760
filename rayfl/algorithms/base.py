"""The interface of an algorithm: pure functions on flat vectors, whose defaults together are FedAvg.

Two more, `upload_bytes` and `global_momentum`, change no result: they are there for metrics.

FedAvg is McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized Data",
AISTATS 2017, arXiv:1602.05629, Algorithm 1: local SGD, then the mean. Deviation: the mean over the cohort is
uniform, as in the papers that this project reproduces, unless `federation.weighting` says otherwise (the
paper's is weighted by sample counts); a server learning rate `server_lr` (1 in the paper) scales it.

Shapes: P parameters, C clients of a stack. Every vector is `[..., P]`, every scalar `[..., 1]`:
`[P]` and `[1]` on the server, `[C, P]` and `[C, 1]` where C clients are trained together. Reduce over
the last axis only, and one rule serves both. Server state that does not travel may have any shape.

Rules, which `rayfl.training.contract` checks on a method of one's own before any actor starts:

* Draw no random numbers but those of `ctx.random`, do no I/O, and keep nothing from one call to the next.
* Change no tensor or dict that a function was given.
* Do not look at the value of a tensor that has a row for each client (`if`, `float()`, `.item()`): one Python
  number cannot serve several clients, and a branch on it would depend on who is trained beside whom. Choose
  with `torch.where`. Branch on `ctx.step`, hyper-parameters and shapes as you like.
* Return finite values, with the names, shapes and dtypes that `init_server` and `init_client` gave.

Gradients, momenta and control variates point uphill (the gradient convention); `delta` points downhill.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from rayfl.algorithms.fields import ServerLR
from rayfl.algorithms.noise import Random, unseeded
from rayfl.algorithms.tensors import TensorInfo
from rayfl.algorithms.vectors import perturb_, scaled_to

Vectors = dict[str, Tensor]


class Batch(NamedTuple):
    """The knowledge that a penalty may use of the minibatch, beside the model's outputs on it."""

    targets: Tensor
    """The labels, int64 `[..., B]`."""
    forward: Callable[[Tensor], Tensor]
    """`forward(y)`: outputs `[..., B, classes]` at other parameters y `[..., P]`, as constants."""


Penalty = Callable[[Tensor, Batch], Tensor]
"""`(outputs, batch) -> [..., B]`: a term that is added to the loss of each sample.

`outputs [..., B, classes]` are the model's where the gradient is taken, and the term is differentiated
through them. Where a token is predicted at each position, each counts as a sample of its own. Targets are
float `[..., B, D]` where D numbers are.
"""


class Loss(NamedTuple):
    """The objective whose gradient is taken: the mean over a minibatch's samples of all these."""

    penalty: Penalty | None = None
    cross_entropy: bool = True
    """False: the penalty alone."""
    samples: int | None = None
    """The minibatch's first so many samples, or all if it has fewer; None: all."""


class Grad(Protocol):
    """`[..., P] -> [..., P]`: each client's gradient on its minibatch. One call, one backward pass.

    The gradient is a new vector and the caller's own, who may change it. `Loss` explains the options.
    """

    def __call__(
        self,
        x: Tensor,
        penalty: Penalty | None = None,
        /,
        *,
        cross_entropy: bool = True,
        samples: int | None = None,
    ) -> Tensor: ...


@dataclass(frozen=True)
class ExperimentInfo:
    """Facts that are the same for all clients and rounds of an experiment."""

    samples: np.ndarray = field(compare=False)
    """Training samples of each of the N clients, int64 `[N]`; do not write to it."""
    batch_size: int
    local_epochs: int | None
    """E; None: each client takes `local_steps`."""
    local_steps: int | None
    tensors: tuple[TensorInfo, ...]
    """The model's trained tensors in PyTorch's order, which is theirs in the flat vector."""

    @property
    def clients(self) -> int:
        """N."""
        return len(self.samples)

    @functools.cached_property
    def mean_samples(self) -> float:
        """Samples of a client, on average."""
        return int(np.sum(self.samples)) / self.clients


class ClientContext(NamedTuple):
    """A client's knowledge in its round."""

    start: Tensor
    """Start point of the round, `[..., P]`."""
    shared: Vectors
    """The other vectors of the broadcast."""
    lr: float | Tensor
    """Local learning rate of this round; the local loop has it as a tensor `[]`."""
    steps: Tensor
    """K_i, local steps that the client takes in this round, `[..., 1]`."""
    step: int
    """k, number of the current local step, from 0."""
    round: int | Tensor
    """Number of the round, from 1; the local loop has it as a tensor `[]`, as `lr`."""
    experiment: ExperimentInfo
    samples: Tensor
    """n_i, training samples of the client, `[..., 1]`."""
    random: Random = unseeded
    """Seeded random numbers; `upload` has others than any step."""


class ServerContext(NamedTuple):
    """The server's knowledge when it aggregates."""

    lr: float
    """Local learning rate of this round."""
    steps: float
    """Mean of K_i over the cohort, weighted as the uploads are."""
    participation: float
    """S / N, with the S clients whose uploads are averaged.

    Where they are weighted, their share of all N clients' weight: with it `state + participation * mean` goes
    on with a mean over all clients by their weights, as long as a client weighs the same in each round.
    """
    round: int
    """Number of the round, from 1."""
    random: Random = unseeded
    """Seeded random numbers."""


@dataclass(frozen=True, kw_only=True)
class Algorithm:
    """FedAvg, and the base of every other method: the fields of a subclass are its hyper-parameters."""

    paper: ClassVar[str] = "McMahan et al., AISTATS 2017, arXiv:1602.05629"
    """Source of the method, one line."""
    clips_gradients: ClassVar[bool] = False
    """Let `federation.clip_norm` clip each gradient, not the direction d.

    Set it where d is no sum of gradients: the norm of Adam's is about sqrt(P) whatever the gradient's.
    """
    only_at_start: ClassVar[frozenset[str]] = frozenset()
    """Hyper-parameters that are read before the first round alone, and cannot change over the rounds."""
    compares_outputs: ClassVar[bool] = False
    """True if it compares a model's outputs with another's, as logits of classes or tokens."""
    pools_data: ClassVar[bool] = False
    """True if one client has the data of all, and takes a round's local steps: no federation."""
    sends: ClassVar[Literal["all", "part", "nothing"]] = "all"
    """The part of the model that travels: all, a part (clients keep the rest for themselves), or nothing."""
    server_lr: ServerLR = 1.0

    @property
    def keeps_models(self) -> bool:
        """True if clients keep models of their own, which are then evaluated on their own data."""
        return type(self).personal is not Algorithm.personal

    def at(self, round: int) -> "Algorithm":
        """The method in this round, from 1: itself, unless hyper-parameters change over the rounds.

        The config says whether they do (`rayfl.algorithms.scheduled`): no method has to override it.
        """
        return self

    def init_server(self, w: Tensor) -> Vectors:
        """Server state before the first round."""
        return {}

    def init_client(self, w: Tensor) -> Vectors:
        """Memory of a client that has not been in a cohort yet."""
        return {}

    def broadcast(self, w: Tensor, server: Vectors) -> tuple[Tensor, Vectors]:
        """Start point of the cohort and the vectors that travel down with it."""
        return w, {}

    def client_start(self, memory: Vectors, ctx: ClientContext) -> Tensor:
        """A client's first iterate, `[..., P]`: the cohort's start point, unless the client has its own.

        There are no random numbers for it.
        """
        return ctx.start

    def personal(self, memory: Vectors, ctx: ClientContext) -> Tensor:
        """A client's own model, `[..., P]`, beside the global one, `ctx.start`; evaluated, never averaged.

        There are no random numbers for it, and no `ctx.shared`.
        """
        return ctx.start

    def local_step(
        self, x: Tensor, memory: Vectors, grad: Grad, ctx: ClientContext
    ) -> tuple[Tensor, Vectors]:
        """Direction d of one step `x <- x - lr * (clip(d) + weight_decay * x)`, and the memory.

        Step 0 may put more vectors into the memory, for the rest of the round: `upload` drops them.
        """
        return grad(x), memory

    def upload(self, delta: Tensor, memory: Vectors, ctx: ClientContext) -> tuple[Vectors, Vectors]:
        """Uploads after the last step, given `delta` = last iterate - `ctx.start`, and the memory.

        The client remembers the memory that this returns, with the names that `init_client` gave it.
        `ctx.step` is the number of steps of the longest client here.
        """
        return {"delta": delta}, memory

    def server_step(
        self, w: Tensor, server: Vectors, mean: Vectors, ctx: ServerContext
    ) -> tuple[Tensor, Vectors]:
        """New parameters and server state; `mean[name]` is the cohort's mean of that upload.

        It is weighted as `federation.weighting` says.
        """
        return w + self.server_lr * mean["delta"], server

    def upload_bytes(self, uploads: Vectors, experiment: ExperimentInfo) -> Tensor:
        """Bytes that each client sends for these `uploads`, int64 `[C]`: here, all their numbers as they are.

        A method overrides it whose uploads `[C, P]` stand for less: some entries with their positions,
        or numbers of fewer bits. The metric cost/bytes_up adds them up, with the model's buffers.
        """
        dense = sum(v.element_size() * v.shape[-1] for v in uploads.values())
        return torch.full((len(uploads["delta"]),), dense)

    def global_momentum(self, server: Vectors) -> Tensor | None:
        """The step that the momentum in `server` adds: downhill, with its weight, `[P]`; None without one.

        The metric update/cos_momentum compares it with the cohort's mean update. Control variates and dual
        variables are no momentum: they turn clients against each other, not all of them one way.
        """
        return None


def sam(grad: Grad, rho: float) -> Grad:
    """Sharpness-aware gradient oracle: `grad(x + rho * g / ||g||)` with `g = grad(x)`, two backward passes.

    Foret et al., "Sharpness-Aware Minimization", ICLR 2021, arXiv:2010.01412, equation (2). The norm is
    the global one over all parameters; both passes see the same minibatch.
    """

    def perturbed(x: Tensor, *penalty: Any, **options: Any) -> Tensor:
        return grad(perturb_(grad(x, *penalty, **options), x, rho), *penalty, **options)

    return perturbed


def adaptive_sam(grad: Grad, rho: float, eta: float) -> Grad:
    """Adaptive SAM: `grad(x + rho * T^2 g / ||T g||)` with `T = |x| + eta`, element by element.

    Kwon et al., "ASAM: Adaptive Sharpness-Aware Minimization for Scale-Invariant Learning of Deep Neural
    Networks", ICML 2021, arXiv:2102.11600. Two backward passes, as `sam`.
    """

    def perturbed(x: Tensor, *penalty: Any, **options: Any) -> Tensor:
        T = x.abs() + eta
        e = T * scaled_to(T * grad(x, *penalty, **options), rho)
        return grad(x + e, *penalty, **options)

    return perturbed


def shifted(grad: Grad, e: Tensor) -> Grad:
    """Gradient oracle at x + e instead of x."""

    def at(x: Tensor, *penalty: Any, **options: Any) -> Tensor:
        return grad(x + e, *penalty, **options)

    return at
