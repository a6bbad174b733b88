"""The paper's networks: sizes, initialisation, and a structure that an engine can recognise."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lightning_maml import TaskBatch, maml, meta_loss
from lightning_maml.networks import MLP, Conv4, LowRank, ResNet12, StepBatchNorm2d, step_batch_norm
from lightning_maml.networks.layers import make_norm
from problems import meta_gradient, relative_error


def parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def test_mlp_is_the_papers_sinusoid_network():
    network = MLP(1, [40, 40], 1)
    assert [type(layer) for layer in network] == [nn.Linear, nn.ReLU, nn.Linear, nn.ReLU, nn.Linear]
    assert [tuple(layer.weight.shape) for layer in network if isinstance(layer, nn.Linear)] == [
        (40, 1),
        (40, 40),
        (1, 40),
    ]
    assert network(torch.zeros(10, 1)).shape == (10, 1)


def test_paper_initialisation_is_a_truncated_normal_with_zero_biases():
    torch.manual_seed(0)
    layer = MLP(100, [400], 1)[0]
    assert layer.weight.abs().max() <= 0.02
    # the deviation of a normal of 0.01 truncated at two deviations
    torch.testing.assert_close(layer.weight.std().item(), 0.0088, rtol=0.02, atol=0)
    assert not layer.bias.any()


def test_default_initialisation_is_that_of_torch():
    torch.manual_seed(0)
    ours = MLP(3, [8], 2, init="default")
    torch.manual_seed(0)
    theirs = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(a, b)


def test_mlp_without_hidden_layers_is_linear():
    network = MLP(3, [], 2, activation="tanh")
    assert len(network) == 1
    assert isinstance(network.head, nn.Linear)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"in_features": 0}, "`in_features` to be a whole number of at least 1 but got 0"),
        ({"out_features": 1.5}, "`out_features` to be a whole number of at least 1 but got 1.5"),
        ({"hidden": [40, -1]}, r"`hidden\[1\]` to be a whole number of at least 1 but got -1"),
        ({"hidden": 40}, r"`hidden` to be a list of whole numbers, as \[40, 40\], but got 40"),
        ({"activation": "swish"}, "`activation` to be one of .*'relu'.* but got 'swish'"),
        ({"init": "zeros"}, "`init` to be one of \\['paper', 'default'\\] but got 'zeros'"),
    ],
)
def test_mlp_rejects(arguments, message):
    with pytest.raises(ValueError, match=message):
        MLP(**({"in_features": 1, "hidden": [40], "out_features": 1} | arguments))


def test_conv4_is_the_papers_omniglot_network():
    network = Conv4(ways=5)
    # four 3x3 convolutions (1 -> 64, 64 -> 64 three times), four scale and shift pairs, 64 -> 5
    assert parameters(network) == (9 * 64 + 64) + 3 * (9 * 64 * 64 + 64) + 4 * 128 + (64 * 5 + 5)
    assert network(torch.zeros(2, 1, 28, 28)).shape == (2, 5)
    before_mean = network[:12](torch.zeros(2, 1, 28, 28))
    assert before_mean.shape == (2, 64, 2, 2)
    assert network.norm1.track_running_stats


def test_conv4_takes_the_mean_over_space():
    torch.manual_seed(0)
    network = Conv4(ways=3, hidden=8).eval()
    images = torch.rand(2, 1, 28, 28)
    torch.testing.assert_close(network(images), network.head(network[:12](images).mean((-2, -1))))


def test_conv4_max_pool():
    network = Conv4(ways=5, channels=3, hidden=32, image_size=84, form="max_pool")
    assert network.head.in_features == 32 * 5 * 5
    assert network(torch.zeros(2, 3, 84, 84)).shape == (2, 5)
    assert Conv4(ways=5, form="max_pool")(torch.zeros(2, 1, 28, 28)).shape == (2, 5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"ways": 0}, "`ways` to be a whole number of at least 1 but got 0"),
        ({"ways": True}, "`ways` to be a whole number of at least 1 but got True"),
        ({"hidden": "64"}, "`hidden` to be a whole number of at least 1 but got '64'"),
        ({"form": "pool"}, "`form` to be one of \\['stride', 'max_pool'\\] but got 'pool'"),
        ({"form": "max_pool", "image_size": 15}, "`image_size` to be at least 16 .* but got 15"),
    ],
)
def test_conv4_rejects(arguments, message):
    with pytest.raises(ValueError, match=message):
        Conv4(**({"ways": 5} | arguments))


@pytest.mark.parametrize("form", ["stride", "max_pool"])
def test_conv4_has_a_second_order_meta_gradient(form):
    torch.manual_seed(0)
    network = Conv4(ways=2, hidden=4, image_size=16, form=form)
    labels = torch.tensor([[0, 1], [1, 0]])
    images = torch.rand(2, 2, 1, 16, 16)
    tasks = TaskBatch(images, labels, images.flip(1), labels.flip(1))
    output = meta_loss(network, maml(lr=0.1, steps=2), tasks, loss="cross_entropy", engine="batched")
    output.surrogate.backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    assert network.conv1.weight.grad.any()


# Norms, residual networks, and what algorithms put into a network


@pytest.mark.parametrize("form", ["stride", "max_pool"])
@pytest.mark.parametrize(
    ("norm", "kind"),
    [("batch", nn.BatchNorm2d), ("group", nn.GroupNorm), ("layer", nn.GroupNorm), ("none", nn.Identity)],
)
def test_conv4_norms(norm, kind, form):
    torch.manual_seed(0)
    network = Conv4(ways=3, hidden=6, image_size=16, form=form, norm=norm)
    assert type(network.norm1) is kind
    images = torch.randn(4, 1, 16, 16)
    same = torch.allclose(network(images)[:2], network(images[:2]), atol=1e-5)
    assert same == (norm != "batch")  # by batch statistics alone does a row depend on the others


def test_layer_norm_is_over_all_of_a_row():
    norm, images = make_norm("layer", 6), torch.randn(2, 6, 3, 3)
    torch.testing.assert_close(norm(images), nn.functional.layer_norm(images, (6, 3, 3)))
    assert [make_norm("group", channels).num_groups for channels in (64, 12, 7, 11)] == [8, 6, 7, 1]


@pytest.mark.parametrize("norm", ["batch", "group"])
def test_resnet12_is_four_blocks_of_three(norm):
    torch.manual_seed(0)
    network = ResNet12(ways=5, channels=1, widths=(2, 4, 6, 8), norm=norm)
    kernels = [layer.kernel_size for layer in network.modules() if isinstance(layer, nn.Conv2d)]
    assert kernels.count((3, 3)) == 12
    assert network(torch.zeros(2, 1, 16, 16)).shape == (2, 5)
    assert network[:-2](torch.zeros(2, 1, 16, 16)).shape == (2, 8, 1, 1)
    blocks = [(3, 64), (64, 160), (160, 320), (320, 640)]  # in each: three convolutions, one beside them, four norms
    with torch.device("meta"):
        body = parameters(ResNet12(ways=5)[:-1])
    assert body == sum(9 * (i * o + 2 * o * o) + i * o + 4 * 2 * o for i, o in blocks)


def test_resnet12_has_the_same_meta_gradient_on_both_engines():
    torch.manual_seed(0)
    network = ResNet12(ways=2, channels=1, widths=(2, 3)).double()
    images, labels = torch.rand(2, 4, 1, 8, 8, dtype=torch.float64), torch.tensor([[0, 1, 0, 1], [1, 0, 1, 0]])
    tasks = TaskBatch(images, labels, images.flip(1) + 0.1, labels.flip(1))
    gradients = [
        meta_gradient(network, meta_loss(network, maml(0.1, 2), tasks, loss="cross_entropy", engine=engine))
        for engine in ("eager", "batched")
    ]
    assert relative_error(*gradients) < 1e-9


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Conv4(ways=5, norm="instance"), "`norm` to be one of .* but got 'instance'"),
        (lambda: ResNet12(ways=0), "`ways` to be a whole number of at least 1 but got 0"),
        (lambda: ResNet12(ways=5, widths=(4, 0)), r"`widths\[1\]` to be a whole number of at least 1 but got 0"),
        (lambda: ResNet12(ways=5, widths=()), "`widths` to be of at least one block but got none"),
        (lambda: ResNet12(ways=5, widths=64), "`widths` to be a list of whole numbers, .* but got 64"),
        (lambda: StepBatchNorm2d(4, steps=0), "`steps` to be a whole number of at least 1 but got 0"),
    ],
)
def test_networks_reject(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_step_batch_norm_starts_as_the_layer_it_replaces():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3, eps=1e-3), nn.Sequential(nn.BatchNorm2d(3)))
    nn.init.normal_(network[1].weight)
    images = torch.randn(4, 1, 6, 6)
    expected = network(images)
    assert step_batch_norm(network, 4) is network
    assert type(network[2][0]) is StepBatchNorm2d
    torch.testing.assert_close(network(images), expected)


def test_lora_is_a_low_rank_change_of_the_weight():
    torch.manual_seed(0)
    linear = nn.Linear(5, 3)
    layer = LowRank(linear, rank=2, scale=4.0)
    nn.init.normal_(layer.lora_b)
    x = torch.randn(7, 5)
    changed = linear.weight + 4.0 / 2 * layer.lora_b @ layer.lora_a
    torch.testing.assert_close(layer(x), nn.functional.linear(x, changed, linear.bias))
    torch.testing.assert_close(layer(x), nn.functional.linear(x, layer.weight, layer.bias))
