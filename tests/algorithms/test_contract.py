"""Promises that every algorithm of the registry makes to the loop, the server and the config.

All start from a state that some rounds have filled, because zeros hide most mistakes.
"""

import dataclasses
import pickle
import re
from itertools import product
from typing import Annotated, get_args, get_origin, get_type_hints

import numpy as np
import pytest
import torch
from conftest import each
from numpy_reference import Federation
from pydantic import TypeAdapter, ValidationError
from pydantic.fields import FieldInfo
from quadratics import (
    Minibatch,
    Quadratic,
    State,
    aggregate,
    begin,
    client_context,
    federation,
    info,
    last,
    problem,
    states,
    train,
)

from rayfl.algorithms import ALGORITHMS, Algorithm
from rayfl.algorithms.base import Loss, ServerContext, Vectors
from rayfl.algorithms.scheduled import Ramp, Scheduled

INSTANCES = {name: method() for name, method in ALGORITHMS.items()} | {
    "fedwmsam-no_control_variates": ALGORITHMS["fedwmsam"](control_variates=False),
    "fedwmsam-fixed_alpha": ALGORITHMS["fedwmsam"](adaptive=False),
    "fedwmsam-rho_0": ALGORITHMS["fedwmsam"](rho=0.0),
    "fedwmsam-alpha_1": ALGORITHMS["fedwmsam"](alpha=1.0, adaptive=False),
    "fedwmsam-lr_scale": ALGORITHMS["fedwmsam"](lookahead_scale="lr"),
    "fedwmsam_released-sum_of_norms": ALGORITHMS["fedwmsam_released"](perturbation="sum_of_norms"),
    "fedwmsam_released-alpha_1": ALGORITHMS["fedwmsam_released"](alpha=1.0, adaptive=False),
    "fedavg-server_lr": ALGORITHMS["fedavg"](server_lr=0.5),
    "fednsam-released_server": ALGORITHMS["fednsam"](released_server=True),
    "fedlesam-last_update": ALGORITHMS["fedlesam"](estimate="last_update"),
    "fedlesam_s-last_update": ALGORITHMS["fedlesam_s"](estimate="last_update"),
    "fedlesam_d-last_update": ALGORITHMS["fedlesam_d"](estimate="last_update"),
    "fedsmoo-rho_0": ALGORITHMS["fedsmoo"](rho=0.0),
    "fedgf-near": ALGORITHMS["fedgf"](threshold=1e9, window=100),
    "fedgloss-sgd": ALGORITHMS["fedgloss"](rho_local=0.0),
    "fedgloss-rho_0": ALGORITHMS["fedgloss"](rho=0.0),
    "fedgmt-active": ALGORITHMS["fedgmt"](duals="active"),
    "fedwsam-momentum": ALGORITHMS["fedwsam"](alpha=0.5),
    "fedwsam-coupled": ALGORITHMS["fedwsam"](alpha=0.1, decoupled=False),
    "fedasam-eta_0": ALGORITHMS["fedasam"](eta=0.0),
    "asyncsam-tau_3": ALGORITHMS["asyncsam"](tau=3, ascent_samples=1),
    "fedsol-fixed": ALGORITHMS["fedsol"](strength="fixed"),
    "fedmuon-nesterov": ALGORITHMS["fedmuon"](momentum="nesterov", tall=True),
}
HYPER_PARAMETERS = {
    f"{name}.{field.name}": (name, field.name)
    for name, method in ALGORITHMS.items()
    for field in dataclasses.fields(method)
    if (name, field.name) != ("local", "server_lr")  # there is no server's step
}
# A value that differs from the default, where 0.45 is none.
OTHERS = {
    ("fedwmsam", "adaptive"): False,
    ("fedwmsam", "control_variates"): False,
    ("fedwmsam", "alpha_max"): 0.2,
    ("fedwmsam", "raw_cosine"): True,
    ("fedwmsam_released", "adaptive"): False,
    ("fedwmsam_released", "control_variates"): False,
    ("fedwmsam_released", "alpha_max"): 0.2,
    ("fedwmsam_released", "raw_cosine"): True,
    ("fedwmsam_released", "perturbation"): "vector",
    ("fedwmsam_released", "perturb_towards"): "predicted",
    ("fedwmsam", "perturb_towards"): "released",
    ("fedwmsam_released", "nominal_steps"): False,
    ("fedwmsam_released", "adapt_at_zero"): False,
    ("fedinit", "update_from"): "client",
    ("fednsam", "released_server"): True,
    ("fedmuon", "momentum"): "nesterov",
    ("fedmuon", "tall"): True,
    ("fedper", "head"): "0",
    ("fedrep", "head"): "0",
    ("fedrep", "head_share"): 0.3,
    ("fedgf", "threshold"): 0.9,
    ("fedgf", "window"): 2,
    ("fedgmt", "duals"): "active",
    ("fedwsam", "decoupled"): False,
    ("asyncsam", "tau"): 2,
    ("asyncsam", "ascent_samples"): 1,
    ("fedsol", "strength"): "fixed",
    ("fedlesam", "estimate"): "last_update",
    ("fedlesam_s", "estimate"): "last_update",
    ("fedlesam_d", "estimate"): "last_update",
}
# Where an option shows only beside another than the default of these.
BESIDE = {
    ("fedgf", "window"): {"threshold": 0.7},
    ("fedwmsam_released", "adapt_at_zero"): {"alpha": 0.5},
    ("fedwsam", "decoupled"): {"alpha": 0.5},
}
DTYPES = [torch.float32, torch.float64]

