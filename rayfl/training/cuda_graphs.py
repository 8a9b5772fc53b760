"""Local steps as CUDA graphs: recordings that a device replays without Python.

A small model's step is hundreds of kernels of a few microseconds each, and launching them one by one from
Python takes several times as long as they run. A recording is launched as one. It reads and writes the
memory that it was recorded on: reuse one static buffer per shape.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from rayfl.algorithms.base import Vectors
from rayfl.errors import first_line
from rayfl.training.batches import Minibatch
from rayfl.training.local import LocalStep, Stack, cloned

Work = Callable[[], object]
# Records the device's work of a function, which it may run, and returns what does that work again.
Record = Callable[[Work], Work]

# Recordings live as long as the engine. This many at most; steps of further shapes are not recorded.
MOST = 1024


class StaticBuffers(NamedTuple):
    """The memory that the recordings of one shape of stack read and write."""

    stack: Stack
    vectors: Vectors  # all vectors of the clients' memories; the stack has some of them at a time

    def values(self) -> Vectors:
        """Copies of all that a local step changes."""
        return cloned(_progress(self.stack) | self.vectors)

    def fill(self, values: Vectors) -> None:
        """The opposite of `values`; vectors that have none become 0."""
        for name, value in (_progress(self.stack) | self.vectors).items():
            value.copy_(values[name]) if name in values else value.zero_()

    def choose(self, names: tuple[str, ...]) -> None:
        """Let the stack have these vectors as its memory."""
        self.stack.memory = {name: self.vectors[name] for name in names}


class Recording(NamedTuple):
    """One local step of one shape of stack."""

    replay: Work
    names: tuple[str, ...]  # names in the memory after it
    backward_passes: int


class GraphedSteps:
    """Takes local steps by recordings, each of which it has seen to do what the step itself does."""

    def __init__(self, step: LocalStep, record: Record):
        self._step, self._record = step, record
        self.refused: str | None = None  # why steps are not recorded any more; None: they are
        self.replays = 0  # steps that were taken by a recording
        self._held: dict[object, StaticBuffers] = {}
        self._slots: dict[object, Minibatch] = {}  # minibatch that recordings read, by shape
        self._recordings: dict[object, Recording] = {}

    def hold(self, stack: Stack) -> Stack:
        """The held stack of the same shape, with the same values."""
        shape = (*_shapes(stack.shared), *_shapes(stack.memory), stack.x.shape)
        if shape not in self._held:
            self._held[shape] = StaticBuffers(stack.copy(), cloned(stack.memory))
        held = self._held[shape]
        held.fill(_progress(stack) | stack.memory)
        for name, value in _fixed(stack).items():
            _fixed(held.stack)[name].copy_(value)
        held.stack.noise = stack.noise
        held.choose(tuple(stack.memory))
        return held.stack

    def __call__(self, stack: Stack, batch: Minibatch, k: int, all_active: bool) -> int:
        """As `LocalStep`, on a stack that `hold` returned."""
        held = next(held for held in self._held.values() if held.stack is stack)
        key = id(stack), k, all_active, *_shapes(batch._asdict())
        recording = self._recordings.get(key)
        if recording is not None:
            self._slot(batch)
            recording.replay()
            self.replays += 1
            held.choose(recording.names)
            return recording.backward_passes
        if self.refused is not None or len(self._recordings) >= MOST:
            return self._take(held, batch, k, all_active)
        slots = self._slot(batch)
        before, names = held.values(), tuple(stack.memory)
        passes = self._take(held, slots, k, all_active)
        if stack.noise is not None and stack.noise.drawn:
            # A recording would draw the same numbers for ever.
            self.refused = f"step {k} draws random numbers"
            return passes
        after, names_after = held.values(), tuple(stack.memory)

        def again() -> None:
            held.choose(names)
            self._take(held, slots, k, all_active)

        try:
            replay = self._record(again)
            held.fill(before)
            replay()
            if all(torch.equal(value, after[name]) for name, value in held.values().items()):
                self._recordings[key] = Recording(replay, names_after, passes)
            else:
                self.refused = f"step {k} and its recording do not do the same"
        except RuntimeError as error:
            self.refused = f"step {k} cannot be recorded: {first_line(error)}"
        held.fill(after)
        held.choose(names_after)
        return passes

    def _slot(self, batch: Minibatch) -> Minibatch:
        """The minibatch, where recordings read it."""
        shapes = tuple(_shapes(batch._asdict()))
        if shapes not in self._slots:
            weights = None if batch.weights is None else _dense(batch.weights)
            self._slots[shapes] = Minibatch(_dense(batch.inputs), _dense(batch.targets), weights)
        for slot, value in zip(self._slots[shapes], batch, strict=True):
            if slot is not None and value is not None:
                slot.copy_(value)
        return self._slots[shapes]

    def _take(self, held: StaticBuffers, batch: Minibatch, k: int, all_active: bool) -> int:
        """Take the step itself, and put the memory that it leaves where it is held."""
        passes = self._step(held.stack, batch, k, all_active)
        names = tuple(held.stack.memory)
        held_at = {value.untyped_storage().data_ptr() for value in held.vectors.values()}
        # A step may leave one vector under the name of another: read all before any is written.
        values = {
            name: value.clone() if value.untyped_storage().data_ptr() in held_at else value
            for name, value in held.stack.memory.items()
            if value is not held.vectors.get(name)
        }
        for name, value in values.items():
            if name in held.vectors:
                held.vectors[name].copy_(value)
            else:
                held.vectors[name] = value.clone()
        held.choose(names)
        return passes


def cuda_graphs() -> Record:
    """Records CUDA graphs, which share the memory of their intermediate results."""
    pool = torch.cuda.graph_pool_handle()

    def record(work: Work) -> Work:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool):
            work()
        return graph.replay

    return record


def _fixed(stack: Stack) -> Vectors:
    """Tensors that stay as they are in a round."""
    own = {"/start": stack.start, "/lr": stack.lr, "/counts": stack.counts, "/round": stack.round}
    return own | stack.shared


def _progress(stack: Stack) -> Vectors:
    """Tensors that every local step changes, beside the memory."""
    return {"/x": stack.x, "/total": stack.total}


def _dense(value: Tensor) -> Tensor:
    """A copy without gaps whose dimensions lie in memory in the same order: channels last stay last."""
    order = sorted(range(value.dim()), key=value.stride, reverse=True)
    inverse = sorted(range(value.dim()), key=order.__getitem__)
    return value.permute(order).clone(memory_format=torch.contiguous_format).permute(inverse)


def _shapes(tensors: Mapping[str, Tensor | None]) -> list[tuple[str, torch.Size | None]]:
    return [(name, None if value is None else value.shape) for name, value in tensors.items()]
