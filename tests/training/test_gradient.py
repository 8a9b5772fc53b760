"""The oracles against autograd on the plain module."""

from functools import partial

import numpy as np
import pytest
import torch
from conftest import rarely
from torch import Tensor, nn
from torch.nn import functional as F

from rayfl.algorithms import ALGORITHMS
from rayfl.algorithms.base import ExperimentInfo, Loss, adaptive_sam, sam, shifted
from rayfl.models.lenet import LeNet5
from rayfl.models.mlp import MLP
from rayfl.models.resnet import ResNet18
from rayfl.models.transformer import ViTTiny
from rayfl.training.batches import Minibatch
from rayfl.training.conv_crop import cropped, find_crops
from rayfl.training.flat import Layout, views
from rayfl.training.function import Function, Shortcuts
from rayfl.training.gradients import BatchedMLP, PerClientGradient, VmapGradient, mlp_layers
from rayfl.training.local import SGD, LocalStep, Training

CLASSES = 5


def no_bias() -> nn.Module:
    return nn.Sequential(
        nn.Flatten(), nn.Linear(12, 9, bias=False), nn.ReLU(), nn.Linear(9, CLASSES, bias=False)
    )


MLPS = {
    "logistic": lambda: MLP(hidden=()).build((12,), CLASSES),
    "64": lambda: MLP(hidden=(64,)).build((12,), CLASSES),
    "200-200": lambda: MLP(hidden=(200, 200)).build((12,), CLASSES),
    "no bias": no_bias,
    "images": lambda: MLP(hidden=(64,)).build((3, 4, 4), CLASSES),
}
SIZES = {"full": [6, 6, 6], "ragged": [6, 2, 5]}


def autograd(model: nn.Module, layout: Layout, w: Tensor, inputs: Tensor, targets: Tensor):
    """Gradient `[P]` and loss of the plain module at w."""
    layout.load(model, w, layout.flatten(model)[1])
    model.zero_grad()
    loss = F.cross_entropy(model(inputs), targets)
    loss.backward()
    gradient = torch.zeros_like(w)
    parameters = dict(model.named_parameters())
    for name, view in views(layout.parameters, gradient).items():
        view.copy_(parameters[name].grad)
    return gradient, loss.detach()


def stack_of(sizes: list[int], sample_shape: tuple[int, ...], dtype: torch.dtype) -> Minibatch:
    """A stack of minibatches of these sizes; its padding is not 0, as real padding is not."""
    C, B = len(sizes), max(sizes)
    real = torch.arange(B) < torch.tensor(sizes).unsqueeze(1)
    weights = real.to(dtype) / torch.tensor(sizes).unsqueeze(1)
    return Minibatch(
        inputs=torch.randn(C, B, *sample_shape, dtype=dtype),
        targets=torch.randint(CLASSES, (C, B)),
        weights=None if min(sizes) == B else weights,
    )


def alone(batch: Minibatch, client: int, size: int) -> Minibatch:
    """One client's minibatch without padding."""
    one = slice(client, client + 1)
    return Minibatch(batch.inputs[one, :size], batch.targets[one, :size], None)


