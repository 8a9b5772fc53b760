"""Methods of one's own: those that keep the rules of `algorithms/base.py`, and those that break one each."""

import itertools
import time
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import numpy as np
import torch
from noisy import Noisy

from rayfl.algorithms.base import Algorithm, sam
from rayfl.algorithms.fedcm import FedCM
from rayfl.algorithms.scaffold import Scaffold
from rayfl.algorithms.vectors import norm


@dataclass(frozen=True, kw_only=True)
class NormalisedGradient(Algorithm):
    def local_step(self, x, memory, grad, ctx):
        g = grad(x)
        return g / g.norm(dim=-1, keepdim=True), memory


@dataclass(frozen=True, kw_only=True)
class LooksAtNothing(Algorithm):
    """No gradient, and a direction that is the iterate itself, which it also remembers."""

    def init_client(self, w):
        return {"last": w, "count": torch.zeros(1, dtype=torch.int64)}

    def local_step(self, x, memory, grad, ctx):
        return x, {"last": x, "count": memory["count"] + 1}


@dataclass(frozen=True, kw_only=True)
class StepsAndRates(Algorithm):
    """Warms up with the number of the step, decays with K_i, sends parts of the vector."""

    def init_server(self, w):
        return {"round": torch.tensor(0), "seen": torch.zeros(4, len(w))}

    def broadcast(self, w, server):
        return w * 0.999, {"round": server["round"], "seen": server["seen"]}

    def local_step(self, x, memory, grad, ctx):
        memory = memory | {"first": x.clone()} if ctx.step == 0 else memory
        warm = min(1.0, (ctx.step + 1) / ctx.experiment.local_steps)
        return grad(x) * warm / ctx.steps + 0.01 * (x - memory["first"]), memory

    def upload(self, delta, memory, ctx):
        own = delta / ctx.steps / ctx.lr
        return {
            "delta": delta,
            "own": own,
            "head": ctx.experiment.tensors[0].view(delta).flatten(1),
        }, {}

    def server_step(self, w, server, mean, ctx):
        seen = torch.cat([server["seen"][1:], mean["own"][None]])
        w = w + mean["delta"] * ctx.participation
        return w, {"round": server["round"] + 1, "seen": seen}


@dataclass(frozen=True, kw_only=True)
class Precomputes(Algorithm):
    """Fills a place on itself at its first use, with what follows from its fields."""

    beta: float = 0.9

    @cached_property
    def weights(self):
        return torch.tensor([self.beta**k for k in range(10)])

    def local_step(self, x, memory, grad, ctx):
        return grad(x) * self.weights[ctx.step], memory


@dataclass(frozen=True, kw_only=True)
class HugeValues(Algorithm):
    """Works with numbers near the ends of float32, an infinite best loss so far among them."""

    def init_client(self, w):
        return {"best": torch.full((1,), torch.inf), "big": torch.full_like(w, 1e30)}

    def local_step(self, x, memory, grad, ctx):
        g = grad(x)
        return g * 1e-20, memory | {"best": torch.minimum(memory["best"], norm(g) * 1e20)}

    def upload(self, delta, memory, ctx):
        return {"delta": delta, "big": memory["big"]}, memory


@dataclass(frozen=True, kw_only=True)
class SamPlusScaffold(Scaffold):
    """A method of the registry with another gradient, whose own it changes in place."""

    rho: float = 0.1

    def local_step(self, x, memory, grad, ctx):
        def halved(at):
            return grad(at).mul_(0.5)

        return super().local_step(x, memory, sam(halved, self.rho), ctx)


@dataclass(frozen=True, kw_only=True)
class Penalised(FedCM):
    """The entropy of the outputs, and how far they are from those of the start."""

    def local_step(self, x, memory, grad, ctx):
        def penalty(outputs, batch):
            away = (outputs - batch.forward(ctx.start)).square().mean(-1)
            return away - torch.distributions.Categorical(logits=outputs).entropy()

        return super().local_step(x, memory, lambda at: grad(at, penalty), ctx)


