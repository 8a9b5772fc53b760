"""Local steps as CUDA graphs: recordings that a device replays without Python.

A model's step is hundreds of kernels of a few microseconds each, and launching them one by one from Python
takes several times as long as they run. A recording is launched as one. It reads and writes the memory that
it was recorded on: one static stack per shape. Two recordings serve all steps of a shape, that of the first
step of a round and that of all others, whose numbers that follow from the step have places of their own (see
`step_number`).
"""

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from rayfl.algorithms.base import Vectors
from rayfl.algorithms.step_number import MOST_STEPS, Places, StepNumber
from rayfl.errors import first_line
from rayfl.training.batches import Minibatch
from rayfl.training.local import LocalStep, Stack, cloned

Work = Callable[[], object]

# Recordings live as long as the engine. This many at most; steps of further shapes are not recorded.
MOST = 1024


class Recorder(Protocol):
    """Records the device's work of functions."""

    def record(self, work: Work) -> Work:
        """Record the function, which it may run; returns what does that work again."""
        ...

    def watched(self) -> contextlib.AbstractContextManager[object]:
        """Context in which work raises RuntimeError if it could not be recorded."""
        ...

    def randomness(self) -> object:
        """State of the random generators that work may use."""
        ...


class StaticBuffers(NamedTuple):
    """The memory that the recordings of one shape of stack read and write."""

    stack: Stack
    vectors: Vectors  # all vectors of the clients' memories; the stack has some of them at a time
    buffers: Vectors  # of the model

    def values(self) -> Vectors:
        """Copies of all that a local step changes."""
        return cloned(self._all())

    def fill(self, values: Vectors) -> None:
        """The opposite of `values`; vectors that have none become 0."""
        for name, value in self._all().items():
            value.copy_(values[name]) if name in values else value.zero_()

    def choose(self, names: tuple[str, ...]) -> None:
        """Let the stack have these vectors as its memory."""
        self.stack.memory = {name: self.vectors[name] for name in names}

    def _all(self) -> Vectors:
        buffers = {f"/buffers/{name}": value for name, value in self.buffers.items()}
        return _progress(self.stack) | self.vectors | buffers


@dataclass(eq=False)
class Recording:
    """One local step of one shape of stack, for one k or for all but the first."""

    replay: Work
    names: tuple[str, ...]  # names in the memory after it
    backward_passes: int
    places: Places | None  # None: it is for one k
    seen: set[int] = field(default_factory=set)  # steps for which it did what the step itself does