@pytest.mark.parametrize("clients", [1, 3])
@pytest.mark.parametrize("kind", SIZES)
@pytest.mark.parametrize("name", MLPS)
def test_all_oracles_equal_autograd_on_mlp_layerss(name, kind, clients):
    torch.manual_seed(0)
    model = MLPS[name]().double()
    layout = Layout(model)
    sizes = SIZES[kind][-clients:]
    batch = stack_of(sizes, (3, 4, 4) if name == "images" else (12,), torch.float64)
    x = 0.3 * torch.randn(clients, layout.size, dtype=torch.float64)
    gradients, losses = BatchedMLP(Function(model, layout))(x, batch)
    others, their_losses = VmapGradient(Function(model, layout))(x, batch)
    torch.testing.assert_close(others, gradients, rtol=1e-10, atol=1e-13)
    torch.testing.assert_close(their_losses, losses, rtol=1e-10, atol=1e-13)
    for client, size in enumerate(sizes):
        one, w = alone(batch, client, size), x[client]
        expected, loss = autograd(model, layout, w, one.inputs[0], one.targets[0])
        torch.testing.assert_close(gradients[client], expected, rtol=1e-10, atol=1e-13)
        torch.testing.assert_close(losses[client], loss, rtol=1e-10, atol=1e-13)
        mine, my_loss = PerClientGradient(Function(model, layout))(w.unsqueeze(0), one)
        torch.testing.assert_close(mine, expected.unsqueeze(0), rtol=1e-10, atol=1e-13)
        torch.testing.assert_close(my_loss, loss.view(1), rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("name", MLPS)
def test_dense_stack_changes_neither_parameters_nor_minibatch(name):
    torch.manual_seed(0)
    model = MLPS[name]()
    layout = Layout(model)
    batch = stack_of([4, 3], (3, 4, 4) if name == "images" else (12,), torch.float32)
    x = torch.randn(2, layout.size)
    given = [x, *batch]
    before = [tensor.clone() for tensor in given]
    BatchedMLP(Function(model, layout))(x, batch)
    assert all(map(torch.equal, given, before))


@pytest.mark.parametrize(
    ("spec", "dtype", "tolerance"),
    [
        (LeNet5(), torch.float64, 1e-10),
        (LeNet5(), torch.float32, 1e-4),
        pytest.param(ResNet18(), torch.float64, 1e-10, marks=pytest.mark.slow),
        # Channels-last kernels add in another order, through 18 layers.
        pytest.param(ResNet18(), torch.float32, 1e-3, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_per_client_equals_backward_of_the_module(spec, dtype, tolerance):
    """The plain module in its default memory format; the oracle's as the engine has it."""
    torch.manual_seed(0)
    plain = spec.build((3, 16, 16), CLASSES).to(dtype)
    model = spec.build((3, 16, 16), CLASSES).to(dtype, memory_format=torch.channels_last)
    layout = Layout(plain)
    w = layout.flatten(plain)[0].to(dtype)
    batch = stack_of([3], (3, 16, 16), dtype)
    expected, loss = autograd(plain, layout, w, batch.inputs[0], batch.targets[0])
    inputs = batch.inputs[0].contiguous(memory_format=torch.channels_last).unsqueeze(0)
    gradient, losses = PerClientGradient(Function(model, layout))(
        w.unsqueeze(0), batch._replace(inputs=inputs)
    )
    assert (gradient[0] - expected).norm() < tolerance * expected.norm()
    assert losses.item() == pytest.approx(loss.item(), rel=tolerance)


@pytest.mark.parametrize(
    "spec", [LeNet5(), *rarely([ResNet18(), ViTTiny(image_size=16)])], ids=type
)
def test_a_stack_of_modules_equals_its_clients_one_at_a_time(spec):
    """Unequal minibatches; on 16x16 images most taps of ResNet-18's last stages are dead."""
    torch.manual_seed(0)
    shape = (3, 16, 16)
    model = spec.build(shape, CLASSES).double()
    layout, sizes = Layout(model), [2, 3]
    names = [slot.name for slot in layout.parameters]
    crops = find_crops(model, torch.zeros(1, *shape, dtype=torch.float64), names)
    assert bool(crops) == isinstance(spec, ResNet18)
    smaller = Function(cropped(model, crops), layout, Shortcuts(crops=crops))
    batch = stack_of(sizes, shape, torch.float64)
    w, _ = layout.flatten(model)
    x = w + 0.01 * torch.randn(2, layout.size, dtype=torch.float64)
    gradients, losses = VmapGradient(smaller)(x, batch)
    for client, size in enumerate(sizes):
        expected, loss = PerClientGradient(Function(model, layout))(
            x[client, None], alone(batch, client, size)
        )
        torch.testing.assert_close(gradients[client, None], expected, rtol=1e-8, atol=1e-11)
        torch.testing.assert_close(losses[client, None], loss, rtol=1e-10, atol=1e-13)


def test_per_client_leaves_the_model_and_the_parameters_alone():
    torch.manual_seed(0)
    model = LeNet5().build((3, 16, 16), CLASSES)
    layout, batch = Layout(model), stack_of([2], (3, 16, 16), torch.float32)
    x = torch.randn(1, layout.size)
    kept, state = x.clone(), {name: v.clone() for name, v in model.state_dict().items()}
    PerClientGradient(Function(model, layout))(x, batch)
    assert torch.equal(x, kept)
    assert not x.requires_grad
    assert all(torch.equal(v, state[name]) for name, v in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


class Unused(nn.Module):
    """A layer that no output depends on, a frozen one, and a weight that serves twice."""

    def __init__(self):
        super().__init__()
        self.unused, self.frozen = nn.Linear(4, 4), nn.Linear(4, 4).requires_grad_(False)
        self.shared, self.head = nn.Linear(4, 4), nn.Linear(4, CLASSES)

    def forward(self, x):
        return self.head(self.shared(self.shared(self.frozen(x)).relu()))


def test_per_client_of_a_module_with_unused_frozen_and_shared_layers():
    torch.manual_seed(0)
    model = Unused()
    layout, batch = Layout(model), stack_of([3], (4,), torch.float32)
    w, _ = layout.flatten(model)
    gradient, _ = PerClientGradient(Function(model, layout))(w.unsqueeze(0), batch)
    model.unused.zero_grad(set_to_none=False)
    F.cross_entropy(model(batch.inputs[0]), batch.targets[0]).backward()
    grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert "frozen.weight" not in {slot.name for slot in layout.parameters}
    for name, view in views(layout.parameters, gradient[0]).items():
        torch.testing.assert_close(view, grads.get(name, torch.zeros_like(view)))


@pytest.mark.parametrize("kind", SIZES)
@pytest.mark.parametrize("name", MLPS)
def test_all_oracles_add_a_penalty_on_outputs_to_the_loss(name, kind):
    """Distillation from other parameters, and something that the samples' numbers weigh."""
    torch.manual_seed(0)
    model = MLPS[name]().double()
    layout, sizes = Layout(model), SIZES[kind]
    batch = stack_of(sizes, (3, 4, 4) if name == "images" else (12,), torch.float64)
    x = 0.3 * torch.randn(3, layout.size, dtype=torch.float64)
    others = 0.3 * torch.randn(3, layout.size, dtype=torch.float64)

    def loss(y):
        def penalty(outputs, batch):
            assert batch.targets.shape == outputs.shape[:-1]
            away = (outputs - batch.forward(y)).square().sum(-1)
            return 0.7 * away + outputs.exp().mean(-1)

        return Loss(penalty)

    dense = BatchedMLP(Function(model, layout))
    gradients, losses = dense(x, batch, loss(others))
    same, their_losses = VmapGradient(Function(model, layout))(x, batch, loss(others))
    torch.testing.assert_close(same, gradients, rtol=1e-10, atol=1e-13)
    torch.testing.assert_close(their_losses, losses, rtol=1e-10, atol=1e-13)
    plain_gradients, plain_losses = dense(x, batch)
    assert torch.equal(losses, plain_losses)
    assert (gradients - plain_gradients).norm() > 0.1 * plain_gradients.norm()
    for client, size in enumerate(sizes):
        one, other = alone(batch, client, size), others[client]
        layout.load(model, other, torch.zeros(0))
        teacher = model(one.inputs[0]).detach()
        layout.load(model, x[client], torch.zeros(0))
        model.zero_grad()
        outputs = model(one.inputs[0])
        added = 0.7 * ((outputs - teacher) ** 2).sum(1) + outputs.exp().mean(1)
        (F.cross_entropy(outputs, one.targets[0]) + added.mean()).backward()
        expected = torch.zeros(layout.size, dtype=torch.float64)
        parameters = dict(model.named_parameters())
        for slot, view in views(layout.parameters, expected).items():
            view.copy_(parameters[slot].grad)
        torch.testing.assert_close(gradients[client], expected, rtol=1e-10, atol=1e-13)
        mine, my_loss = PerClientGradient(Function(model, layout))(
            x[client, None], one, loss(other[None])
        )
        torch.testing.assert_close(mine[0], expected, rtol=1e-10, atol=1e-13)
        torch.testing.assert_close(my_loss[0], losses[client], rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize(
    "perturb", [partial(sam, rho=0.2), partial(adaptive_sam, rho=0.2, eta=0.1)]
)
def test_sam_passes_a_penalty_on(perturb):
    """To both of its passes: the ascent and the descent are those of the whole loss."""
    torch.manual_seed(0)
    model = MLPS["64"]().double()
    layout, batch = Layout(model), stack_of([6], (12,), torch.float64)
    x = 0.3 * torch.randn(1, layout.size, dtype=torch.float64)
    oracle, calls = BatchedMLP(Function(model, layout)), []

    def penalty(outputs, batch):
        return outputs.square().sum(-1)

    def grad(y, penalty=None):
        calls.append(penalty)
        return oracle(y, batch, Loss(penalty))[0]

    with_penalty = perturb(grad)(x, penalty)
    assert calls == [penalty, penalty]
    whole = perturb(lambda y: oracle(y, batch, Loss(penalty))[0])(x)
    assert torch.equal(with_penalty, whole)


@pytest.mark.parametrize("perturb", [partial(sam, rho=0.2), partial(adaptive_sam, rho=0.2, eta=1)])
def test_perturbed_oracles_pass_options_on(perturb):
    asked = []

    def grad(y, **options):
        asked.append(options)
        return y

    perturb(grad)(torch.ones(1, 3), cross_entropy=False, samples=2)
    shifted(grad, torch.ones(1, 3))(torch.ones(1, 3), samples=2)
    both = {"cross_entropy": False, "samples": 2}
    assert asked == [both, both, {"samples": 2}]


@pytest.mark.parametrize("kind", SIZES)
@pytest.mark.parametrize("name", MLPS)
def test_all_oracles_take_the_gradient_of_the_penalty_alone(name, kind):
    """Cross-entropy as a method's own loss gives the gradient that the oracles know by themselves."""
    torch.manual_seed(0)
    model = MLPS[name]().double()
    layout, sizes = Layout(model), SIZES[kind]
    batch = stack_of(sizes, (3, 4, 4) if name == "images" else (12,), torch.float64)
    x = 0.3 * torch.randn(3, layout.size, dtype=torch.float64)

    def own(outputs, batch):
        return F.cross_entropy(outputs.movedim(-1, 1), batch.targets, reduction="none")

    for oracle in (BatchedMLP(Function(model, layout)), VmapGradient(Function(model, layout))):
        expected, losses = oracle(x, batch)
        alone_, their_losses = oracle(x, batch, Loss(own, cross_entropy=False))
        twice, _ = oracle(x, batch, Loss(own))
        torch.testing.assert_close(alone_, expected, rtol=1e-10, atol=1e-13)
        torch.testing.assert_close(twice, 2 * expected, rtol=1e-10, atol=1e-13)
        assert torch.equal(losses, their_losses)
    for client, size in enumerate(sizes):
        one = alone(batch, client, size)
        oracle = PerClientGradient(Function(model, layout))
        mine, _ = oracle(x[client, None], one, Loss(own, cross_entropy=False))
        torch.testing.assert_close(mine[0], expected[client], rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("kind", SIZES)
def test_all_oracles_take_the_gradient_of_a_minibatchs_first_samples(kind):
    torch.manual_seed(0)
    model = MLPS["64"]().double()
    layout, sizes = Layout(model), SIZES[kind]
    batch = stack_of(sizes, (12,), torch.float64)
    x = 0.3 * torch.randn(3, layout.size, dtype=torch.float64)
    few = min(sizes) + 1  # more than the smallest has
    stacked = [
        oracle(Function(model, layout))(x, batch, Loss(samples=few))
        for oracle in (BatchedMLP, VmapGradient)
    ]
    for client, size in enumerate(sizes):
        own = PerClientGradient(Function(model, layout))
        expected, loss = own(x[client, None], alone(batch, client, min(few, size)))
        part = own(x[client, None], alone(batch, client, size), Loss(samples=few))
        for gradients, losses in (*stacked, (part[0].expand(3, -1), part[1].expand(3))):
            torch.testing.assert_close(gradients[client], expected[0], rtol=1e-10, atol=1e-13)
            torch.testing.assert_close(losses[client], loss[0], rtol=1e-10, atol=1e-13)


def softmax_regression(w, inputs):
    weight, bias = w[:60].reshape(CLASSES, 12), w[60:]
    return inputs @ weight.T + bias


def moon_by_hand(w, w_glob, w_prev, inputs, targets, mu, tau) -> np.ndarray:
    """Moon's gradient on softmax regression, sample by sample; see `numpy_reference.moon`."""
    gradient = np.zeros_like(w)
    for a, label in zip(inputs, targets, strict=True):
        z, z_glob, z_prev = (softmax_regression(v, a[None])[0] for v in (w, w_glob, w_prev))
        p = np.exp(z - z.max()) / np.exp(z - z.max()).sum()
        dz = p - np.eye(CLASSES)[label]
        length, near_length, far_length = map(np.linalg.norm, (z, z_glob, z_prev))
        near, far = z @ z_glob / (length * near_length), z @ z_prev / (length * far_length)
        share = 1 / (1 + np.exp((near - far) / tau))
        d_near = (z_glob / near_length - near * z / length) / length
        d_far = (z_prev / far_length - far * z / length) / length
        dz = dz + mu * share / tau * (d_far - d_near)
        gradient += np.concatenate([np.outer(dz, a).ravel(), dz]) / len(targets)
    return gradient


@pytest.mark.parametrize("oracle_type", [BatchedMLP, PerClientGradient])
def test_a_round_of_moon_equals_numpy_on_softmax_regression(oracle_type):
    """Three local steps with a clip and weight decay, in float64."""
    torch.manual_seed(0)
    model = MLPS["logistic"]().double()
    layout = Layout(model)
    batches = [stack_of([6], (12,), torch.float64) for _ in range(3)]
    oracle = oracle_type(Function(model, layout))
    start, w_prev = 0.3 * torch.randn(2, layout.size, dtype=torch.float64)
    moon = ALGORITHMS["moon"](mu=3.0, tau=0.4)
    memory = {"w_prev": w_prev[None], "seen": torch.ones(1, 1, dtype=torch.float64)}
    sgd = SGD(lr=0.2, weight_decay=0.1, clip_norm=1.0)
    info = ExperimentInfo((9,), 3, 1, None, tuple(layout.parameters))
    step = LocalStep(moon, oracle, sgd, info)
    trained = Training(step, batches.__getitem__, start, {}, memory, [3]).run()

    y = start.numpy()
    for batch in batches:
        inputs, targets = batch.inputs[0].numpy(), batch.targets[0].numpy()
        d = moon_by_hand(y, start.numpy(), w_prev.numpy(), inputs, targets, 3.0, 0.4)
        y = y - 0.2 * (d * min(1, 1.0 / (np.linalg.norm(d) + 1e-6)) + 0.1 * y)
    np.testing.assert_allclose(trained.memory["w_prev"][0].numpy(), y, rtol=1e-9, atol=1e-9)
    assert trained.backward_passes == 3


def batch_norm_net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, CLASSES))


@pytest.mark.parametrize("name", ["fedavg", "fedsam", "fednsam"])
def test_batch_statistics_move_once_a_local_step(name):
    """By the step's first pass: SAM's second, at the perturbed point, must leave them alone."""
    steps, lr, rho = 3, 0.1, 0.2
    batches = [stack_of([8], (4,), torch.float32) for _ in range(steps)]
    model = batch_norm_net()
    layout = Layout(model)
    w, buffers = layout.flatten(model)
    oracle = PerClientGradient(Function(model, layout))
    oracle.begin_client(buffers)
    algorithm = ALGORITHMS[name](**({} if name == "fedavg" else {"rho": rho}))
    server, memory = algorithm.init_server(w), algorithm.init_client(w)
    start, shared = algorithm.broadcast(w, server)
    stack = {n: v.unsqueeze(0) for n, v in memory.items()}
    sgd = SGD(lr=lr, weight_decay=0.0, clip_norm=None)
    info = ExperimentInfo((9,), 3, 1, None, tuple(layout.parameters))
    step = LocalStep(algorithm, oracle, sgd, info)
    trained = Training(step, batches.__getitem__, start, shared, stack, [steps]).run()

    passes = trained.backward_passes // steps
    assert passes == (1 if name == "fedavg" else 2)
    expected_w, expected_buffers = local_sgd(batches, lr, rho if passes == 2 else 0.0)
    torch.testing.assert_close(buffers, expected_buffers)
    torch.testing.assert_close(w + trained.uploads["delta"][0], expected_w)


def test_moons_other_models_leave_batch_statistics_alone():
    """With mu = 0 they change nothing, but are evaluated all the same."""
    ends = []
    for algorithm in (ALGORITHMS["fedavg"](), ALGORITHMS["moon"](mu=0.0)):
        torch.manual_seed(1)
        batches = [stack_of([8], (4,), torch.float32) for _ in range(3)]
        model = batch_norm_net()
        layout = Layout(model)
        w, buffers = layout.flatten(model)
        oracle = PerClientGradient(Function(model, layout))
        oracle.begin_client(buffers)
        memory = {n: (v + 1).unsqueeze(0) for n, v in algorithm.init_client(w).items()}
        sgd = SGD(lr=0.1, weight_decay=0.0, clip_norm=None)
        info = ExperimentInfo((9,), 3, 1, None, tuple(layout.parameters))
        step = LocalStep(algorithm, oracle, sgd, info)
        trained = Training(step, batches.__getitem__, w, {}, memory, [3]).run()
        counter = oracle.buffers["1.num_batches_tracked"].item()
        ends.append((trained.uploads["delta"], buffers, counter))
    (delta, buffers, counter), (other_delta, other_buffers, other_counter) = ends
    assert torch.equal(delta, other_delta)
    assert torch.equal(buffers, other_buffers)
    assert counter == other_counter == 3


def local_sgd(batches: list[Minibatch], lr: float, rho: float) -> tuple[Tensor, Tensor]:
    """SGD or SAM on the plain module, whose batch statistics are put back before SAM's second pass."""
    model = batch_norm_net()
    layout = Layout(model)
    w, _ = layout.flatten(model)
    for batch in batches:
        gradient, _ = autograd(model, layout, w, batch.inputs[0], batch.targets[0])
        buffers = layout.flatten(model)[1]
        if rho:
            ascent = w + rho * gradient / gradient.norm()
            gradient, _ = autograd(model, layout, ascent, batch.inputs[0], batch.targets[0])
        layout.load(model, w := w - lr * gradient, buffers)
    return layout.flatten(model)


def test_averaged_batch_statistics_do_not_depend_on_whom_the_model_trained_before():
    """BatchNorm with momentum None averages over all batches so far: the counter decides the weight."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.BatchNorm1d(4, momentum=None), nn.Linear(4, CLASSES))
    layout, batch = Layout(model), stack_of([8], (4,), torch.float32)
    oracle, (w, fresh) = PerClientGradient(Function(model, layout)), layout.flatten(model)
    first, second = fresh.clone(), fresh.clone()
    for buffers in (first, second):
        oracle.begin_client(buffers)
        oracle(w.unsqueeze(0), batch)
    assert torch.equal(first, second)


class Doubled(nn.Sequential):
    """A Sequential in name only."""

    def forward(self, x):
        return 2 * super().forward(x)


def tied() -> nn.Module:
    first, second = nn.Linear(4, 4), nn.Linear(4, 4)
    second.weight = first.weight
    return nn.Sequential(first, nn.ReLU(), second)


HOOKS = {
    "forward": lambda layer: layer.register_forward_hook(lambda m, x, out: 2 * out),
    "before": lambda layer: layer.register_forward_pre_hook(lambda m, x: 2 * x[0]),
    "backward": lambda layer: layer.register_full_backward_hook(lambda m, x, out: (2 * x[0],)),
    "before backward": lambda layer: layer.register_full_backward_pre_hook(lambda m, x: 2 * x[0]),
    "parameter": lambda layer: layer.weight.register_hook(lambda gradient: 2 * gradient),
}


def hooked(kind: str) -> nn.Module:
    layer = nn.Linear(4, 4)
    HOOKS[kind](layer)
    return nn.Sequential(layer)


def twice() -> nn.Module:
    layer = nn.Linear(4, 4)
    return nn.Sequential(layer, nn.ReLU(), layer)


def frozen() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 4).requires_grad_(False), nn.ReLU(), nn.Linear(4, 4))


@pytest.mark.parametrize(
    ("model", "layers"),
    [
        (nn.Sequential(nn.Linear(4, 4)), 1),
        (nn.Sequential(nn.Flatten(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4)), 2),
    ],
)
def test_chains_of_linear_layers_are_trained_as_a_stack(model, layers):
    assert len(mlp_layers(model)) == layers


@pytest.mark.parametrize(
    "model",
    [
        nn.Linear(4, 4),
        nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4)),
        nn.Sequential(nn.Linear(4, 4), nn.ReLU()),
        nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)),
        nn.Sequential(nn.Linear(4, 4), nn.Dropout(), nn.ReLU(), nn.Linear(4, 4)),
        nn.Sequential(nn.Flatten(2), nn.Linear(4, 4)),
        nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 4))),
        frozen(),
        twice(),
        tied(),
        nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Flatten(), nn.Linear(4, 4)),
        Doubled(nn.Linear(4, 4)),
        *(hooked(kind) for kind in HOOKS),
    ],
    ids=lambda model: type(model).__name__,
)
def test_anything_else_is_left_to_autograd(model):
    assert mlp_layers(model) is None