@dataclass(frozen=True, kw_only=True)
class TopTenth(Algorithm):
    """The tenth of the update that is largest; the rest waits in the memory."""

    def init_client(self, w):
        return {"rest": torch.zeros_like(w)}

    def upload(self, delta, memory, ctx):
        whole = delta + memory["rest"]
        least = whole.abs().topk(max(1, whole.shape[-1] // 10), dim=-1).values[..., -1:]
        sent = torch.where(whole.abs() >= least, whole, 0.0)
        return {"delta": sent}, {"rest": whole - sent}


@dataclass(frozen=True, kw_only=True)
class RoundsOff(Algorithm):
    """Stands for a formula that makes much of the last bits: they differ in a stack, but only as they may."""

    def local_step(self, x, memory, grad, ctx):
        return grad(x) * (1 + 1e4 * torch.finfo(x.dtype).eps * (len(x) > 1)), memory


@dataclass(frozen=True, kw_only=True)
class LeastUpdate(Algorithm):
    """A running minimum on the server, which begins at infinity."""

    def init_server(self, w):
        return {"best": torch.full((1,), torch.inf)}

    def server_step(self, w, server, mean, ctx):
        return w + mean["delta"], {"best": torch.minimum(server["best"], norm(mean["delta"]))}


@dataclass(frozen=True, kw_only=True)
class LooksAtOneClient(Algorithm):
    """Python values of one client at a time, and of what all clients share."""

    def init_server(self, w):
        return {"round": torch.zeros(1)}

    def broadcast(self, w, server):
        return w, server

    def local_step(self, x, memory, grad, ctx):
        g = grad(x)
        rows = [row / row.norm() if row.norm() > 1e-3 else row for row in g]
        scale = 0.5 if ctx.shared["round"] > 1 or float(ctx.lr) > 0.1 else 1.0
        if g[0].norm() < 0:
            raise AssertionError
        return torch.stack(rows) * scale, memory

    def server_step(self, w, server, mean, ctx):
        if mean["delta"].norm() > 10:
            return w, server
        return w + mean["delta"], {"round": server["round"] + 1}


@dataclass(frozen=True, kw_only=True)
class CountsBySize(Algorithm):
    """Each client by its own number of samples, in its steps and in what it sends."""

    def local_step(self, x, memory, grad, ctx):
        return grad(x) * (ctx.experiment.mean_samples / ctx.samples), memory

    def upload(self, delta, memory, ctx):
        return {"delta": delta * (ctx.samples / ctx.experiment.mean_samples).sqrt()}, memory


RIGHT = [
    *(
        NormalisedGradient,
        LooksAtNothing,
        Noisy,
        StepsAndRates,
        Precomputes,
        HugeValues,
        SamPlusScaffold,
    ),
    *(Penalised, TopTenth, RoundsOff, LooksAtOneClient, LeastUpdate, CountsBySize),
]


def method(**functions):
    """A method with these functions in the place of FedAvg's."""
    made = type("Made", (Algorithm,), functions)
    return dataclass(frozen=True, kw_only=True)(made)()


def step(direction):
    """`local_step` with this direction of (g, x, memory, ctx)."""
    return {
        "local_step": lambda self, x, memory, grad, ctx: (
            direction(grad(x), x, memory, ctx),
            memory,
        )
    }


def momentum(**functions):
    """A method with a momentum m in memory and server, and these functions."""
    base = {
        "init_server": lambda self, w: {"m": torch.zeros_like(w)},
        "init_client": lambda self, w: {"m": torch.zeros_like(w)},
        "server_step": lambda self, w, server, mean, ctx: (
            w + mean["delta"],
            {"m": server["m"] * 0.9 + mean["delta"]},
        ),
        "local_step": lambda self, x, memory, grad, ctx: (
            grad(x) + memory["m"],
            {"m": memory["m"] * 0.9 + grad(x)},
        ),
    }
    return method(**base | functions)


@dataclass(frozen=True, kw_only=True)
class Counts(Algorithm):
    """Remembers on the class how often it was called."""

    calls: ClassVar[list[int]] = []

    def local_step(self, x, memory, grad, ctx):
        self.calls.append(0)
        return grad(x) / len(self.calls), memory


@dataclass(frozen=True, kw_only=True)
class KeepsItsLastGradient(Algorithm):
    """State that one client leaves would be the next one's."""

    def local_step(self, x, memory, grad, ctx):
        last = vars(self).get("last", 0.0)
        object.__setattr__(self, "last", grad(x).mean())
        return grad(x) - last, memory


def adds_to_the_memory(self, x, memory, grad, ctx):
    memory["new"] = x * 0
    return grad(x), memory


def keeps_half(self, x, memory, grad, ctx):
    memory["m"].mul_(0.5)
    return grad(x), memory


def seeds_itself(self, x, memory, grad, ctx):
    torch.manual_seed(0)
    return grad(x) + torch.randn_like(x), memory


def moves_x(self, x, memory, grad, ctx):
    x.sub_(ctx.lr * grad(x))
    return x * 0, memory


def clips_with_if(self, x, memory, grad, ctx):
    g = grad(x)
    n = g.norm()
    if n > 1e6:
        g = g * 1e6 / n
    return g, memory


def stops_with_break(self, x, memory, grad, ctx):
    g, scale = grad(x), 1.0
    for scale in (1.0, 0.5):
        if grad(x - scale * ctx.lr * g).norm() < 1e6 * g.norm():
            break
    return scale * g, memory


def pair(f):
    return lambda self, x, memory, grad, ctx: f(grad(x), memory)


def uploads(f):
    return {"upload": lambda self, delta, memory, ctx: (f(delta, memory, ctx), memory)}


def memory_after(f):
    return {"upload": lambda self, delta, memory, ctx: ({"delta": delta}, f(delta, memory))}


def server(f):
    return {"server_step": lambda self, w, server, mean, ctx: f(w, server, mean)}


def penalised(penalty):
    return {
        "local_step": lambda self, x, memory, grad, ctx: (
            grad(x, lambda outputs, batch: penalty(outputs)),
            memory,
        )
    }


MIXES = r"local_step \(.*own_methods.py:\d+\) mixes clients: a client's direction depends"
PROCESS = "uses a random generator of the whole process"
LOOKS = r"looks at the value of a tensor \(if, .*torch.where, at .*own_methods.py:\d+$"
AGAIN = "called twice with the same inputs gives another"
numbers = itertools.count()

# Function and rule that each breaks; in this order the rules of the module's docstring.
WRONG = {
    "norm_of_the_stack": (method(**step(lambda g, x, m, ctx: g / g.norm())), MIXES),
    "mean_over_clients": (method(**step(lambda g, x, m, ctx: g - 0.01 * g.mean(0))), MIXES),
    "first_client": (method(**step(lambda g, x, m, ctx: g + 0.1 * x[:1])), MIXES),
    "place_in_the_stack": (
        method(**step(lambda g, x, m, ctx: g * torch.arange(1, len(g) + 1)[:, None])),
        MIXES,
    ),
    "norm_of_all_memories": (
        momentum(local_step=pair(lambda g, memory: (g, {"m": memory["m"] + g / g.norm()}))),
        r"mixes clients: a client's memory\['m'\] depends",
    ),
    "penalty_over_clients": (
        method(**penalised(lambda outputs: (outputs - outputs.mean((0, 1))).square().mean(-1))),
        MIXES,
    ),
    "client_start_of_the_stack": (
        method(client_start=lambda self, memory, ctx: ctx.start * (1 + len(ctx.start))),
        r"client_start \(.*own_methods.py:\d+\) mixes clients: a client's first depends",
    ),
    "from_the_sixth_step": (
        method(**step(lambda g, x, m, ctx: g / g.norm() if ctx.step >= 5 else g)),
        MIXES,
    ),
    "server_from_its_third_round": (
        method(
            init_server=lambda self, w: {"round": torch.zeros(1)},
            **server(
                lambda w, s, mean: (
                    w.double() if s["round"] > 2 else w + mean["delta"],
                    {"round": s["round"] + 1},
                )
            ),
        ),
        r"server_step .* returns w as float64",
    ),
    "clips_with_if": (method(local_step=clips_with_if), f"local_step .*{LOOKS}"),
    "stops_with_break": (method(local_step=stops_with_break), LOOKS),
    "item": (method(**step(lambda g, x, m, ctx: g / max(1.0, g.norm().item() / 1e6))), LOOKS),
    "if_of_uploads": (
        method(**uploads(lambda d, m, ctx: {"delta": d if d.norm() < 1e6 else d / 2})),
        f"upload .*{LOOKS}",
    ),
    "longest_steps": (
        method(**uploads(lambda delta, m, ctx: {"delta": delta / ctx.step})),
        "upload .* mixes clients: .*take K_i from ctx.steps, not ctx.step",
    ),
    "steps_of_others": (
        method(**uploads(lambda delta, m, ctx: {"delta": delta / ctx.steps.max()})),
        r"mixes clients: a client's uploads\['delta'\]",
    ),
    "sizes_of_others": (
        method(
            **uploads(
                lambda delta, m, ctx: {
                    "delta": delta
                    * torch.as_tensor(ctx.experiment.samples[: len(delta)]).to(delta)[:, None]
                }
            )
        ),
        r"mixes clients: a client's uploads\['delta'\] .* n_i from ctx.samples",
    ),
    "randn": (method(**step(lambda g, x, m, ctx: g + torch.randn_like(g))), PROCESS),
    "numpy": (
        method(**step(lambda g, x, m, ctx: g * np.random.rand())),  # noqa: NPY002
        f"{PROCESS}.*ctx.random",
    ),
    "dropout": (
        method(**uploads(lambda delta, m, ctx: {"delta": torch.nn.functional.dropout(delta)})),
        f"upload .*{PROCESS}",
    ),
    "noisy_start": (
        method(broadcast=lambda self, w, server: (w + torch.randn_like(w), {})),
        f"broadcast .*{PROCESS}",
    ),
    "seeds_itself": (method(local_step=seeds_itself), PROCESS),
    "fresh_generator": (
        method(**step(lambda g, x, m, ctx: g * np.random.default_rng().random())),
        f"{AGAIN} direction",
    ),
    "clock": (
        method(**step(lambda g, x, m, ctx: g + time.time_ns() % 1_000_003)),
        f"{AGAIN} direction",
    ),
    "counter": (method(**step(lambda g, x, m, ctx: g * next(numbers))), f"{AGAIN} direction"),
    "class_variable": (Counts(), f"{AGAIN} direction.*client's memory"),
    "kept_on_self": (KeepsItsLastGradient(), f"{AGAIN} direction"),
    "server_clock": (
        momentum(**server(lambda w, s, mean: (w, {"m": s["m"] + time.time_ns() % 1_000_003}))),
        rf"server_step .*{AGAIN} server\['m'\]",
    ),
    "moves_x": (method(local_step=moves_x), "local_step .* changes x, which it was given"),
    "memory_in_place": (momentum(local_step=keeps_half), r"changes memory\['m'\]"),
    "memory_gets_a_name": (method(local_step=adds_to_the_memory), r"changes memory\['new'\]"),
    "lr_in_place": (method(**step(lambda g, x, m, ctx: g * ctx.lr.mul_(0.5))), "changes ctx.lr"),
    "delta_in_place": (
        method(**uploads(lambda delta, m, ctx: {"delta": delta.mul_(0.5)})),
        "upload .* changes delta",
    ),
    "shared_in_place": (
        method(
            broadcast=lambda self, w, server: (w, {"w": w * 2}),
            **step(lambda g, x, m, ctx: g + ctx.shared["w"].mul_(0.5)),
        ),
        r"changes ctx.shared\['w'\]",
    ),
    "w_in_place": (method(**server(lambda w, s, mean: (w.add_(mean["delta"]), s))), "changes w,"),
    "mean_in_place": (
        method(**server(lambda w, s, mean: (w + mean["delta"].mul_(2), s))),
        r"changes mean\['delta'\]",
    ),
    "server_in_place": (
        momentum(**server(lambda w, s, mean: (w + s["m"].add_(mean["delta"]), s))),
        r"server_step .* changes server\['m'\]",
    ),
    "broadcast_changes_the_state": (
        momentum(broadcast=lambda self, w, server: (w + server["m"].add_(1), {})),
        r"broadcast .* changes server\['m'\]",
    ),
    "momentum_in_place": (
        momentum(global_momentum=lambda self, server: server["m"].neg_()),
        r"global_momentum .* changes server\['m'\]",
    ),
    "momentum_of_one": (
        momentum(global_momentum=lambda self, server: server["m"].norm()),
        r"global_momentum .* returns momentum as float32 \[\], but it must be float32 \[1098\], as w",
    ),
    "momentum_by_name": (
        momentum(global_momentum=lambda self, server: "m"),
        r"global_momentum .* returns str, but must return momentum \(a tensor\)",
    ),
    "momentum_of_a_wrong_name": (
        method(global_momentum=lambda self, server: server["m"]),
        r"global_momentum raises KeyError: 'm'",
    ),
    "bytes_of_the_stack": (
        method(
            upload_bytes=lambda self, uploads, experiment: torch.tensor(uploads["delta"].nbytes)
        ),
        r"upload_bytes .* returns bytes as int64 \[\], but it must be whole numbers from 0, int64 \[C\]",
    ),
    "bytes_of_another_client": (
        method(
            upload_bytes=lambda self, uploads, experiment: (
                (uploads["delta"] != 0).sum(-1) * len(uploads) * len(uploads["delta"])
            )
        ),
        r"upload_bytes .* mixes clients: a client's bytes depends",
    ),
    "no_memory": (
        method(local_step=lambda self, x, memory, grad, ctx: grad(x)),
        r"returns Tensor, but must return direction \(a tensor\), memory \(a dict of tensors\)",
    ),
    "uploads_alone": (
        method(upload=lambda self, delta, memory, ctx: {"delta": delta}),
        "upload .* returns dict, but must return uploads",
    ),
    "a_number": (
        momentum(init_server=lambda self, w: {"m": 0.0}),
        r"init_server .* returns server\['m'\] as float, but it must be a tensor",
    ),
    "one_number_for_all": (
        method(**step(lambda g, x, m, ctx: g.sum(-1))),
        r"direction as float32 \[2\], but it must be float32 \[2, 1098\], as x",
    ),
    "double": (
        method(**step(lambda g, x, m, ctx: g.double())),
        r"direction as float64 .* must be float32 \[2, 1098\], as x",
    ),
    "double_server": (
        method(**server(lambda w, s, mean: (w.double() + mean["delta"], s))),
        r"server_step .* returns w as float64 \[1098\]",
    ),
    "start_of_one": (
        method(broadcast=lambda self, w, server: (w[:1], {})),
        r"broadcast .* returns start as float32 \[1\]",
    ),
    "memory_of_no_dimension": (
        momentum(init_client=lambda self, w: {"m": w.norm()}),
        r"init_client .* memory\['m'\] as float32 \[\], but it must be \[P\] or \[1\]",
    ),
    "uploads_without_clients": (
        method(**uploads(lambda delta, m, ctx: {"delta": delta, "norm": delta.norm(dim=-1)})),
        r"uploads\['norm'\] as float32 \[2\], .*a row for each client.*keepdim=True",
    ),
    "no_delta": (
        method(**uploads(lambda delta, m, ctx: {"update": delta})),
        r"returns the uploads \['update'\]: 'delta' must be among them",
    ),
    "buffers": (
        method(**uploads(lambda delta, m, ctx: {"delta": delta, "buffers": delta})),
        "'buffers' must not",
    ),
    "scaled_delta": (
        method(**uploads(lambda delta, m, ctx: {"delta": delta[:, :1]})),
        r"uploads\['delta'\] as float32 \[2, 1\]",
    ),
    "renamed_memory": (
        momentum(**memory_after(lambda delta, m: {"c": m["m"]})),
        r"upload .* memory with the names \['c'\], but must keep those of init_client, \['m'\]",
    ),
    "memory_kept_from_step_0": (
        method(local_step=pair(lambda g, memory: (g, {"g": g}))),
        r"upload .* memory with the names \['g'\], but must keep those of init_client, \[\]",
    ),
    "memory_added_late": (
        method(
            local_step=lambda self, x, memory, grad, ctx: (
                grad(x),
                memory | ({"late": x * 1} if ctx.step else {}),
            )
        ),
        r"local_step .* memory with the names \['late'\].*\(step 0 may add",
    ),
    "memory_of_another_shape": (
        momentum(local_step=pair(lambda g, memory: (g, {"m": norm(g)}))),
        r"memory\['m'\] as float32 \[2, 1\], but it must be float32 \[2, 1098\]",
    ),
    "state_gets_a_name": (
        momentum(**server(lambda w, s, mean: (w, s | {"v": w * 1}))),
        r"server_step .* server with the names \['m', 'v'\].* those of init_server, \['m'\]",
    ),
    "state_of_another_shape": (
        momentum(**server(lambda w, s, mean: (w, {"m": norm(w)}))),
        r"server\['m'\] as float32 \[1\]",
    ),
    "begins_with_nan": (
        momentum(init_server=lambda self, w: {"m": w * torch.nan}),
        r"init_server .* returns server\['m'\] with values that are not finite",
    ),
    "state_becomes_infinite": (
        momentum(**server(lambda w, s, mean: (w, {"m": s["m"] + torch.inf}))),
        r"server_step .* returns server\['m'\] with values that are not finite",
    ),
    "divides_by_zero": (
        momentum(local_step=pair(lambda g, memory: (g / norm(memory["m"]), {"m": g}))),
        "returns direction with values that are not finite",
    ),
    "nothing_to_divide": (
        method(**step(lambda g, x, m, ctx: g / 0 if ctx.step else 1 / ctx.step)),
        r"local_step raises ZeroDivisionError: division by zero, at .*own_methods.py:\d+$",
    ),
    "misspelt": (
        method(**step(lambda g, x, m, ctx: g + ctx.shared["momentum"])),
        r"local_step raises KeyError: 'momentum', at .*own_methods.py:\d+$",
    ),
    "in_torch": (
        method(**step(lambda g, x, m, ctx: torch.einsum("ij,jk->ik", g, x))),
        r"local_step raises RuntimeError: einsum.*, at .*own_methods.py:\d+$",
    ),
    "server_raises": (
        method(**server(lambda w, s, mean: (w + mean["update"], s))),
        "server_step raises KeyError: 'update', at",
    ),
    "gradient_of_one_row": (
        method(local_step=lambda self, x, memory, grad, ctx: (grad(x[0]), memory)),
        r"local_step raises ValueError: the model was asked for at \[1098\], but x is \[2, 1098\]",
    ),
    "penalty_that_is_one_number": (
        method(**penalised(lambda outputs: outputs.square().mean())),
        r"the penalty is \[\], but needs one value for each sample, \[..., B\]: \[2, 4\] here",
    ),
    "fill_that_fills_nothing": (
        method(**step(lambda g, x, m, ctx: ctx.random(g, lambda row, generator: row + 1))),
        "local_step raises ValueError: ctx.random: `fill` must fill the row",
    ),
}