# Odd, and longer than a vector register: a reduction's tail counts.
SIZE = 37
SHAPES = ((3, 2, 1, 2), (4, 5), (5,))


def warm(algorithm: Algorithm, dtype: torch.dtype) -> tuple[State, Federation, int]:
    """A state in which nothing is zero, the federation it comes from, and the next round."""
    f = federation(rounds=5, shapes=SHAPES, wd=0.01, C=5.0)
    return last(algorithm, f._replace(cohorts=f.cohorts[:4]), dtype), f, 4


def copied(vectors: Vectors) -> Vectors:
    return {name: value.clone() for name, value in vectors.items()}


def same(left: Vectors, right: Vectors) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)


def finite(state: State) -> bool:
    groups = [{"w": state.w}, state.server, *state.memories]
    return all(bool(value.isfinite().all()) for group in groups for value in group.values())


def shapes(vectors: Vectors) -> dict[str, tuple[torch.Size, torch.dtype]]:
    return {name: (value.shape, value.dtype) for name, value in vectors.items()}


@each(algorithm=INSTANCES, dtype=DTYPES)
def test_a_stack_equals_its_clients_one_at_a_time(algorithm, dtype):
    """Bit for bit, with 4, 2 and 3 local steps: a finished client is not touched by the others' steps."""
    state, f, r = warm(algorithm, dtype)
    stack = train(algorithm, f, r, state, (0, 1, 2))
    alone = [train(algorithm, f, r, state, (i,)) for i in range(3)]
    for i, one in enumerate(alone):
        assert same({n: v[i : i + 1] for n, v in stack.uploads.items()}, one.uploads)
        assert same({n: v[i : i + 1] for n, v in stack.memory.items()}, one.memory)
        assert torch.equal(stack.losses[i : i + 1], one.losses)
    assert stack.backward_passes == sum(one.backward_passes for one in alone)


@each(algorithm=INSTANCES)
def test_the_order_of_the_clients_in_a_stack_is_no_matter(algorithm):
    state, f, r = warm(algorithm, torch.float64)
    forth, back = (train(algorithm, f, r, state, ids) for ids in ((0, 1, 2), (2, 1, 0)))
    assert same(forth.uploads, {name: value.flip(0) for name, value in back.uploads.items()})


