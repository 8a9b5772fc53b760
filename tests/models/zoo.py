"""Models as people write them, on images `[n, 1, 8, 8]`: each as a factory for `model.name = zoo:NAME`."""

import copy
import random

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint


class Net(nn.Module):
    """Parts by name, and a forward pass as a function of the model and the images."""

    def __init__(self, forward, **parts):
        super().__init__()
        self._forward = forward
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x):
        return self._forward(self, x)


def head(features, num_classes):
    return nn.Linear(features, num_classes)


def flat(num_classes, *layers, features=16):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), *layers, nn.Linear(features, num_classes))


# What trains as in plain PyTorch.


def views_maps_as_rows(num_classes):
    """The commonest end of a small convnet; it needs maps that lie channels first."""

    def forward(self, x):
        x = F.max_pool2d(torch.relu(self.second(torch.relu(self.first(x)))), 2)
        return self.head(x.view(x.size(0), -1))

    convolutions = {"first": nn.Conv2d(1, 4, 3), "second": nn.Conv2d(4, 6, 3)}
    return Net(forward, head=head(24, num_classes), **convolutions)


def lstm(num_classes):
    return Net(
        lambda self, x: self.head(self.rnn(x[:, 0])[0][:, -1]),
        rnn=nn.LSTM(8, 12, batch_first=True),
        head=head(12, num_classes),
    )


def deep_gru(num_classes):
    return Net(
        lambda self, x: self.head(self.rnn(x[:, 0])[0].mean(1)),
        rnn=nn.GRU(8, 6, num_layers=2, bidirectional=True, batch_first=True),
        head=head(12, num_classes),
    )


def rnn_cell(num_classes):
    def forward(self, x):
        state = x.new_zeros(len(x), 10)
        for row in x[:, 0].unbind(1):
            state = self.cell(row, state)
        return self.head(state)

    return Net(forward, cell=nn.RNNCell(8, 10), head=head(10, num_classes))


def transformer(num_classes):
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    return Net(
        lambda self, x: self.head(self.encoder(x[:, 0]).mean(1)),
        encoder=nn.TransformerEncoder(layer, 2),
        head=head(8, num_classes),
    )


def attention(num_classes):
    return Net(
        lambda self, x: self.head(self.attention(x[:, 0], x[:, 0], x[:, 0])[0].flatten(1)),
        attention=nn.MultiheadAttention(8, 2, batch_first=True),
        head=head(64, num_classes),
    )


