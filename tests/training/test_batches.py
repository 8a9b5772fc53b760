import math
import warnings
from itertools import chain, pairwise

import numpy as np
import pytest
import torch

from rayfl.data.datasets import Dataset, from_arrays
from rayfl.training.batches import (
    BatchSchedule,
    DeviceData,
    Minibatch,
    batch_schedule,
    steps_per_round,
)

SAMPLES = np.arange(100, 110)


def draw(
    samples=SAMPLES, batch_size=4, steps=6, seed=0, round=1, client=2, augment="none", padding=1
) -> BatchSchedule:
    return batch_schedule(samples, batch_size, steps, seed, round, client, augment, padding)


def seen(p: BatchSchedule) -> list[list[int]]:
    """The samples of each step, without padding."""
    return [row[:size].tolist() for row, size in zip(p.indices, p.sizes, strict=True)]


def same(left: BatchSchedule, right: BatchSchedule) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(left, right, strict=True))


@pytest.mark.parametrize(
    ("samples", "batch_size", "epochs", "local_steps", "expected"),
    [
        (10, 4, 1, None, 3),
        (8, 4, 1, None, 2),
        (10, 4, 5, None, 15),
        (3, 50, 2, None, 2),
        (10, 4, None, 7, 7),
        (1, 50, None, 3, 3),
    ],
)
def test_steps_per_round(samples, batch_size, epochs, local_steps, expected):
    assert steps_per_round(samples, batch_size, epochs, local_steps) == expected


@pytest.mark.parametrize(("n", "batch_size"), [(10, 4), (9, 3), (2, 5), (5, 5), (1, 1), (7, 1)])
def test_each_epoch_holds_every_sample_once_and_ends_in_a_smaller_batch(n, batch_size):
    samples, epochs = SAMPLES[:1] + 7 * np.arange(n), 3
    per_epoch = math.ceil(n / batch_size)
    p = draw(samples, batch_size, steps=epochs * per_epoch)
    assert p.indices.dtype == np.int64
    assert p.indices.shape == (epochs * per_epoch, min(batch_size, n))
    last = n - (per_epoch - 1) * min(batch_size, n)
    assert p.sizes.tolist() == ([batch_size] * (per_epoch - 1) + [last]) * epochs
    for epoch in range(epochs):
        steps = seen(p)[epoch * per_epoch : (epoch + 1) * per_epoch]
        assert sorted(chain(*steps)) == samples.tolist()


def test_epochs_are_shuffled_anew():
    epochs = np.array(seen(draw(np.arange(64), batch_size=64, steps=4)))
    assert all((a != b).any() for a, b in pairwise(epochs))
    assert (epochs[0] != np.arange(64)).any()


def test_local_steps_go_on_into_the_next_epoch_and_stop_anywhere():
    p = draw(steps=7)  # 3 steps an epoch
    steps = seen(p)
    assert p.sizes.tolist() == [4, 4, 2, 4, 4, 2, 4]
    assert sorted(chain(*steps[:3])) == sorted(chain(*steps[3:6])) == SAMPLES.tolist()
    assert len(set(steps[6])) == 4
    assert seen(draw(steps=2)) == steps[:2]  # fewer steps are a beginning of more


@pytest.mark.parametrize("augment", ["none", "flip", "flip_crop"])
def test_seed_round_and_client_decide_the_plan(augment):
    def drawn(**key):
        return draw(np.arange(40), steps=20, augment=augment, padding=4, **key)

    first = drawn()
    np.random.seed(5)  # noqa: NPY002
    torch.manual_seed(5)
    assert same(first, drawn())
    for key in ({"seed": 1}, {"round": 2}, {"client": 3}):
        other = drawn(**key)
        assert (first.indices != other.indices).any()
        if augment != "none":
            assert (first.flips != other.flips).any()
        if augment == "flip_crop":
            assert (first.shifts != other.shifts).any()