@each(algorithm=INSTANCES)
def test_no_method_changes_an_input_in_place(algorithm):
    state, f, r = warm(algorithm, torch.float64)
    start, shared = algorithm.broadcast(state.w, state.server)
    memory = {
        name: torch.stack([memory[name] for memory in state.memories]) for name in state.memories[0]
    }
    x = start + torch.linspace(0.1, 0.3, 3, dtype=start.dtype).unsqueeze(1)
    steps = torch.full((3, 1), 4.0, dtype=start.dtype)
    ctx = client_context(
        start.expand(3, -1), shared, lr=0.1, steps=steps, step=0, round=1, experiment=info(f)
    )
    watched: list[Vectors] = [{"w": state.w, "start": start, "x": x}, state.server, shared, memory]
    kept = [copied(group) for group in watched]

    def watch(vectors: Vectors) -> Vectors:
        watched.append(vectors)
        kept.append(copied(vectors))
        return vectors

    batch = Minibatch(*map(torch.tensor, (f.A, f.b[r, :, 0], f.apart[r, :, 0])))

    def grad(at: torch.Tensor, *penalty, **options) -> torch.Tensor:
        watch({"at": at})
        return Quadratic()(at, batch, Loss(*penalty, **options))[0]

    watch({"first": algorithm.client_start(memory, ctx)})
    for k in range(2):
        direction, memory = algorithm.local_step(x, memory, grad, ctx._replace(step=k))
        watch({"direction": direction} | memory)
    delta = watch({"delta": x - 0.1 * direction - start})["delta"]
    uploads, newest_memory = algorithm.upload(delta, memory, ctx._replace(step=4))
    watch(uploads), watch(newest_memory)
    mean = watch({name: value.mean(0) for name, value in uploads.items()})
    server_ctx = ServerContext(lr=0.1, steps=4.0, participation=1.0, round=1)
    w, server = algorithm.server_step(state.w, state.server, mean, server_ctx)
    watch({"w": w}), watch(server)
    algorithm.broadcast(w, server)
    algorithm.global_momentum(server)
    assert all(map(same, watched, kept))


@each(algorithm=INSTANCES)
def test_the_same_input_gives_the_same_bits_and_draws_no_random_number(algorithm):
    f = federation(shapes=SHAPES)
    torch_random, numpy_random = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    first, again = (last(algorithm, f, torch.float32) for _ in range(2))
    assert torch.equal(first.w, again.w)
    assert same(first.server, again.server)
    assert all(map(same, first.memories, again.memories))
    assert torch.equal(torch.get_rng_state(), torch_random)
    assert (np.random.get_state()[1] == numpy_random).all()  # noqa: NPY002


@each(algorithm=INSTANCES, dtype=DTYPES)
def test_dtype_and_shapes_stay_from_round_to_round(algorithm, dtype):
    f = federation(shapes=SHAPES)
    state = begin(algorithm, f, dtype)
    shared = shapes(algorithm.broadcast(state.w, state.server)[1])
    vector, scalar = torch.Size([SIZE]), torch.Size([1])
    expected = [shapes(group) for group in (state.server, state.memories[0])]
    for group in (expected[1], shared):
        assert all(shape in (vector, scalar) for shape, _ in group.values())
    assert all(kind == dtype for group in (*expected, shared) for _, kind in group.values())
    for r, cohort in enumerate(f.cohorts):
        start, sent = algorithm.broadcast(state.w, state.server)
        assert (start.shape, start.dtype, shapes(sent)) == (vector, dtype, shared)
        trained = train(algorithm, f, r, state, cohort)
        for value in trained.uploads.values():
            assert value.dtype == dtype
            assert value.shape in ((len(cohort), SIZE), (len(cohort), 1))
        state = aggregate(algorithm, f, r, state, trained)
        assert (state.w.shape, state.w.dtype) == (vector, dtype)
        assert shapes(state.server) == expected[0]
        assert all(shapes(memory) == expected[1] for memory in state.memories)


