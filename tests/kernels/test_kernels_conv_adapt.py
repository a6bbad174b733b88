"""conv_adapt: every output and gradient against autograd in float64."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from lightning_maml.kernels import compiler
from lightning_maml.kernels.conv_adapt import LOSSES, Network, conv_adapt, conv_trajectory, parameters_of, predict
from lightning_maml.kernels.conv_adapt.layout import places_of
from lightning_maml.kernels.conv_adapt.naive import conv_adapt as naive
from lightning_maml.kernels.conv_adapt.naive import forward

NAMES = ("task losses", "predictions", "support losses", "gradient of theta", "gradient of the rates", "trajectory")
OMNIGLOT = Network(
    1, 28, 28, filters=8, blocks=4, stride=2, pool=False, norm=True, bias=True, affine=True, flat=False, ways=5
)
NETWORKS = {
    "omniglot": OMNIGLOT,
    "mini imagenet": Network(3, 17, 19, 7, 3, 1, pool=True, norm=True, bias=True, affine=True, flat=True, ways=3),
    "no bias": Network(3, 7, 9, 13, 2, 2, pool=False, norm=True, bias=False, affine=True, flat=True, ways=3),
    "not affine": Network(2, 6, 5, 17, 2, 2, pool=False, norm=True, bias=True, affine=False, flat=False, ways=2),
    "no norm": Network(2, 9, 8, 40, 2, 1, pool=False, norm=False, bias=True, affine=False, flat=False, ways=4),
    "neither": Network(1, 11, 13, 5, 2, 2, pool=True, norm=False, bias=False, affine=False, flat=True, ways=5),
    "one block": Network(1, 3, 3, 1, 1, 1, pool=False, norm=True, bias=True, affine=True, flat=True, ways=2),
}


def operands(
    network: Network,
    loss: str,
    tasks: int = 3,
    rows: int = 4,
    queries: int = 5,
    steps: int = 2,
    elements: bool = False,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
) -> list[Tensor]:
    """Random parameters, rates, and tasks."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    theta = torch.cat([normal(*shape).flatten() / torch.Size(shape[1:]).numel() ** 0.5 for shape in network.shapes()])
    rates = 0.05 + 0.05 * torch.rand(steps, network.size if elements else 1, generator=generator, dtype=torch.float64)

    def part(count: int) -> list[Tensor]:
        labels = torch.randint(network.ways, (tasks, count), generator=generator)
        targets = labels if loss == "cross_entropy" else normal(tasks, count, network.ways)
        return [normal(tasks, count, network.channels, network.height, network.width), targets]

    return [theta, rates.to(dtype), *part(rows), *part(queries)]


def outputs(arguments: list[Tensor], network: Network, loss: str, order: int = 2) -> tuple[Tensor, ...]:
    """In the order of :data:`NAMES`."""
    trajectory, losses = conv_trajectory(*arguments[:4], network, loss)
    output = conv_adapt(*arguments, network, loss, order, rates_grad=True)
    torch.testing.assert_close(losses, output.support_losses, rtol=0, atol=0, equal_nan=True)
    return output._replace(trajectory=trajectory)


def assert_equal(found: tuple[Tensor, ...], expected: tuple[Tensor, ...], tolerance: float) -> None:
    for name, a, b in zip(NAMES, found, expected, strict=True):
        assert a.shape == b.shape, name
        if b.numel():
            error = (a - b).abs().max() / b.abs().max().clamp_min(1e-12)
            assert error <= tolerance, f"{name}: {error}"


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("name", list(NETWORKS))
def test_equals_autograd(name, loss):
    network = NETWORKS[name]
    for order, elements in ((2, False), (2, True), (1, False), (1, True)):
        arguments = operands(network, loss, elements=elements)
        assert_equal(outputs(arguments, network, loss, order), naive(*arguments, network, loss, order), 1e-11)


def assert_predicts(network: Network, tasks: int, queries: int = 5) -> None:
    theta, _, _, _, images, _ = operands(network, "mse", tasks, queries=queries)
    phi = theta + 0.1 * torch.randn(tasks, len(theta), dtype=theta.dtype)
    expected = [forward(*task, network) for task in zip(phi, images, strict=True)]
    found = predict(phi, images, network)
    assert found.shape == (tasks, queries, network.ways)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("name", list(NETWORKS))
@pytest.mark.parametrize(("tasks", "queries"), [(0, 5), (1, 2), (7, 11)])
def test_predicts_by_each_tasks_own_parameters(name, tasks, queries):
    assert_predicts(NETWORKS[name], tasks, queries)