def batch_norm(num_classes):
    layers = nn.Conv2d(1, 4, 3, stride=2, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten()
    return nn.Sequential(*layers, nn.Linear(36, num_classes))


def averaging_batch_norm(num_classes):
    return flat(num_classes, nn.BatchNorm1d(16, momentum=None), nn.ReLU())


class FrozenStatistics(nn.Sequential):
    def train(self, mode=True):
        super().train(mode)
        for part in self.modules():
            if isinstance(part, nn.BatchNorm1d):
                part.eval()
        return self


def frozen_batch_norm(num_classes):
    return FrozenStatistics(*flat(num_classes, nn.BatchNorm1d(16), nn.ReLU()))


def layer_group_and_instance_norm(num_classes):
    layers = nn.Conv2d(1, 4, 3), nn.GroupNorm(2, 4), nn.ReLU(), nn.InstanceNorm2d(4, affine=True)
    return nn.Sequential(
        *layers, nn.Flatten(), nn.LayerNorm(144), nn.PReLU(), nn.Linear(144, num_classes)
    )


def weight_norm(num_classes):
    layer = parametrizations.weight_norm(nn.Conv2d(1, 4, 3))
    return nn.Sequential(layer, nn.ReLU(), nn.Flatten(), nn.Linear(144, num_classes))


def old_weight_norm(num_classes):
    layer = nn.utils.weight_norm(nn.Conv2d(1, 4, 3))
    return nn.Sequential(layer, nn.ReLU(), nn.Flatten(), nn.Linear(144, num_classes))


def spectral_norm(num_classes):
    return flat(num_classes, nn.Tanh(), parametrizations.spectral_norm(nn.Linear(16, 16)))


def old_spectral_norm(num_classes):
    return flat(num_classes, nn.Tanh(), nn.utils.spectral_norm(nn.Linear(16, 16)))


def orthogonal(num_classes):
    return flat(num_classes, nn.Tanh(), parametrizations.orthogonal(nn.Linear(16, 16)), nn.Tanh())


def tied(num_classes):
    first, second = nn.Linear(16, 16), nn.Linear(16, 16)
    second.weight = first.weight
    return flat(num_classes, nn.Tanh(), first, nn.Tanh(), second, nn.ReLU())


def two_names(num_classes):
    layer = nn.Linear(16, 16)
    return Net(
        lambda self, x: self.head(torch.relu(self.again(torch.relu(self.layer(self.first(x)))))),
        first=nn.Sequential(nn.Flatten(), nn.Linear(64, 16)),
        layer=layer,
        again=layer,
        head=head(16, num_classes),
    )


def shared_kernel(num_classes):
    """One kernel on two scales, once by its module and once by the function."""

    def forward(self, x):
        fine = torch.relu(F.conv2d(x, self.conv.weight, self.conv.bias, padding=1))
        coarse = torch.relu(self.conv(F.adaptive_avg_pool2d(x, 1)))
        fine = F.adaptive_max_pool2d(fine, 4).flatten(1)
        return self.head(torch.cat([fine, coarse.flatten(1)], 1))

    return Net(forward, conv=nn.Conv2d(1, 16, 3, padding=1), head=head(16 * 16 + 16, num_classes))


def other_maps_in_evaluation(num_classes):
    """Its convolution meets 4x4 maps in training, 1x1 in evaluation."""

    def forward(self, x):
        x = F.adaptive_avg_pool2d(x, 4 if self.training else 1)
        return self.head(self.conv(x).mean((2, 3)))

    return Net(forward, conv=nn.Conv2d(1, 5, 3, padding=1), head=head(5, num_classes))


def maps_of_one_pixel(num_classes):
    """Kernels that can be cropped, for real."""
    layers = nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1)
    more = nn.Conv2d(4, 8, 3, padding=1), nn.ReLU(), nn.Flatten()
    return nn.Sequential(*layers, *more, nn.Linear(8, num_classes))


def named_input(num_classes):
    """A convolution that is given its maps by name."""

    def forward(self, x):
        return self.head(self.conv(input=x.mean((2, 3), keepdim=True)).flatten(1))

    return Net(forward, conv=nn.Conv2d(1, 6, 3, padding=1), head=head(6, num_classes))


def changes_its_input(num_classes):
    model = flat(num_classes, nn.ReLU())
    return Net(lambda self, x: self.model(x.mul_(2).sub_(1)), model=model)


def in_place_layers(num_classes):
    return flat(num_classes, nn.Hardtanh(-0.9, 0.9, inplace=True))


def stop(module, into, out):
    return (into[0] * 0,)


def backward_hook(num_classes):
    """On the head: the layers below stay as they are."""
    model = flat(num_classes, nn.ReLU())
    model[3].register_full_backward_hook(stop)
    return model


def parameter_hook(num_classes):
    """Masks the gradient of a weight, as for pruning."""
    model = flat(num_classes, nn.ReLU())
    mask = torch.arange(64) % 2
    model[1].weight.register_hook(lambda gradient: gradient * mask)
    return model


def hook_on_a_cropped_kernel(num_classes):
    """A mask of the whole kernel, of which only the centre sees the map."""
    model = maps_of_one_pixel(num_classes)
    mask = torch.linspace(0, 1, 8 * 4 * 9).view(8, 4, 3, 3)
    model[3].weight.register_hook(lambda gradient: gradient * mask)
    return model


