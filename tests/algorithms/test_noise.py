"""Random numbers for methods: a client draws the same wherever, and beside whomever, it trains."""

from functools import partial

import numpy as np
import pytest
import torch
from quadratics import client_context
from torch import Tensor

from rayfl.algorithms.base import ServerContext
from rayfl.algorithms.noise import ClientNoise, server_noise

FILLS = [
    Tensor.normal_,
    Tensor.uniform_,
    Tensor.exponential_,
    lambda row, generator: row.bernoulli_(0.1, generator=generator),
    partial(torch.nn.init.trunc_normal_, std=0.5),
]


def draw(clients, steps, step, like=None, fill=Tensor.normal_, seed=0, round=1):
    like = torch.empty(len(clients), 1001) if like is None else like
    return ClientNoise(seed, round, clients, steps).at(step)(like, fill)


@pytest.mark.parametrize("fill", FILLS)
def test_a_client_draws_in_a_stack_what_it_draws_alone(fill):
    clients, steps = (7, 3, 5), (4, 2, 3)
    for step in range(4):
        stack = draw(clients, steps, step, fill=fill)
        for row, client, count in zip(stack, clients, steps, strict=True):
            if step < count:
                assert torch.equal(row, draw([client], [count], step, fill=fill)[0])


def test_upload_draws_the_same_in_every_stack_and_nothing_a_step_had():
    stack = draw((7, 3, 5), (4, 2, 3), 4)  # the stack's longest client takes four steps
    alone = [draw([c], [k], k)[0] for c, k in ((7, 4), (3, 2), (5, 3))]
    assert torch.equal(stack, torch.stack(alone))
    drawn = [alone[1], *(draw([3], [2], step)[0] for step in range(2))]
    assert len({tuple(row.tolist()) for row in drawn}) == 3


@pytest.mark.parametrize("other", [{"seed": 1}, {"round": 2}, {"step": 1}, {"clients": [4]}])
def test_seed_round_client_and_step_each_count(other):
    same = {"clients": [3], "steps": [5], "step": 0, "seed": 0, "round": 1}
    assert torch.equal(draw(**same), draw(**same))
    correlation = np.corrcoef(draw(**same)[0], draw(**same | other)[0])[0, 1]
    assert abs(correlation) < 0.15  # 1/sqrt(1001) is a standard deviation


def test_draws_of_a_step_follow_one_another():
    ctx_random = ClientNoise(0, 1, [3], [1]).at(0)
    first, second = ctx_random(torch.empty(1, 40)), ctx_random(torch.empty(1, 1))
    assert not torch.isin(second, first).any()
    assert torch.equal(first, draw([3], [1], 0, torch.empty(1, 40)))


def test_shape_dtype_and_moments_are_those_asked_for():
    like = torch.full((2, 200_000), torch.nan, dtype=torch.float64)
    drawn = draw([1, 2], [1, 1], 0, like)
    assert (drawn.shape, drawn.dtype) == (like.shape, like.dtype)
    assert like.isnan().all()
    torch.testing.assert_close(drawn.mean(-1), torch.zeros(2).double(), atol=0.01, rtol=0)
    torch.testing.assert_close(drawn.std(-1), torch.ones(2).double(), atol=0.01, rtol=0)
    assert draw([1, 2], [1, 1], 0, like[:, :1]).shape == (2, 1)
    assert draw([1, 2], [1, 1], 0, torch.empty(2, 3, 5)).shape == (2, 3, 5)
    coin = draw([1], [1], 0, torch.empty(1, 100_000), FILLS[3])
    assert sorted(coin.unique().tolist()) == [0, 1]
    assert abs(coin.mean() - 0.1) < 0.01


def test_a_vector_of_the_broadcast_asks_for_a_row_of_each_client():
    drawn = draw([1, 2], [1, 1], 0, torch.empty(1001))
    assert torch.equal(drawn, draw([1, 2], [1, 1], 0))


def test_the_server_draws_by_seed_and_round():
    like = torch.empty(1001)
    first = server_noise(0, 1)(like)
    assert first.shape == like.shape
    assert torch.equal(first, server_noise(0, 1)(like))
    for other in (server_noise(1, 1), server_noise(0, 2), ClientNoise(0, 1, [0], [1]).at(0)):
        assert not torch.isin(other(like), first).any()


@pytest.mark.parametrize("fill", FILLS)
def test_threads_and_the_generators_of_the_process_are_no_matter(fill):
    like, threads, before = torch.empty(1, 100_003), torch.get_num_threads(), torch.get_rng_state()
    drawn = []
    for count in (1, 2):
        torch.set_num_threads(count)
        drawn.append(draw([3], [1], 0, like, fill))
    torch.set_num_threads(threads)
    assert torch.equal(*drawn)
    assert torch.equal(torch.get_rng_state(), before)


def test_streams_of_methods_never_change():
    """Every stored result of a method that draws depends on them."""
    assert draw([3], [2], 1, torch.empty(1, 3)).tolist() == [
        pytest.approx([0.7006780, 0.8114800, -1.0354915])
    ]
    assert server_noise(0, 1)(torch.empty(3)).tolist() == pytest.approx(
        [-0.7628299, -0.1398638, -0.9438319]
    )


def test_nothing_is_made_before_it_is_asked_for():
    noise = ClientNoise(0, 1, range(10**9), [])  # whose seeds could not be drawn
    noise.at(0)
    assert not noise.drawn


def test_a_fill_that_leaves_its_row_as_it_is_is_refused():
    with pytest.raises(ValueError, match="in place, and return it"):
        draw([1], [1], 0, fill=lambda row, generator: torch.randn(row.shape, generator=generator))


def test_a_context_without_a_seed_says_so():
    like = torch.zeros(3)
    contexts = (
        client_context(like, {}, 0.1, like, 0, 1, experiment=None),  # pyright: ignore
        ServerContext(0.1, 1.0, 1.0, 1),
    )
    for ctx in contexts:
        with pytest.raises(RuntimeError, match="made without a seed"):
            ctx.random(like)
