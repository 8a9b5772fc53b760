"""A method of one's own, each call of which is watched for the rules of `algorithms/base.py`.

Shapes: C clients of the stack, P parameters.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from rayfl.algorithms.base import (
    Algorithm,
    ClientContext,
    ExperimentInfo,
    Grad,
    Loss,
    ServerContext,
    Vectors,
)
from rayfl.algorithms.noise import ClientNoise, server_noise, unseeded
from rayfl.training.batches import Minibatch
from rayfl.training.quadratics import Quadratics
from rayfl.training.watching import Given, Watch, kind, same

# K_i of the stack's clients: one finishes before the other. Some methods act from a later step only.
STEPS = (7, 5)
SAMPLES = (61, 47)  # n_i, unlike each other, too
# Between a client's row of the stack and the client alone, relative: sums may be rounded differently.
TOLERANCE = 1e-4


@dataclass(frozen=True, kw_only=True)
class Watched(Algorithm):
    """The method, in which a call raises `Broken` if it breaks a rule."""

    method: Algorithm
    watch: Watch
    oracle: Quadratics
    # One for each of the round's local steps.
    batches: list[Minibatch] = field(default_factory=list)

    def init_server(self, w: Tensor) -> Vectors:
        return self.watch("init_server", {"w": w}, lambda: self.method.init_server(w))

    def init_client(self, w: Tensor) -> Vectors:
        memory = self.watch("init_client", {"w": w}, lambda: self.method.init_client(w))
        for name, value in memory.items():
            if value.dim() != 1:
                self.watch.refuse_kind("init_client", f"memory[{name!r}]", value, "[P] or [1]")
        return memory

    def broadcast(self, w: Tensor, server: Vectors) -> tuple[Tensor, Vectors]:
        given: Given = {"w": w, "server": server}
        start, shared = self.watch("broadcast", given, lambda: self.method.broadcast(w, server))
        self.watch.must_be("broadcast", "start", start, "w", w)
        return start, shared

    def client_start(self, memory: Vectors, ctx: ClientContext) -> Tensor:
        given: Given = {"memory": memory} | _given(ctx)

        def call() -> Tensor:
            return self.method.client_start(memory, ctx)

        def alone(i: int) -> Tensor:
            return self.method.client_start(
                _rows(memory, i), _alone(ctx, i)._replace(random=unseeded)
            )

        first = self.watch("client_start", given, call)
        self.watch.must_be("client_start", "first", first, "ctx.start", ctx.start)
        self._must_not_mix("client_start", first, alone, range(len(STEPS)))
        return first

    def local_step(
        self, x: Tensor, memory: Vectors, grad: Grad, ctx: ClientContext
    ) -> tuple[Tensor, Vectors]:
        given: Given = {"x": x, "memory": memory} | _given(ctx)
        direction, new = self.watch(
            "local_step", given, lambda: self.method.local_step(x, memory, grad, _seeded(ctx))
        )
        self.watch.must_be("local_step", "direction", direction, "x", x)
        self._must_have_rows("local_step", "memory", new)
        added = {n: v for n, v in new.items() if n not in memory and ctx.step == 0}
        dropped = {n: v for n, v in memory.items() if n not in new}
        self.must_keep("local_step", "memory", new | dropped, memory | added, "before")

        def alone(i: int) -> tuple[Tensor, Vectors]:
            inputs, targets, _ = self.batches[ctx.step]
            batch = Minibatch(_row(inputs, i), _row(targets, i), None)

            def my_grad(at: Tensor, *penalty: Any, **options: Any) -> Tensor:
                return self.oracle(at, batch, Loss(*penalty, **options))[0]

            return self.method.local_step(_row(x, i), _rows(memory, i), my_grad, _alone(ctx, i))

        running = [i for i, count in enumerate(STEPS) if ctx.step < count]
        self._must_not_mix("local_step", (direction, new), alone, running)
        return direction, new

    def upload(self, delta: Tensor, memory: Vectors, ctx: ClientContext) -> tuple[Vectors, Vectors]:
        given: Given = {"delta": delta, "memory": memory} | _given(ctx)
        uploads, new = self.watch(
            "upload", given, lambda: self.method.upload(delta, memory, _seeded(ctx))
        )
        self._must_have_rows("upload", "uploads", uploads)
        if "delta" not in uploads or "buffers" in uploads:
            self.watch.refuse(
                "upload",
                f"returns the uploads {sorted(uploads)}: 'delta' must be among them (its norm is the metric "
                "train/drift), and 'buffers' must not, which is the name of the model's own",
            )
        self.watch.must_be("upload", "uploads['delta']", uploads["delta"], "delta", delta)

        def alone(i: int) -> tuple[Vectors, Vectors]:
            return self.method.upload(_row(delta, i), _rows(memory, i), _alone(ctx, i))

        self._must_not_mix("upload", (uploads, new), alone, range(len(STEPS)))
        return uploads, new

    def upload_bytes(self, uploads: Vectors, experiment: ExperimentInfo) -> Tensor:
        def call() -> Tensor:
            return self.method.upload_bytes(uploads, experiment)

        sent = self.watch("upload_bytes", {"uploads": uploads}, call)
        if kind(sent) != f"int64 [{len(STEPS)}]" or (sent < 0).any():
            wanted = f"whole numbers from 0, int64 [C] with C = {len(STEPS)} here"
            self.watch.refuse_kind("upload_bytes", "bytes", sent, wanted)

        def alone(i: int) -> Tensor:
            return self.method.upload_bytes(_rows(uploads, i), experiment)

        self._must_not_mix("upload_bytes", sent, alone, range(len(STEPS)))
        return sent

    def server_step(
        self, w: Tensor, server: Vectors, mean: Vectors, ctx: ServerContext
    ) -> tuple[Tensor, Vectors]:
        given: Given = {"w": w, "server": server, "mean": mean}

        def call() -> tuple[Tensor, Vectors]:
            return self.method.server_step(w, server, mean, ctx._replace(random=server_noise(0, 1)))

        new, state = self.watch("server_step", given, call)
        self.watch.must_be("server_step", "w", new, "w before", w)
        self.must_keep("server_step", "server", state, server, "init_server")
        return new, state

    def global_momentum(self, server: Vectors) -> Tensor | None:
        given: Given = {"server": server}
        return self.watch("global_momentum", given, lambda: self.method.global_momentum(server))

    def must_keep(self, function: str, part: str, new: Vectors, old: Vectors, of: str) -> None:
        """The same names, each with the same kind of tensor: a checkpoint is read by them."""
        if new.keys() != old.keys():
            self.watch.refuse(
                function,
                f"returns {part} with the names {sorted(new)}, but must keep those of {of}, {sorted(old)}"
                + (" (step 0 may add some to the memory)" if part == "memory" else ""),
            )
        for name, value in new.items():
            self.watch.must_be(function, f"{part}[{name!r}]", value, of, old[name])

    def _must_have_rows(self, function: str, part: str, vectors: Vectors) -> None:
        for name, value in vectors.items():
            if value.dim() != 2 or len(value) != len(STEPS):
                self.watch.refuse_kind(
                    function,
                    f"{part}[{name!r}]",
                    value,
                    f"a row for each client, [C, P] or [C, 1] with C = {len(STEPS)} here "
                    "(keepdim=True where you reduce)",
                )

    def _must_not_mix(
        self, function: str, result: Any, alone: Callable[[int], Any], clients: Sequence[int]
    ) -> None:
        """The clients' rows of a result are what each gets alone."""
        stack = self.watch.named(function, result)
        for i in clients:
            single = self.watch.named(function, self.watch.returned(function, lambda i=i: alone(i)))
            for name, value in stack.items():
                if name in single and _close(_row(value, i), single[name]):
                    continue
                facts = ", and take K_i from ctx.steps, not ctx.step, and n_i from ctx.samples"
                advice = facts if function == "upload" else ""
                self.watch.refuse(
                    function,
                    f"mixes clients: a client's {name} depends on who is trained beside it; reduce over the "
                    "last axis only, with g.norm(dim=-1, keepdim=True) or rayfl.algorithms.vectors.norm(g)"
                    + advice,
                    "rounding",
                )