def hook_by_norm(num_classes):
    """Fine for one client; in a stack it would see all clients' gradients as one."""
    model = flat(num_classes, nn.ReLU())
    model[1].weight.register_hook(lambda gradient: gradient / gradient.norm())
    return model


def forward_hooks(num_classes):
    model = flat(num_classes, nn.ReLU())
    model[1].register_forward_hook(lambda module, x, out: 2 * out)
    model[3].register_forward_pre_hook(lambda module, x: (x[0] + 1,))
    return model


def hears_itself(num_classes):
    """A hook that leaves what it hears with the model, which computes with it."""

    def forward(self, x):
        self.body(x)
        return self.head(torch.relu(self.heard))

    model = Net(forward, body=flat(12), head=head(12, num_classes), heard=None)

    def listen(module, inputs, output):
        model.heard = output

    model.body.register_forward_hook(listen)
    return model


def lazy(num_classes):
    convolution = nn.LazyConv2d(4, 3), nn.LazyBatchNorm2d(), nn.ReLU(), nn.Flatten()
    return nn.Sequential(*convolution, nn.LazyLinear(num_classes))


def no_dimensions(num_classes):
    """A temperature that is trained, of no dimensions."""
    scale = nn.Parameter(torch.tensor(1.5))
    model = flat(num_classes, nn.ReLU())
    return Net(lambda self, x: self.model(x) * self.scale, model=model, scale=scale)


def partly_frozen(num_classes):
    model = flat(num_classes, nn.ReLU())
    model[1].requires_grad_(False)
    return model


def dropout(num_classes):
    return flat(num_classes, nn.ReLU(), nn.Dropout(0.5))


def draws_in_evaluation(num_classes):
    """Monte Carlo dropout."""
    model = flat(num_classes, nn.ReLU())
    return Net(lambda self, x: F.dropout(self.model(x), 0.5), model=model)


def dropout_of_maps(num_classes):
    layers = nn.Conv2d(1, 4, 3), nn.Dropout2d(0.3), nn.ReLU(), nn.Dropout(0.3), nn.Flatten()
    return nn.Sequential(*layers, nn.Linear(144, num_classes))


def flatten_in_the_middle(num_classes):
    """Linear layers over rows first: no chain on whole images."""
    layers = nn.Linear(8, 4), nn.ReLU(), nn.Flatten(), nn.Linear(32, num_classes)
    return nn.Sequential(*layers)


def lists_of_parameters(num_classes):
    def forward(self, x):
        x = x.flatten(1)
        for weight in self.weights:
            x = torch.tanh(x @ weight)
        return x @ self.ends["weight"] + self.ends["bias"]

    weights = nn.ParameterList([0.1 * torch.randn(64, 16), 0.3 * torch.randn(16, 16)])
    ends = {"weight": 0.3 * torch.randn(16, num_classes), "bias": torch.zeros(num_classes)}
    return Net(forward, weights=weights, ends=nn.ParameterDict(ends))


def recomputes(num_classes):
    """Gradient checkpointing."""
    model = flat(num_classes, nn.ReLU())
    return Net(lambda self, x: checkpoint(self.model, x, use_reentrant=False), model=model)


class StandardisedConv2d(nn.Conv2d):
    def forward(self, x):
        rows = self.weight.view(self.weight.size(0), -1)
        rows = (rows - rows.mean(1, keepdim=True)) / (rows.std(1, keepdim=True) + 1e-5)
        return F.conv2d(x, rows.view_as(self.weight), self.bias, self.stride, self.padding)


def standardised_weights(num_classes):
    layers = StandardisedConv2d(1, 4, 3), nn.ReLU(), StandardisedConv2d(4, 4, 3), nn.Flatten()
    return nn.Sequential(*layers, nn.Linear(64, num_classes))