MOMENTUM = {
    "fedacg",
    "fedadam",
    "fedadamw",
    "fedavgm",
    "fedcm",
    "fedlada",
    "fedmoswa",
    "fedmuon",
    "fednesterov",
}
MOMENTUM |= {"fednsam", "fednsam_momentum", "fedwmsam", "fedwmsam_released", "fedyogi", "igfl"}
MOMENTUM |= {"fedwsam", "mofedsam"}
WITHOUT_WEIGHT = {"fedadagrad", "fedwmsam-alpha_1", "fedwmsam_released-alpha_1", "fedwsam"}


@each(name=list(INSTANCES))
def test_the_global_momentum_points_where_the_model_went(name):
    """All clients have one optimum, far away: the way there is downhill, whatever the method's own signs."""
    algorithm, f = INSTANCES[name], federation(noise=0.0, cohorts=((0, 1, 2),))
    f = f._replace(b=np.full_like(f.b, 100.0))
    state = begin(algorithm, f, torch.float32)
    first = algorithm.global_momentum(state.server)
    state = list(states(algorithm, f))[-1]
    momentum = algorithm.global_momentum(state.server)
    if name.partition("-")[0] not in MOMENTUM | WITHOUT_WEIGHT:
        assert first is None
        assert momentum is None
        return
    assert first is not None
    assert momentum is not None
    assert not first.any()
    assert momentum.shape == state.w.shape
    towards = (100.0 - torch.tensor(f.x0)) @ momentum.double()
    assert towards == 0 if name in WITHOUT_WEIGHT else towards > 0


@each(algorithm=INSTANCES)
def test_memories_outside_the_cohort_are_untouched(algorithm):
    """Clients that were never sampled share one first memory, as they do in the engine."""
    f = federation(rounds=4, cohorts=((0,), (0, 1), (0,), (1,)))
    first = copied(algorithm.init_client(torch.tensor(f.x0)))
    before = begin(algorithm, f, torch.float64)
    for state, cohort in zip(states(algorithm, f), f.cohorts, strict=True):
        for i in set(range(f.N)) - set(cohort):
            assert same(state.memories[i], before.memories[i])
        before = state
    assert same(before.memories[2], first)


# FedExP's epsilon is added to ||D||^2, which is about 1 here.
OF_THIS_SCALE = INSTANCES | {"fedexp": ALGORITHMS["fedexp"](epsilon=0.1)}
del OF_THIS_SCALE["local"]  # whose global model stays


@each(algorithm=OF_THIS_SCALE)
def test_finite_and_descending_on_a_quadratic(algorithm):
    f = federation(rounds=30, noise=0.0)
    A, b = f.A, f.b[0, :, 0]

    def loss(w: np.ndarray) -> float:
        return float(np.mean([(w - b[i]) @ A[i] @ (w - b[i]) / 2 for i in range(f.N)]))

    best = loss(np.linalg.solve(A.sum(0), np.einsum("ipq,iq->p", A, b)))
    for state in states(algorithm, f._replace(eta=(0.1,) * 30), torch.float32):
        assert finite(state)
    assert loss(state.w.double().numpy()) - best < 0.5 * (loss(f.x0) - best)


@each(algorithm=INSTANCES)
def test_finite_where_nothing_moves(algorithm):
    """At a stationary point every direction is 0, and no formula may divide by its norm.

    A softmax may leave the rounding error of 1.
    """
    f = federation(noise=0.0)
    f = f._replace(b=np.zeros_like(f.b), x0=np.zeros_like(f.x0))
    for state in states(algorithm, f):
        assert finite(state)
        assert state.w.abs().max() < 1e-15