def _given(ctx: ClientContext) -> Given:
    own: Given = {"ctx.start": ctx.start, "ctx.shared": ctx.shared, "ctx.steps": ctx.steps}
    own["ctx.samples"] = ctx.samples
    return own | {"ctx.lr": torch.as_tensor(ctx.lr), "ctx.round": torch.as_tensor(ctx.round)}


def _seeded(ctx: ClientContext, clients: Sequence[int] = range(len(STEPS))) -> ClientContext:
    """The context of these clients with random numbers that start anew."""
    noise = ClientNoise(0, 1, clients, [STEPS[i] for i in clients])
    return ctx._replace(random=noise.at(ctx.step))


def _alone(ctx: ClientContext, i: int) -> ClientContext:
    """The context of one client, who takes no step after its last."""
    step = min(ctx.step, STEPS[i])
    rows = {name: _row(getattr(ctx, name), i) for name in ("start", "steps", "samples")}
    return _seeded(ctx._replace(**rows, step=step), [i])


def _row(value: Tensor, i: int) -> Tensor:
    return value[i : i + 1]


def _rows(vectors: Vectors, i: int) -> Vectors:
    return {name: _row(value, i) for name, value in vectors.items()}


def _close(a: Tensor, b: Tensor) -> bool:
    if kind(a) != kind(b):
        return False
    if same(a, b):
        return True
    a, b = a.double(), b.double()
    return bool((a - b).norm() <= TOLERANCE * torch.maximum(a.norm(), b.norm()) + 1e-12)
