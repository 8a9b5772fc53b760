"""The bare captured loop: what one would write for one method, without a framework, to be fast on a GPU.

Plain PyTorch on flat vectors, a step of one client as one CUDA graph, minibatches that lie on the GPU before
the loop begins. Uploads, memories and augmentation are left out. On a CPU the steps are taken one by one.
"""

import copy
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rayfl.algorithms.fedwmsam import FedWMSAM
from rayfl.training.engine import Engine
from rayfl.training.flat import Layout
from rayfl.training.local import SGD
from rayfl.training.units import Broadcast


class BareClient:
    """One client's round of FedAvg or FedWMSAM."""

    def __init__(self, model: nn.Module, trainer: Engine, sent: Broadcast, sgd: SGD, client: int):
        """The same minibatches as the engine `trainer` gives `client` in round 1."""
        device = trainer.device
        self.sgd, self.algorithm = sgd, trainer.algorithm
        self.start = torch.tensor(sent.start, device=device)
        schedule = trainer.stacks.schedule(1, client)
        batches = [trainer.train_data.batches([schedule])(k) for k in range(len(schedule.sizes))]
        self.inputs = torch.stack([b.inputs[0].permute(0, 2, 3, 1) for b in batches]).clone()
        self.targets = torch.stack([b.targets[0] for b in batches])
        self.model = copy.deepcopy(model).to(device).train()
        self.x, self.at = self.start.clone(), self.start.clone()
        self.gradient = torch.zeros_like(self.start)
        named = dict(self.model.named_parameters())
        for slot in Layout(self.model).parameters:
            named[slot.name].data = slot.view(self.at)
            named[slot.name].grad = slot.view(self.gradient)
        self.k = torch.zeros(1, dtype=torch.int64, device=device)
        self.shared = {n: torch.tensor(v, device=device) for n, v in sent.shared.items()}
        self.momentum = self._momentum()
        self.stream = torch.cuda.Stream() if device.type == "cuda" else None
        self.graph: torch.cuda.CUDAGraph | None = None

    def _momentum(self) -> Tensor:
        """(1 - alpha) Delta_i of a client in its first round."""
        if not isinstance(self.algorithm, FedWMSAM):
            return torch.zeros_like(self.start)
        alpha, Delta, c = (self.shared[name] for name in ("alpha", "Delta", "c"))
        return (1 - alpha) * Delta + alpha * c

    def step(self) -> None:
        """One local step, without augmentation."""
        x, at, algorithm = self.x, self.at, self.algorithm
        if isinstance(algorithm, FedWMSAM):
            # The way to the predicted position times 1 - alpha, as only its direction counts.
            torch.sub(self.start, x, out=at)
            ahead = self.k.to(x.dtype) * -float(self.sgd.lr)
            at.mul_(1 - self.shared["alpha"]).addcmul_(self.momentum, ahead)
            radius = algorithm.rho / torch.linalg.vector_norm(at).clamp_min(1e-12)
            torch.addcmul(x, at, radius, out=at)
        else:
            at.copy_(x)
        self.gradient.zero_()
        inputs = self.inputs.index_select(0, self.k)[0].permute(0, 3, 1, 2)
        targets = self.targets.index_select(0, self.k)[0]
        with torch.enable_grad():
            F.cross_entropy(self.model(inputs), targets).backward()
        direction = self.gradient
        if isinstance(algorithm, FedWMSAM):
            torch.addcmul(self.momentum, direction, self.shared["alpha"], out=direction)
        rate = torch.as_tensor(self.sgd.lr, dtype=x.dtype, device=x.device)
        x.mul_(1 - rate * self.sgd.weight_decay)
        if self.sgd.clip_norm is not None:
            length = torch.linalg.vector_norm(direction)
            rate = rate * (self.sgd.clip_norm / (length + 1e-6)).clamp_max(1.0)
        x.addcmul_(direction, -rate)
        self.k += 1

    def reset(self) -> None:
        """Go back to the first step."""
        self.x.copy_(self.start)
        self.k.zero_()

    @torch.no_grad()
    def capture(self) -> None:
        """Record the step; nothing on a CPU."""
        if self.stream is None:
            return
        # A number from the host cannot be copied while a step is captured.
        self.sgd = SGD(
            lr=torch.as_tensor(self.sgd.lr, device=self.x.device),
            weight_decay=self.sgd.weight_decay,
            clip_norm=self.sgd.clip_norm,
        )
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            for _ in range(2):
                self.step()
        self.stream.synchronize()
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph, stream=self.stream):
            self.step()
        torch.cuda.synchronize()
        self.reset()
        torch.cuda.synchronize()

    @torch.no_grad()
    def take(self) -> None:
        """Take the next step, or launch it."""
        if self.graph is None or self.stream is None:
            return self.step()
        with torch.cuda.stream(self.stream):
            self.graph.replay()


def seconds_per_step(clients: Sequence[BareClient], wait: Callable[[], None]) -> float:
    """Seconds of a client's step while all of these go through a round at once."""
    for client in clients:
        client.reset()
    wait()
    steps, began = len(clients[0].inputs), time.perf_counter()
    for _ in range(steps):
        for client in clients:
            client.take()
    wait()
    return (time.perf_counter() - began) / steps / len(clients)