@each(algorithm=INSTANCES)
def test_instances_are_frozen_and_travel_by_pickle(algorithm):
    copy = pickle.loads(pickle.dumps(algorithm))
    assert copy == algorithm
    assert type(copy) is type(algorithm)
    for field in dataclasses.fields(algorithm):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(algorithm, field.name, getattr(algorithm, field.name))


def test_the_names_are_lower_case():
    assert list(ALGORITHMS) == [name.lower() for name in ALGORITHMS]


@each(method=ALGORITHMS)
def test_names_its_paper_and_is_documented(method):
    assert issubclass(method, Algorithm)
    assert re.search("arXiv:|OpenReview|no federation", method.paper)


@each(which=HYPER_PARAMETERS)
def test_every_hyper_parameter_is_described_and_has_a_default(which):
    name, parameter = which
    hint = get_type_hints(ALGORITHMS[name], include_extras=True)[parameter]
    assert get_origin(hint) is Annotated
    assert any(isinstance(m, FieldInfo) and m.description for m in get_args(hint)[1:])
    fields = {field.name: field for field in dataclasses.fields(ALGORITHMS[name])}
    assert fields[parameter].default is not dataclasses.MISSING


@each(method=ALGORITHMS)
def test_the_defaults_are_allowed(method):
    validated = TypeAdapter(method).validate_python(dataclasses.asdict(method()))
    assert validated == method()


@each(method=ALGORITHMS)
def test_every_hyper_parameter_is_bounded(method):
    adapter = TypeAdapter(method)
    for field, value in product(dataclasses.fields(method), [-5, float("nan"), None]):
        with pytest.raises(ValidationError, match=field.name):
            adapter.validate_python({field.name: value})


@pytest.mark.slow
@each(which=HYPER_PARAMETERS)
def test_every_hyper_parameter_counts(which):
    """Another value of it leads elsewhere: none is read by nobody, or overwritten in the code."""
    (name, parameter), f = which, problem(which[0])
    method = ALGORITHMS[name]
    defaults = dataclasses.asdict(method(**BESIDE.get((name, parameter), {})))
    other = OTHERS.get((name, parameter), 0.45)
    assert other != defaults[parameter]
    one, two = (last(m, f) for m in (method(**defaults), method(**defaults | {parameter: other})))
    assert apart(one, two) > 1e-7


def apart(one: State, two: State) -> float:
    """The largest difference of w, and of what clients remember."""
    pairs = [(one.w, two.w)]
    for first, second in zip(one.memories, two.memories, strict=True):
        pairs += [(first[name], second[name]) for name in first.keys() & second.keys()]
    return max(float((a - b).abs().max()) for a, b in pairs)


FLOATS = {
    f"{name}.{field.name}": (name, field.name)
    for name, method in ALGORITHMS.items()
    for field in dataclasses.fields(method)
    if type(field.default) is float and field.name not in method.only_at_start
    if (name, field.name) in HYPER_PARAMETERS.values()
}

# Every round is far with the defaults.
BESIDE_A_RAMP = {("fedgf", "rho"): {"threshold": 1e9}}
ENDS = {("fedgf", "threshold"): 1e9}


@pytest.mark.slow
@each(case=FLOATS)
def test_every_ramp_shows(case):
    """Each number by itself: none is read before the first round alone, but for those that say so."""
    name, parameter = case
    f, method = problem(name), ALGORITHMS[name](**BESIDE_A_RAMP.get(case, {}))
    value, ends = getattr(method, parameter), []
    end = ENDS.get(case, 0.6 * value if value > 1e-3 else 0.3)
    for to in (value, end):
        scheduled = Scheduled(method=method, ramps={parameter: Ramp(value, to, 3, to)})
        state = begin(method, f, torch.float64)
        for r, cohort in enumerate(f.cohorts):
            now = scheduled.at(r + 1)
            state = aggregate(now, f, r, state, train(now, f, r, state, cohort))
        ends.append(state)
    assert apart(*ends) > 1e-9