def other_convolutions(num_classes):
    def forward(self, x):
        x = self.depthwise(torch.relu(self.up(x)))
        x = self.line(x.flatten(2)[:, :, :64])
        return self.head(self.volume(x[:, :, :30].reshape(len(x), 1, 2, 2, 15)).flatten(1))

    return Net(
        forward,
        up=nn.ConvTranspose2d(1, 4, 2, stride=2),
        depthwise=nn.Conv2d(4, 4, 3, groups=4, dilation=2),
        line=nn.Conv1d(4, 2, 3, stride=2),
        volume=nn.Conv3d(1, 2, (2, 2, 3)),
        head=head(26, num_classes),
    )


def prompt_of_four_dimensions(num_classes):
    """A trained image that is added, and looked at as rows."""
    prompt = nn.Parameter(0.1 * torch.randn(1, 2, 4, 8))
    model = flat(num_classes, nn.ReLU())
    return Net(
        lambda self, x: self.model(x + self.prompt.view(1, 8, 8)), model=model, prompt=prompt
    )


def embeds_pixels(num_classes):
    """An embedding that renormalises its rows in the forward pass."""

    def forward(self, x):
        return self.head(self.embedding((x.flatten(1) * 4).long().clamp(0, 15)).mean(1))

    embedding = nn.Embedding(16, 12, max_norm=1.0, padding_idx=0)
    return Net(forward, embedding=embedding, head=head(12, num_classes))


def spectrum(num_classes):
    """Complex numbers on the way."""
    return Net(
        lambda self, x: self.head(torch.fft.rfft2(x[:, 0]).abs().flatten(1)),
        head=head(40, num_classes),
    )


class Registered(Net):
    def __init__(self, forward, **parts):
        super().__init__(forward, **parts)
        self.register_buffer("positions", torch.linspace(-1, 1, 64), persistent=False)
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self.register_buffer("scale", torch.zeros(()))


def buffers(num_classes):
    """A constant that is no part of the state dict, and another one."""

    def forward(self, x):
        return self.model(x.flatten(1) + self.positions + self.steps)

    return Registered(forward, model=flat(num_classes, nn.ReLU()))


def first_batch_scales(num_classes):
    """Takes a buffer from the first samples that it sees: they must be real ones."""

    def forward(self, x):
        with torch.no_grad():
            self.scale.copy_(torch.where(self.scale == 0, x.std(), self.scale))
        return self.model(x / self.scale)

    return Registered(forward, model=flat(num_classes, nn.ReLU()))


class Silent(Net):
    def train(self, mode=True):
        """Returns nothing, as many forget to."""
        super().train(mode)


def train_returns_nothing(num_classes):
    return Silent(lambda self, x: self.model(x), model=flat(num_classes, nn.ReLU()))


def sparse_gradients(num_classes):
    model = embeds_pixels(num_classes)
    model.embedding = nn.Embedding(16, 12, sparse=True)
    return model


def logits_in_bfloat16(num_classes):
    return Net(lambda self, x: self.model(x).bfloat16(), model=flat(num_classes, nn.ReLU()))


def clamps_its_weight(num_classes):
    def forward(self, x):
        with torch.no_grad():
            self.model[1].weight.clamp_(-0.1, 0.1)
        return self.model(x)

    return Net(forward, model=flat(num_classes, nn.ReLU()))


def computes_in_float32(num_classes):
    """A constant in float32 keeps the whole model from float64."""
    kernel = torch.eye(64)
    model = flat(num_classes, nn.ReLU())
    return Net(lambda self, x: self.model(x.flatten(1) @ self.kernel), model=model, kernel=kernel)