@pytest.mark.parametrize(
    ("tasks", "rows", "queries", "steps"), [(1, 1, 1, 0), (1, 1, 7, 1), (17, 2, 1, 1), (2, 13, 3, 5)]
)
def test_at_awkward_sizes(tasks, rows, queries, steps):
    arguments = operands(OMNIGLOT, "cross_entropy", tasks, rows, queries, steps)
    assert_equal(outputs(arguments, OMNIGLOT, "cross_entropy"), naive(*arguments, OMNIGLOT, "cross_entropy", 2), 1e-10)


@pytest.mark.parametrize("pool", [True, False])
def test_in_groups_of_images_that_do_not_divide_them(pool):
    """Images of the first layer are larger than a group, of the last all are one; between them some remain."""
    network = Network(2, 33, 31, 3, 3, 1 if pool else 2, pool, norm=True, bias=True, affine=True, flat=True, ways=3)
    arguments = operands(network, "cross_entropy", tasks=2, rows=7, queries=11)
    assert_equal(outputs(arguments, network, "cross_entropy"), naive(*arguments, network, "cross_entropy", 2), 1e-11)


def test_in_float32():
    network = replace(OMNIGLOT, filters=64)
    exact = operands(network, "cross_entropy", tasks=2, rows=5, queries=5, steps=3)
    arguments = operands(network, "cross_entropy", tasks=2, rows=5, queries=5, steps=3, dtype=torch.float32)
    expected = naive(*exact, network, "cross_entropy", 2)
    assert_equal(outputs(arguments, network, "cross_entropy"), expected, 1e-4)


def test_the_same_bits_on_any_number_of_threads():
    arguments = operands(OMNIGLOT, "cross_entropy", tasks=19, dtype=torch.float32)
    before = torch.get_num_threads()
    try:
        found = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(outputs(arguments, OMNIGLOT, "cross_entropy"))
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


def test_a_task_that_overflows_harms_no_other():
    arguments = operands(OMNIGLOT, "mse", tasks=5)
    arguments[3][2] = 1e200  # targets
    found = outputs(arguments, OMNIGLOT, "mse")
    rest = [value if index < 2 else value[[0, 1, 3, 4]] for index, value in enumerate(arguments)]
    expected = outputs(rest, OMNIGLOT, "mse")
    for index in (0, 1, 2, 5):
        assert torch.equal(found[index][[0, 1, 3, 4]], expected[index]), NAMES[index]
        assert not found[index][2].isfinite().all(), NAMES[index]


def test_parameters_lie_in_turn():
    for network in NETWORKS.values():
        flat = torch.randn(2, network.size)
        parts = parameters_of(flat, network)
        assert [tuple(part.shape[1:]) for part in parts] == network.shapes()
        torch.testing.assert_close(torch.cat([part.flatten(1) for part in parts], 1), flat, rtol=0, atol=0)
        for block in (4, 8, 16, 32):  # doubles with SSE to floats with AVX-512
            there, back = places_of(network, block)
            kept = back < len(there)
            assert torch.equal(there[back[kept]], torch.arange(network.size)[kept])
            # only biases are not carried over, and only where batch-norm takes them away
            biases = network.blocks * network.filters if network.norm and network.bias else 0
            assert (~kept).sum() == biases


@pytest.mark.parametrize("operator", [torch.ops.lightning_maml.conv_adapt, torch.ops.lightning_maml.conv_trajectory])
def test_opcheck(operator):
    network = NETWORKS["no bias"]
    arguments = operands(network, "mse", tasks=2)
    if operator is torch.ops.lightning_maml.conv_adapt:
        torch.library.opcheck(operator, (*arguments, network.plain(), network.eps, "mse", 2, True, "ieee"))
    else:
        torch.library.opcheck(operator, (*arguments[:4], network.plain(), network.eps, "mse", "ieee"))


def test_differentiating_an_output_is_refused():
    network = NETWORKS["one block"]
    arguments = operands(network, "mse")
    arguments[0].requires_grad_()
    output = conv_adapt(*arguments, network, "mse")
    with pytest.raises(RuntimeError, match=r"no autograd formula|does not require grad"):
        output.task_losses.sum().backward()


def test_labels_out_of_range():
    arguments = operands(OMNIGLOT, "cross_entropy", tasks=2)
    for labels in (arguments[3], arguments[5]):
        for wrong in (5, -1):
            labels[1, 0] = wrong
            with pytest.raises(RuntimeError, match="labels from 0 to 4"):
                conv_adapt(*arguments, OMNIGLOT)
        labels[1, 0] = 0


