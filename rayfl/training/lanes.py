"""Lanes of a GPU: clients that train beside each other, each on a stream of its own.

One client's kernels leave most of a GPU idle. The kernels of a lane are those of a client alone, so its bits
are too, and how many lanes there are is no part of a result. On a CPU, and where steps cannot be recorded
(launching their kernels one by one keeps the processor busy, not the GPU), there is one lane.

Shapes: P parameters, Q entries of float buffers.
"""

import contextlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from rayfl.algorithms.base import Vectors
from rayfl.algorithms.noise import ClientNoise
from rayfl.errors import first_line
from rayfl.training.batches import Minibatch
from rayfl.training.cuda_graphs import GraphedSteps, Work
from rayfl.training.gradients import Oracle, PerClientGradient
from rayfl.training.local import LocalStep, Trained, Training

MOST_LANES = 16
# Part of the memory that lanes may take, beside the data and the broadcast; the rest is for clients'
# memories, evaluation and what comes and goes.
LANES_MEMORY = 0.6
DONE = object()


@dataclass(eq=False)
class Lane:
    """A place for one stack of clients to train at a time."""

    oracle: Oracle
    buffers: Tensor  # of the client that trains here `[Q]`
    stream: torch.cuda.Stream | None = None  # None: the device's own
    graphed: GraphedSteps | None = None  # None: steps are not recorded
    _training: Training | None = field(default=None, init=False)

    def on(self) -> contextlib.AbstractContextManager[object]:
        """Context in which work goes to this lane."""
        return contextlib.nullcontext() if self.stream is None else torch.cuda.stream(self.stream)

    def train(
        self,
        step: LocalStep,
        minibatches: Callable[[], Callable[[int], Minibatch]],
        start: Tensor,
        shared: Vectors,
        memory: Vectors,
        buffers: Tensor,
        steps: list[int],
        noise: ClientNoise,
        round: int,
        samples: Sequence[int],
    ) -> Iterator[None]:
        """Train a stack, whose vectors must be ready; each item is a step that the device was given."""
        if self.stream is not None:
            self.stream.wait_stream(torch.cuda.current_stream())
            for vector in memory.values():
                # Tells the allocator of this reader: else its memory may be given away before it is read.
                vector.record_stream(self.stream)
        with self.on():
            self.buffers.copy_(buffers)
            if isinstance(self.oracle, PerClientGradient):
                self.oracle.begin_client(self.buffers)
            self._training = training = Training(
                *(
                    step,
                    minibatches(),
                    start,
                    shared,
                    memory,
                    steps,
                    self.graphed,
                    noise,
                    round,
                    samples,
                )
            )
        for k in range(max(steps)):
            with self.on():
                training.take(k)
            yield

    def finish(self) -> tuple[Trained, Tensor]:
        """The stack's results, and its buffers `[Q]`, ready for the device's own stream."""
        assert self._training is not None
        with self.on():
            trained, buffers = self._training.finish(), self.buffers.clone()
        self._training = None
        if self.stream is not None:
            torch.cuda.current_stream().wait_stream(self.stream)
            for vector in trained.memory.values():  # as above: it is read there in a later round
                vector.record_stream(torch.cuda.current_stream())
        return trained, buffers


class CudaGraphs:
    """Records CUDA graphs on one stream, which share the memory of their intermediate results."""

    def __init__(self, stream: torch.cuda.Stream):
        self._stream, self._pool = stream, torch.cuda.graph_pool_handle()

    def record(self, work: Work) -> Work:
        """Record the function. RuntimeError if that fails, after which the process is of no use."""
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(
                graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"
            ):
                work()
        except RuntimeError as error:
            raise RuntimeError(
                f"a local step could not be recorded as a CUDA graph ({first_line(error)}); set "
                "resources.cuda_graphs=false, which gives the same numbers more slowly"
            ) from error
        return graph.replay

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """Context in which whatever waits for the device is an error: a recording could not do that."""
        before = torch.cuda.get_sync_debug_mode()
        torch.cuda.set_sync_debug_mode("error")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode(before)

    def randomness(self) -> object:
        """State of torch's generators, on the device and beside it."""
        states = torch.cuda.get_rng_state(), torch.get_rng_state()
        return tuple(state.numpy().tobytes() for state in states)


def in_turns(lanes: Iterable[Iterator[None]]) -> None:
    """Run all, in turns: each turn begins one more, and takes one item of each that has begun.

    A stream holds a limited number of kernels that wait: to give it all steps of a client at once would make
    the others wait until it has taken them. And while one is prepared the others are at work.
    """
    waiting, running = deque(lanes), list[Iterator[None]]()
    while waiting or running:
        if waiting:
            running.append(waiting.popleft())
        running = [lane for lane in running if next(lane, DONE) is not DONE]


def recording_lane(step: LocalStep, oracle: Oracle, buffers: Tensor) -> Lane:
    """A lane with a stream, whose steps are recorded."""
    stream = torch.cuda.Stream(buffers.device)
    graphed = GraphedSteps(step, CudaGraphs(stream), in_place=True)
    return Lane(oracle, buffers, stream, graphed)


def most_lanes(device: torch.device, per_lane: int, share: float) -> int:
    """Lanes that fit in this process's `share` of the device's memory, where one takes `per_lane` bytes."""
    total = torch.cuda.get_device_properties(device).total_memory
    free = LANES_MEMORY * share * total - torch.cuda.memory_reserved(device)
    return max(1, min(MOST_LANES, 1 + int(free // max(per_lane, 1))))