TRAINABLE = [
    *(views_maps_as_rows, lstm, deep_gru, rnn_cell, transformer, attention, batch_norm),
    *(averaging_batch_norm, frozen_batch_norm, layer_group_and_instance_norm, weight_norm),
    *(old_weight_norm, spectral_norm, old_spectral_norm, orthogonal, tied, two_names),
    *(shared_kernel, other_maps_in_evaluation, maps_of_one_pixel, named_input, changes_its_input),
    *(in_place_layers, backward_hook, parameter_hook, hook_on_a_cropped_kernel, hook_by_norm),
    forward_hooks,
    *(hears_itself, lazy, no_dimensions, partly_frozen, dropout, dropout_of_maps),
    *(flatten_in_the_middle, lists_of_parameters, recomputes, standardised_weights),
    *(other_convolutions, prompt_of_four_dimensions, embeds_pixels, spectrum, buffers),
    *(computes_in_float32, first_batch_scales, train_returns_nothing, clamps_its_weight),
]


# What is refused in one line.


def counts(num_classes):
    def forward(self, x):
        self.steps += self.training
        return self.model(x)

    return Registered(forward, model=flat(num_classes))


def follows_itself(num_classes):
    """A teacher that is the moving average of the student, and evaluates."""

    def forward(self, x):
        if not self.training:
            return self.teacher(x)
        with torch.no_grad():
            for mine, other in zip(self.teacher.parameters(), self.model.parameters(), strict=True):
                mine.lerp_(other, 0.1)
        return self.model(x)

    model = flat(num_classes, nn.ReLU())
    return Net(forward, model=model, teacher=copy.deepcopy(model).requires_grad_(False))


def assigns_its_weight(num_classes):
    """The usual way to bound the norm of rows; the bound holds where the model starts."""

    def forward(self, x):
        weight = self.model[1].weight
        weight.data = torch.renorm(weight.data, 2, 0, self.bound)
        return self.model(x)

    model = flat(num_classes, nn.ReLU())
    bound = 1.001 * float(model[1].weight.norm(dim=1).max())
    return Net(forward, model=model, bound=bound)


def keeps_what_it_computed(num_classes):
    """A matrix that is computed from weights and kept until the next training pass."""

    def forward(self, x):
        if self.training or self.kept is None:
            self.kept = self.second.weight @ self.first.weight
        kept, self.kept = self.kept, None if self.training else self.kept
        return x.flatten(1) @ kept.T

    return Net(forward, first=nn.Linear(64, 16), second=nn.Linear(16, num_classes), kept=None)


class Merging(nn.Module):
    """A low-rank adapter, zero at the start, that is merged into the weight in evaluation mode."""

    def __init__(self, num_classes):
        super().__init__()
        self.linear = nn.Linear(64, num_classes)
        self.a, self.b = nn.Parameter(torch.randn(2, 64)), nn.Parameter(torch.zeros(num_classes, 2))
        self.merged = False

    def train(self, mode=True):
        super().train(mode)
        if self.merged == mode:
            self.linear.weight.data += (1 - 2 * mode) * (self.b @ self.a).data
            self.merged = not mode
        return self

    def forward(self, x):
        out = self.linear(x.flatten(1))
        return out if self.merged else out + x.flatten(1) @ self.a.T @ self.b.T


def looks_at_its_weight(num_classes):
    """By another name for the same memory."""
    model = flat(num_classes, nn.ReLU())
    net = Net(lambda self, x: self.model(x) * self.seen.mean().exp(), model=model)
    net.seen = model[1].weight.data
    return net


def two_buffers_in_one_memory(num_classes):
    model = flat(num_classes)
    model.register_buffer("statistics", torch.zeros(2, 4))
    model.register_buffer("mean", model.statistics[0])
    return model


def drops_layers(num_classes):
    def forward(self, x):
        return self.model(x) if random.random() < 0.9 else 2 * self.model(x)

    return Net(forward, model=flat(num_classes))


def freezes_in_evaluation(num_classes):
    def forward(self, x):
        self.model[1].requires_grad_(self.training)
        return self.model(x)

    return Net(forward, model=flat(num_classes))


def dictionary(num_classes):
    return Net(lambda self, x: {"logits": self.model(x)}, model=flat(num_classes))