def test_what_does_not_fit_is_refused():
    arguments = operands(OMNIGLOT, "cross_entropy", tasks=2)
    theta, rates, inputs, targets, *query = arguments

    def refused(words: str, *changed, network: Network = OMNIGLOT, **options) -> None:
        with pytest.raises(ValueError, match=words):
            conv_adapt(*changed, network, **options)

    refused(r"`theta` \[.*\] and `rates`", theta[1:], rates, inputs, targets, *query)
    refused(r"`rates` \[m, 1\]", theta, rates.expand(-1, 3), inputs, targets, *query)
    refused(r"images \[T, N, 1, 28, 28\] but got \[2, 4, 1, 28, 27\]", theta, rates, inputs[..., 1:], targets, *query)
    refused("Expected targets for images", theta, rates, inputs, targets[:, 1:], *query)
    refused("as many query sets as support sets", theta, rates, inputs, targets, *(value[:1] for value in query))
    refused("the same everywhere", theta.float(), rates, inputs, targets, *query)
    refused(r"labels of torch.int64 but got torch.int32", theta, rates, inputs, targets.int(), *query)
    refused("`loss` to be one of", *arguments, loss="bce")
    refused("`order` to be 1 or 2 but got 3", *arguments, order=3)
    one = Network(1, 2, 2, 3, 1, 2, pool=False, norm=True, bias=True, affine=True, flat=True, ways=2)
    few = operands(one, "mse", rows=1)
    refused("more than 1 value a channel for batch-norm", *few, network=one, loss="mse")
    for words, changes in (
        ("`filters` to be positive but got 0", {"filters": 0}),
        ("up to 8 blocks but got 9", {"blocks": 9}),
        ("`stride` to be 1 or 2 but got 3", {"stride": 3}),
        ("`affine` for networks with batch-norm", {"norm": False}),
        ("poolings leave something of", {"pool": True}),
    ):
        with pytest.raises(ValueError, match=words):
            replace(OMNIGLOT, **changes)


def test_no_tasks():
    arguments = operands(OMNIGLOT, "mse", tasks=0)
    output = conv_adapt(*arguments, OMNIGLOT, "mse", rates_grad=True)
    assert output.task_losses.shape == (0,)
    assert not output.of_theta.any()


def test_reads_nothing_that_it_did_not_write(tmp_path, monkeypatch):
    monkeypatch.setenv("LIGHTNING_MAML_CACHE", str(tmp_path))
    monkeypatch.setattr(compiler, "FLAGS", [*compiler.FLAGS, "-DPOISON"])
    compiler.load.cache_clear()
    try:
        for network in NETWORKS.values():
            arguments = operands(network, "mse", elements=True)
            assert_equal(outputs(arguments, network, "mse"), naive(*arguments, network, "mse", 2), 1e-11)
            assert_predicts(network, tasks=2)
    finally:
        compiler.load.cache_clear()


def test_memory_that_is_kept_can_be_given_back():
    arguments = operands(OMNIGLOT, "mse")
    first = outputs(arguments, OMNIGLOT, "mse")
    compiler.forget()
    for one, other in zip(outputs(arguments, OMNIGLOT, "mse"), first, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


# the Triton kernels: on the CPU in Triton's interpreter; as compiled, in tests/kernels/emulator

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def launched(arguments: list[Tensor], network: Network, loss: str, order: int = 2) -> tuple[Tensor, ...]:
    """As :func:`outputs`, by the kernels, in float32."""
    kernels = pytest.importorskip("lightning_maml.kernels.conv_adapt.launch", reason="needs Triton")
    given = [value.to(DEVICE, torch.float32 if value.is_floating_point() else None) for value in arguments]
    output = kernels.launch(*given, network, loss, order, True, "ieee")
    path = kernels.launch(*given[:4], None, None, network, loss, 1, False, "ieee")
    return tuple(value.cpu().double() for value in output._replace(trajectory=path.trajectory))


@pytest.mark.parametrize("name", ["one block", "no bias"])
def test_kernels_equal_autograd(name, poisoned):
    network = NETWORKS[name]
    arguments = operands(network, "cross_entropy", tasks=2, rows=3, queries=2, steps=1, elements=True)
    assert_equal(launched(arguments, network, "cross_entropy"), naive(*arguments, network, "cross_entropy", 2), 2e-5)


@pytest.mark.parametrize("name", list(NETWORKS))
def test_each_launch_fits_what_it_is_given(name):
    """Of the sums that a launch leaves no more parts than the next one reads; every row in one part."""
    kernels = pytest.importorskip("lightning_maml.kernels.conv_adapt.launch", reason="needs Triton")
    most = kernels.MOST_PARTS.value
    for images, tasks in ((1, 1), (5, 8), (25, 1), (75, 3)):
        layers = kernels.layers_of(NETWORKS[name], images, tasks)
        for layer, above in zip(layers, [*layers[1:], None], strict=True):
            parts = above.back.parts * NETWORKS[name].stride ** 2 if above else 1
            assert layer.out_parts == parts
            assert max(layer.forward.parts, layer.gradient.parts, parts) <= most
            for split in (layer.forward, layer.gradient):
                assert (split.parts - 1) * split.part_rows < layer.rows <= split.parts * split.part_rows
                assert split.part_rows % layer.side**2 == 0