class GraphedSteps:
    """Takes local steps by recordings, each of which it has seen to do what the step itself does."""

    def __init__(self, step: LocalStep, recorder: Recorder, in_place: bool = False):
        """`in_place`: the starts and shared vectors of all stacks lie in the same memory as the first's."""
        self._step, self._recorder, self._in_place = step, recorder, in_place
        self.refused: str | None = None  # why steps are not recorded any more; None: they are
        self.replays = 0  # steps that were taken by a recording
        self.draws = False  # a step moved a random generator
        self._held: dict[object, StaticBuffers] = {}
        self._slots: dict[object, Minibatch] = {}  # minibatch that recordings read, by shape
        self._recordings: dict[object, Recording] = {}
        self._apart: set[object] = set()  # shapes whose steps need a recording for every k

    @property
    def recordings(self) -> int:
        """Number of recordings."""
        return len(self._recordings)

    def hold(self, stack: Stack) -> Stack:
        """The held stack of the same shape, with the same values."""
        shape = (*_shapes(stack.shared), *_shapes(stack.memory), stack.x.shape)
        if shape not in self._held:
            own = stack.copy()
            own.lr, own.round = stack.lr.clone(), stack.round.clone()
            if not self._in_place:
                own.start, own.shared = stack.start.clone(), cloned(stack.shared)
            buffers = getattr(self._step.oracle, "buffers", {})
            self._held[shape] = StaticBuffers(own, cloned(stack.memory), buffers)
        held = self._held[shape]
        held.stack.noise = stack.noise
        for name, value in (_progress(stack) | stack.memory).items():
            (_progress(held.stack) | held.vectors)[name].copy_(value)
        for name in held.vectors.keys() - stack.memory.keys():
            held.vectors[name].zero_()
        for name, value in _fixed(stack).items():
            place = _fixed(held.stack)[name]
            if place is not value:
                place.copy_(value)
        held.choose(tuple(stack.memory))
        return held.stack

    def __call__(self, stack: Stack, batch: Minibatch, k: int, all_active: bool) -> int:
        """Take a local step, as `LocalStep` does, on a stack that `hold` returned."""
        held = next(held for held in self._held.values() if held.stack is stack)
        shape = id(stack), all_active, tuple(stack.memory), *_shapes(batch._asdict())
        together = 0 < k < MOST_STEPS and shape not in self._apart
        recording = self._recordings.get((shape, "later" if together else k))
        if recording is not None:
            return self._replay(held, recording, batch, k, all_active, shape)
        if self.refused is not None or len(self._recordings) >= MOST:
            return self._take(held, batch, k, all_active)
        return self._record(held, batch, k, all_active, shape, together)

    def _replay(
        self,
        held: StaticBuffers,
        recording: Recording,
        batch: Minibatch,
        k: int,
        all_active: bool,
        shape: object,
    ) -> int:
        slots = self._slot(batch)
        # Two of the steps that one recording serves are compared: numbers may follow from k unnoticed.
        compare = recording.places is not None and len(recording.seen) < 2
        compare = compare and k not in recording.seen
        before, names = (held.values(), tuple(held.stack.memory)) if compare else ({}, ())
        if recording.places is not None:
            recording.places.fill(k)
        recording.replay()
        held.choose(recording.names)
        if compare:
            replayed = held.values()
            held.fill(before)
            held.choose(names)
            passes = self._take(held, slots, k, all_active)
            if not _equal(replayed, held.values()):
                self._apart.add(shape)
                del self._recordings[shape, "later"]
                return passes
            recording.seen.add(k)
        self.replays += 1
        return recording.backward_passes

    def _record(
        self,
        held: StaticBuffers,
        batch: Minibatch,
        k: int,
        all_active: bool,
        shape: object,
        together: bool,
    ) -> int:
        """Take the step, and record it if that does the same."""
        slots = self._slot(batch)
        before, names = held.values(), tuple(held.stack.memory)
        randomness = self._recorder.randomness()
        try:
            with self._recorder.watched():
                passes = self._take(held, slots, k, all_active)
        except RuntimeError as error:
            self.refused = f"step {k} cannot be recorded: {first_line(error)}"
            held.fill(before)
            held.choose(names)
            return self._take(held, slots, k, all_active)
        noise = held.stack.noise
        self.draws = self.draws or self._recorder.randomness() != randomness
        if self.draws or (noise is not None and noise.drawn):
            # A recording would draw the same numbers for ever, or other ones than the step itself.
            self.refused = f"step {k} draws random numbers"
            return passes
        after, names_after = held.values(), tuple(held.stack.memory)

        def again(number: StepNumber | None = None) -> None:
            held.choose(names)
            self._take(held, slots, k, all_active, number)

        places = self._places(held, before, after, k, again) if together else None
        if together and places is None:
            self._apart.add(shape)
        number = places.step(k, recording=True) if places else None
        replay = self._recorder.record(lambda: again(number))
        held.fill(before)
        replay()
        if _equal(after, held.values()):
            key = shape, k if places is None else "later"
            self._recordings[key] = Recording(replay, names_after, passes, places, {k})
        else:
            self.refused = f"step {k} and its recording do not do the same"
        held.fill(after)
        held.choose(names_after)
        return passes

    def _places(
        self,
        held: StaticBuffers,
        before: Vectors,
        after: Vectors,
        k: int,
        again: Callable[[StepNumber | None], None],
    ) -> Places | None:
        """The places of the numbers that follow from k; None if the step depends on k in other ways."""
        places = Places(held.stack.start)
        held.fill(before)
        try:
            with self._recorder.watched():
                again(places.step(k))
        except Exception:  # whatever an algorithm does with what is no plain number
            return None
        return None if places.only_here or not _equal(after, held.values()) else places

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

    def _take(
        self,
        held: StaticBuffers,
        batch: Minibatch,
        k: int,
        all_active: bool,
        number: StepNumber | None = None,
    ) -> int:
        """Take the step itself, and put the memory that it leaves where it is held."""
        # Another object for every step: models with buffers tell a step's first pass from its second by it.
        passes = self._step(held.stack, Minibatch(*batch), k, all_active, number)
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


def _fixed(stack: Stack) -> Vectors:
    """Tensors that stay as they are in a round."""
    own = {"/start": stack.start, "/lr": stack.lr, "/counts": stack.counts, "/round": stack.round}
    return own | {"/samples": stack.samples} | stack.shared


def _progress(stack: Stack) -> Vectors:
    """Tensors that every local step changes, beside the memory."""
    velocity = {} if stack.velocity is None else {"/velocity": stack.velocity}
    return {"/x": stack.x, "/total": stack.total} | velocity


def _equal(left: Vectors, right: Vectors) -> bool:
    return all(torch.equal(value, left[name]) for name, value in right.items() if name in left)


def _dense(value: Tensor) -> Tensor:
    """A copy without gaps whose dimensions lie in memory in the same order: channels last stay last."""
    order = sorted(range(value.dim()), key=value.stride, reverse=True)
    inverse = sorted(range(value.dim()), key=order.__getitem__)
    return value.permute(order).clone(memory_format=torch.contiguous_format).permute(inverse)


def _shapes(tensors: Mapping[str, Tensor | None]) -> list[tuple[str, torch.Size | None]]:
    return [(name, None if value is None else value.shape) for name, value in tensors.items()]