def auxiliary_logits(num_classes):
    def forward(self, x):
        return (self.model(x), self.other(x)) if self.training else self.model(x)

    return Net(forward, model=flat(num_classes), other=flat(num_classes))


def fails_in_training(num_classes):
    def forward(self, x):
        if self.training:
            raise ValueError("not today")
        return self.model(x)

    return Net(forward, model=flat(num_classes))


def float64_layer(num_classes):
    return Net(lambda self, x: self.model(x.double()).float(), model=flat(num_classes).double())


def float64_buffer(num_classes):
    model = flat(num_classes)
    model.register_buffer("ones", torch.ones(3, dtype=torch.float64))
    return model


def bfloat16_model(num_classes):
    return Net(lambda self, x: self.model(x.bfloat16()).float(), model=flat(num_classes).bfloat16())


def all_frozen(num_classes):
    return flat(num_classes).requires_grad_(False)


def keeps_weights_in_a_list(num_classes):
    model = flat(num_classes)
    model.forward = None
    weights = [layer.weight for layer in model if isinstance(layer, nn.Linear)]

    def forward(self, x):
        return x.flatten(1) @ weights[0].T @ weights[1].T

    return Net(forward, model=model)


def draws_from_numpy(num_classes):
    return Net(
        lambda self, x: self.model(x) * float(np.random.rand()),  # noqa: NPY002
        model=flat(num_classes),
    )


def counts_in_python(num_classes):
    def forward(self, x):
        self.calls += 1
        return self.model(x) * self.calls

    return Net(forward, model=flat(num_classes), calls=0)


def cannot_travel(num_classes):
    model = flat(num_classes)
    model.stream = (i for i in range(3))
    return model


def one_memory(num_classes):
    model = flat(num_classes, nn.Tanh(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 16))
    model[5].weight.data = model[3].weight.data
    return model


def waits_for_grad(num_classes):
    model = flat(num_classes)
    model[1].weight.register_post_accumulate_grad_hook(lambda p: None)
    return model


def squeezes(num_classes):
    return Net(lambda self, x: self.model(x).squeeze(), model=flat(num_classes))


def lazy_in_training(num_classes):
    extra = nn.LazyLinear(num_classes)

    def forward(self, x):
        return self.model(x) + (self.extra(x.flatten(1)) if self.training else 0)

    return Net(forward, model=flat(num_classes), extra=extra)


REFUSED = {
    dictionary: r"must give outputs of shape \(2, 10\), it gives dict",
    auxiliary_logits: r"in training mode 3 samples must give outputs .*gives tuple",
    fails_in_training: "fails in training mode .*not today",
    float64_layer: "is float64; .* must be float32",
    float64_buffer: "'ones' is float64; .* must be float32",
    bfloat16_model: "is bfloat16; .* must be float32",
    all_frozen: "has no trainable parameters",
    keeps_weights_in_a_list: "is something else as a function of its parameters",
    draws_from_numpy: "draws from the generators of Python or NumPy",
    drops_layers: "draws from the generators of Python or NumPy",
    counts: "changes 'steps' in training",
    follows_itself: "changes 'teacher.1.weight' in training",
    assigns_its_weight: "is something else as a function of its parameters",
    keeps_what_it_computed: "is something else as a function of its parameters",
    Merging: "something else",
    looks_at_its_weight: "'model.1.weight' and 'seen' are two tensors in one memory",
    two_buffers_in_one_memory: "'mean' and 'statistics' are two tensors in one memory",
    freezes_in_evaluation: "changes in a forward pass which parameters are trained",
    counts_in_python: "something else when the same minibatch comes again",
    cannot_travel: "cannot be sent to other processes",
    one_memory: "'3.weight' and '5.weight' are two tensors in one memory",
    waits_for_grad: "'1.weight' has a hook that waits for its .grad",
    squeezes: r"cannot take a batch of one sample in training mode",
    lazy_in_training: "'extra.weight' has no shape",
}