def test_augmentation_does_not_change_the_batches():
    plain, flipped, cropped = (draw(augment=a) for a in ("none", "flip", "flip_crop"))
    assert plain.flips is None
    assert plain.shifts is None
    assert flipped.shifts is None
    assert np.array_equal(plain.indices, flipped.indices)
    assert np.array_equal(plain.indices, cropped.indices)
    assert np.array_equal(flipped.flips, cropped.flips)


def test_half_of_the_images_are_flipped_and_shifts_are_uniform():
    p = draw(np.arange(2000), batch_size=2000, steps=1, augment="flip_crop", padding=2)
    assert 0.45 < p.flips.mean() < 0.55
    counts = np.bincount(p.shifts.ravel(), minlength=5)
    assert len(counts) == 5
    assert counts.min() > 0.9 * 4000 / 5


def images(dtype=np.uint8, side=(8, 6), channels=3, n=40) -> Dataset:
    """A dataset of noise; every pixel differs from its neighbours, so no wrong crop goes unseen."""
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (n, *side, channels), dtype=np.uint8)
    x = x if dtype == np.uint8 else (x / 255).astype(dtype)
    y = rng.integers(0, 4, n)
    # Given mean and std: those of the noise are almost equal in every channel.
    mean, std = np.linspace(0.3, 0.6, channels), np.linspace(0.2, 0.4, channels)
    return from_arrays("noise", (x, y), (x[:7] // 2, y[:7]), list("abcd"), (mean, std))


def features() -> Dataset:
    rng = np.random.default_rng(0)
    x, y = rng.normal(3, 5, (40, 9)).astype(np.float32), rng.integers(0, 4, 40)
    return from_arrays("features", (x, y), (x[:7] * 2, y[:7]), list("abcd"))


def normalised(data: Dataset, x: np.ndarray) -> np.ndarray:
    """(x / 255 - mean) / std in float64, the channel last."""
    scale = 255 if x.dtype == np.uint8 else 1
    mean, std = data.mean.astype(np.float64), data.std.astype(np.float64)
    return (x.astype(np.float64) / scale - mean) / std


def on_cpu(data: Dataset, split: str = "train") -> DeviceData:
    return DeviceData(data, split, torch.device("cpu"))


DATA = {
    "uint8 images": images(),
    "float images": images(np.float32),
    "grey images": images(channels=1),
    "features": features(),
}


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("name", DATA)
def test_inputs_are_normalised(name, split):
    data = DATA[name]
    x = getattr(data, f"x_{split}")
    kept, indices = x.copy(), [5, 0, 6, 5]
    device_data = on_cpu(data, split)
    inputs = device_data.inputs(torch.tensor(indices))
    assert len(device_data) == len(x)
    assert inputs.dtype == torch.float32
    np.testing.assert_allclose(inputs.numpy(), normalised(data, x[indices]), rtol=0, atol=2e-6)
    assert np.array_equal(x, kept)  # normalised in a copy


def test_arrays_of_the_object_store_are_read_without_a_warning():
    data = images()
    for array in (data.x_train, data.y_train):
        array.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        batch = on_cpu(data).batches([draw(np.arange(10))])(0)
    assert batch.inputs.isfinite().all()


def expected_image(data: Dataset, p: BatchSchedule, k: int, b: int, padding: int) -> np.ndarray:
    """Pad with zeros, crop, mirror: one image, pixel by pixel, [H, W, channels]."""
    image = normalised(data, data.x_train[p.indices[k, b]])
    height, width, channels = image.shape
    down, right = p.shifts[k, b] - padding if p.shifts is not None else (0, 0)
    out = np.zeros((height, width, channels))
    for row in range(height):
        for column in range(width):
            source_row, source_column = row + down, column + right
            if 0 <= source_row < height and 0 <= source_column < width:
                out[row, column] = image[source_row, source_column]
    return out[:, ::-1] if p.flips is not None and p.flips[k, b] else out


@pytest.mark.parametrize("side", [(8, 6), (16, 16), (5, 9)])
@pytest.mark.parametrize("augment", ["none", "flip", "flip_crop"])
def test_augmentation_equals_a_loop_over_images_and_pixels(augment, side):
    data = images(side=side)
    device_data = on_cpu(data)
    padding = device_data.padding
    assert padding == max(1, side[0] // 8)
    clients = [np.arange(0, 11), np.arange(11, 13), np.arange(13, 40)]
    schedules = [
        draw(samples, batch_size=8, steps=2, client=c, augment=augment, padding=padding)
        for c, samples in enumerate(clients)
    ]
    for k in range(2):
        batch = device_data.batches(schedules)(k)
        for c, p in enumerate(schedules):
            for b in range(p.sizes[k]):
                image = batch.inputs[c, b].permute(1, 2, 0).numpy()
                expected = expected_image(data, p, k, b, padding)
                np.testing.assert_allclose(image, expected, rtol=0, atol=2e-6)
                assert batch.targets[c, b] == data.y_train[p.indices[k, b]]


def test_the_crop_moves_by_up_to_the_padding_in_all_four_directions():
    data = images(side=(16, 16))
    device_data = on_cpu(data)
    base = draw(np.arange(4), steps=1, augment="flip_crop", padding=device_data.padding)
    shifts = np.array([[[0, 0], [4, 4], [0, 4], [2, 2]]])
    p = base._replace(flips=np.zeros((1, 4), dtype=bool), shifts=shifts)
    moved = device_data.batches([p])(0).inputs[0]
    plain = device_data.batches([p._replace(flips=None, shifts=None)])(0).inputs[0]
    assert torch.equal(moved[0, :, 2:, 2:], plain[0, :, :-2, :-2])
    assert not moved[0, :, :2].any()
    assert not moved[0, :, :, :2].any()
    assert torch.equal(moved[1, :, :-2, :-2], plain[1, :, 2:, 2:])
    assert torch.equal(moved[2, :, 2:, :-2], plain[2, :, :-2, 2:])
    assert torch.equal(moved[3], plain[3])


def test_padding_has_weight_0_and_each_client_weight_1():
    schedules = [draw(np.arange(n), batch_size=4, steps=3, client=n) for n in (12, 10, 1)]
    batch = on_cpu(images()).batches(schedules)(2)  # 4, 2 and 1 samples
    expected = [[1 / 4] * 4, [1 / 2, 1 / 2, 0, 0], [1, 0, 0, 0]]
    assert batch.weights.dtype == torch.float32
    assert batch.weights.tolist() == expected
    assert batch.inputs.shape == (3, 4, 3, 8, 6)
    assert batch.targets.shape == (3, 4)


def test_equal_batches_need_no_weights_however_small():
    schedules = [draw(np.arange(10), batch_size=4, steps=3, client=c) for c in range(2)]
    data = on_cpu(images())
    full, smaller = data.batches(schedules)(0), data.batches(schedules)(2)
    assert full.weights is None
    assert smaller.weights is None
    assert full.inputs.shape[:2] == (2, 4)
    assert smaller.inputs.shape[:2] == (2, 2)


@pytest.mark.parametrize("augment", ["none", "flip", "flip_crop"])
def test_a_stack_shows_each_client_what_it_sees_alone(augment):
    data = on_cpu(images())
    schedules = [
        draw(np.arange(n), batch_size=4, steps=math.ceil(n / 4), client=n, augment=augment)
        for n in (11, 5, 2)
    ]
    for k in range(3):
        stack = data.batches(schedules)(k)
        for c, p in enumerate(schedules):
            step = min(k, len(p.sizes) - 1)  # a client that has finished repeats its last batch
            one, size = data.batches([p])(step), p.sizes[step]
            assert one.weights is None
            assert torch.equal(stack.inputs[c, :size], one.inputs[0])
            assert torch.equal(stack.targets[c, :size], one.targets[0])


def test_images_are_channels_last_in_memory():
    batch: Minibatch = on_cpu(images()).batches([draw(np.arange(10))])(0)
    assert batch.inputs.shape == (1, 4, 3, 8, 6)
    assert batch.inputs[0].is_contiguous(memory_format=torch.channels_last)


def test_features_stay_vectors():
    batch = on_cpu(features()).batches([draw(np.arange(10), client=c) for c in range(2)])(0)
    assert batch.inputs.shape == (2, 4, 9)
