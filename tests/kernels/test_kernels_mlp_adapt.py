"""Whole inner loops and their meta-gradients in one operator: on the CPU, and the Triton kernels, against autograd."""

from __future__ import annotations

import platform
import re

import pytest
import torch
from torch import Tensor

from lightning_maml.kernels import compiler
from lightning_maml.kernels.mlp_adapt import (
    LOSSES,
    ON_CPU,
    Adaptation,
    mlp_adapt,
    mlp_trajectory,
    native,
    parameters_of,
    recursion,
    size,
)
from lightning_maml.kernels.mlp_adapt.layout import into_matrices, matrices, out_of_matrices
from lightning_maml.kernels.mlp_adapt.naive import mlp_adapt as naive

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"  # on the CPU: Triton's interpreter
ON_A_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
NAMES = ("task losses", "predictions", "support losses", "gradient of theta", "gradient of the rates", "trajectory")


def operands(widths, loss, tasks=3, support=5, query=7, steps=2, elements=False, dtype=torch.float64) -> list[Tensor]:
    """Parameters, rates and tasks in float64, the targets as the loss takes them."""
    P, out = size(widths), widths[-1]
    theta = torch.randn(P, dtype=dtype) / max(widths) ** 0.5
    rates = torch.rand(steps, P if elements else 1, dtype=dtype) * 0.2
    batch = []
    for rows in (support, query):
        batch.append(torch.randn(tasks, rows, widths[0], dtype=dtype))
        if loss == "cross_entropy":
            batch.append(torch.randint(out, (tasks, rows)))
        else:
            draw = torch.rand if loss == "bce" else torch.randn
            batch.append(draw(tasks, rows, out, dtype=dtype))
    return [theta, rates, *batch]


def assert_equal(actual, expected, bound: float) -> None:
    for name, a, b in zip(NAMES, actual, expected, strict=False):
        if a.numel() or name != "trajectory":
            scale = b.abs().max().item() if b.numel() else 1.0
            error = (a.cpu().double() - b.double()).abs().max().item() if b.numel() else 0.0
            assert a.shape == b.shape, name
            assert error <= bound * (scale or 1.0), f"{name}: {error / (scale or 1.0):.1e}"


def launch(arguments, widths, activation, loss, order=2, rates_grad=True, precision="ieee", query=True):
    kernel = pytest.importorskip("lightning_maml.kernels.mlp_adapt.kernel", reason="needs Triton")
    arguments = [a.to(DEVICE, torch.float32 if a.is_floating_point() else None) for a in arguments]
    if not query:
        arguments[4:] = [None, None]
    return kernel.launch(*arguments, kind=(widths, activation, loss, order, rates_grad), precision=precision)


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    """An empty folder for what is compiled, and nothing remembered."""
    monkeypatch.setenv("LIGHTNING_MAML_CACHE", str(tmp_path / "cache"))
    compiler.load.cache_clear()
    native.faster.cache_clear()
    yield tmp_path / "cache"
    compiler.load.cache_clear()


@pytest.fixture
def own_flags(monkeypatch):
    """A function by which what is compiled from now on is compiled with further flags; kept, as other libraries are."""

    def compile_with(flags: list[str]) -> None:
        compiler.load.cache_clear()
        monkeypatch.setattr(compiler, "FLAGS", [*FLAGS, *flags])
        # last, behind what is for the processor at hand
        monkeypatch.setattr(compiler, "CHOICES", tuple([*choice, *flags] for choice in CHOICES))

    yield compile_with
    compiler.load.cache_clear()


FLAGS, CHOICES = compiler.FLAGS, compiler.CHOICES

# the operator on the CPU: in torch's products, and compiled from C

BOTH = pytest.mark.parametrize("compiled", [False, True], ids=["torch", "compiled"])


def frequencies_of(widths, activation) -> list[float]:
    return [0.5 + index % 3 / 2 for index in range(len(widths) - 2)] if activation == "sine" else []


def of_both(source, arguments, widths, activation, loss="mse", order=2, rates_grad=True, query=True):
    """By one of the sources in C, whichever would be faster."""
    arguments = arguments if query else [*arguments[:4], None, None]
    kind = (widths, activation, loss, order, rates_grad)
    return native.adapt(*arguments, kind=kind, frequencies=frequencies_of(widths, activation), source=source)


SOURCES = pytest.mark.parametrize("source", [native.SOURCE, native.WIDE], ids=lambda source: source.name)
EVERY_WAY = ((2, False, 3), (2, True, 2), (1, False, 2), (1, True, 3), (2, False, 0))
"""Order, rates an element, steps."""


@pytest.mark.parametrize("widths", [[3, 4], [1, 5, 1], [3, 7, 5, 2], [2, 3, 4, 5, 3]], ids=str)
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("activation", ON_CPU.activations)
def test_operator(activation, loss, widths):
    for order, elements, steps in EVERY_WAY:
        arguments = operands(widths, loss, steps=steps, elements=elements)
        frequencies = frequencies_of(widths, activation)
        expected = naive(*arguments, widths, activation, loss, order, frequencies=frequencies)
        kind = (widths, activation, loss)
        output = mlp_adapt(*arguments, *kind, order, rates_grad=True, frequencies=frequencies)
        assert_equal(output, expected, 1e-12)
        trajectory, support_losses = mlp_trajectory(*arguments[:4], *kind, frequencies=frequencies)
        torch.testing.assert_close(trajectory, expected[5])
        torch.testing.assert_close(support_losses, expected[2])
        for source in (native.SOURCE, native.WIDE):
            assert_equal(of_both(source, arguments, *kind, order), expected, 1e-12)
            path = of_both(source, arguments, *kind, 1, rates_grad=False, query=False)
            torch.testing.assert_close(path.trajectory, expected[5])
            torch.testing.assert_close(path.support_losses, expected[2])


@pytest.mark.parametrize("activation", ON_CPU.activations)
@pytest.mark.parametrize("loss", LOSSES)
def test_operator_in_float32(activation, loss, poisoned):
    widths = [1, 40, 40, 3]
    arguments = operands(widths, loss, tasks=13, support=10, query=11, steps=5)
    frequencies = frequencies_of(widths, activation)
    expected = naive(*arguments, widths, activation, loss, 2, frequencies=frequencies)
    arguments = [value.float() if value.is_floating_point() else value for value in arguments]
    output = mlp_adapt(*arguments, widths, activation, loss, rates_grad=True, frequencies=frequencies)
    assert_equal(output, expected, 1e-5)
    for source in (native.SOURCE, native.WIDE):
        assert_equal(of_both(source, arguments, widths, activation, loss), expected, 1e-5)


SIZES = {
    "one of each": ([1, 1, 1], {"tasks": 1, "support": 1, "query": 1}),
    "no hidden layer": ([256, 255], {"tasks": 2, "support": 13, "query": 97}),
    "wide": ([7, 255, 256, 3], {"tasks": 1, "support": 97, "query": 13}),
    "as wide as can be": ([256, 256, 256], {"tasks": 1, "support": 5, "query": 1}),
    "deep": ([2, *[7] * 8, 3], {"tasks": 5, "support": 11, "query": 3}),
    "many rows": ([2, 17, 9, 1], {"tasks": 2, "support": 1037, "query": 193}),
    "few rows of many tasks": ([3, 17, 2], {"tasks": 37, "support": 1, "query": 2}),
}


@SOURCES
@pytest.mark.parametrize("activation", ["relu", "tanh", "sine"])
@pytest.mark.parametrize("size_of", SIZES)
def test_sources_at_any_size(size_of, activation, source, own_flags):
    """Of what was never written there are NaN, and what steps leave behind is kept, or computed again."""
    widths, sizes = SIZES[size_of]
    arguments = operands(widths, "mse", **sizes, elements=size_of == "deep")
    expected = naive(*arguments, widths, activation, "mse", 2, frequencies=frequencies_of(widths, activation))
    single = [value.float() for value in arguments]
    for flags in ([], ["-DMOST_TAPE=0"]) if source == native.WIDE else ([],):
        own_flags(["-DPOISON", *flags])
        assert_equal(of_both(source, arguments, widths, activation), expected, 1e-11)
        assert_equal(of_both(source, single, widths, activation), expected, 1e-4)
        path = of_both(source, arguments, widths, activation, order=1, rates_grad=False, query=False)
        torch.testing.assert_close(path.trajectory, expected.trajectory)


@pytest.mark.parametrize("flags", [["-mno-avx512f"], ["-mno-avx"]], ids=str)
@pytest.mark.skipif(platform.machine() != "x86_64", reason="flags of another processor")
def test_sources_with_narrower_vectors(flags, own_flags):
    own_flags(flags)
    for widths, activation in (([3, 33, 18, 2], "sine"), ([1, 5, 1], "gelu")):
        arguments = operands(widths, "cross_entropy", tasks=19, support=101, query=7, elements=True)
        frequencies = frequencies_of(widths, activation)
        expected = naive(*arguments, widths, activation, "cross_entropy", 2, frequencies=frequencies)
        single = [value.float() if value.is_floating_point() else value for value in arguments]
        for source in (native.SOURCE, native.WIDE):
            assert_equal(of_both(source, arguments, widths, activation, "cross_entropy"), expected, 1e-12)
            assert_equal(of_both(source, single, widths, activation, "cross_entropy"), expected, 1e-4)


@SOURCES
def test_sines_of_large_numbers(source):
    """Beyond what the polynomials are for, and of what is no number."""
    arguments = [value.float() for value in operands([1, 1, 1], "mse", tasks=3, support=2, query=4, steps=0)]
    arguments[0] = torch.tensor([1.0, 0.0, 1.0, 0.0])  # the network is the sine
    arguments[4] = torch.tensor([1e3, 8e3, -2e4, 1e7, 0.0, float("nan"), float("inf"), -3e5, 1.0, -1.0, 50.0, 0.01])
    arguments[4] = arguments[4].view(3, 4, 1)
    kind = ([1, 1, 1], "sine", "mse", 2, False)
    predictions = native.adapt(*arguments, kind=kind, frequencies=[2.0], source=source).predictions
    expected = (2 * arguments[4].double()).sin().float()
    torch.testing.assert_close(predictions, expected, rtol=2e-6, atol=2e-6, equal_nan=True)


def test_the_faster_source():
    """One task after another where layers fill vectors, or where tasks do not."""

    def chosen(widths, tasks, rows=10.0, dtype=torch.float32):
        return native.faster(tuple(widths), tasks, rows, dtype)

    lanes = compiler.library_of(native.SOURCE, torch.float32, native._Problem).lanes()
    assert chosen([1, 40, 40, 1], 25) == chosen([1, 40, 40, 1], 256) == native.SOURCE
    assert chosen([1, 40, 40, 1], 1) == native.WIDE
    assert chosen([2, *[256] * 4, 3], 16 * lanes, 1024) == native.WIDE
    assert chosen([1, 5, 1], lanes, 100) == native.SOURCE


def test_frequencies_are_checked():
    arguments = operands([3, 4, 2], "mse")
    with pytest.raises(ValueError, match=r"Expected 1 `frequencies` for 'sine' but got \[\]"):
        mlp_adapt(*arguments, [3, 4, 2], "sine")
    with pytest.raises(ValueError, match=r"Expected 0 `frequencies` for 'tanh' but got \[1.0\]"):
        mlp_adapt(*arguments, [3, 4, 2], "tanh", frequencies=[1.0])
    for dtype, off in ((torch.float64, float("inf")), (torch.float64, float("nan")), (torch.float32, 1e39)):
        given = [value.to(dtype) for value in arguments]
        with pytest.raises(ValueError, match=re.escape(f"finite in {dtype} but got [{off}]")):
            mlp_adapt(*given, [3, 4, 2], "sine", frequencies=[off])
    away = [value.to("meta") for value in arguments]
    with pytest.raises(ValueError, match="Expected `activation` to be one of .* but got 'sine'"):
        mlp_adapt(*away, [3, 4, 2], "sine", frequencies=[1.0])


def test_all_give_the_same_record():
    arguments, kind = operands([2, 3], "mse", tasks=1, steps=1), ([2, 3], "relu", "mse", 2)
    given = [adapt(*arguments, kind=(*kind, True)) for adapt in (recursion.adapt, native.adapt)]
    given += [naive(*arguments, *kind), launch(arguments, *kind), mlp_adapt(*arguments, *kind)]
    assert {type(result) for result in given} == {Adaptation}


@SOURCES
def test_compiled_tasks_keep_to_themselves(source):
    """One task in a register overflows, or has a NaN: the others' numbers are the same bits."""
    arguments = operands([2, 5, 1], "mse", tasks=7, dtype=torch.float32)
    clean = of_both(source, arguments, [2, 5, 1], "tanh")
    for value in (float("nan"), 1e30):
        arguments[3][3] = value
        spoilt = of_both(source, arguments, [2, 5, 1], "tanh")
        others = torch.arange(7) != 3
        assert spoilt.task_losses.isfinite().tolist() == others.tolist()
        for a, b in zip(spoilt[:3], clean[:3], strict=True):
            assert torch.equal(a[others], b[others])


@SOURCES
@pytest.mark.parametrize("activation", ["relu", "tanh", "gelu", "sine"])
def test_compiled_activations_show_a_nan(activation, source):
    arguments = operands([2, 5, 1], "mse", tasks=1, dtype=torch.float32)
    arguments[4][0, 0, 0] = float("nan")
    assert of_both(source, arguments, [2, 5, 1], activation).predictions[0, 0].isnan().all()


@SOURCES
def test_compiled_gives_the_same_bits_on_any_number_of_threads(source):
    arguments = operands([1, 40, 40, 1], "mse", tasks=53, elements=True, dtype=torch.float32)
    threads, found = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            found.append(of_both(source, arguments, [1, 40, 40, 1], "relu"))
    finally:
        torch.set_num_threads(threads)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(other, found[0], strict=True))


@BOTH
def test_labels_out_of_range(compiled):
    arguments = operands([2, 3], "cross_entropy", tasks=2)
    for labels in (arguments[3], arguments[5]):
        labels[1, 0] = 3
        with pytest.raises(RuntimeError, match="Class values must be smaller than num_classes"):
            mlp_adapt(*arguments, [2, 3], "relu", "cross_entropy", compiled=compiled)
        labels[1, 0] = 0


def test_compiled_once_on_a_machine(own_cache, monkeypatch):
    arguments = operands([2, 3], "mse", tasks=1)
    mlp_adapt(*arguments, [2, 3], compiled=True)
    for library in own_cache.iterdir():
        assert library.name.startswith("mlp_adapt_double_")
    compiler.load.cache_clear()
    calls = []
    run = compiler._run
    monkeypatch.setattr(compiler, "_run", lambda call: calls.append(call) or run(call))
    mlp_adapt(*arguments, [2, 3], compiled=True)
    assert [call for call in calls if "-o" in call] == []


def test_compiled_reads_nothing_that_it_did_not_write(own_flags):
    own_flags(["-DPOISON"])
    for widths, activation in (([3, 7, 5, 2], "tanh"), ([3, 5, 2], "relu"), ([3, 2], "identity")):
        for order, elements, steps in ((2, False, 3), (1, True, 2), (2, True, 0)):
            arguments = operands(widths, "mse", tasks=5, steps=steps, elements=elements)
            output = mlp_adapt(*arguments, widths, activation, "mse", order, rates_grad=True, compiled=True)
            assert_equal(output, naive(*arguments, widths, activation, "mse", order), 1e-12)
            trajectory, losses = mlp_trajectory(*arguments[:4], widths, activation, "mse", compiled=True)
            assert trajectory.isfinite().all()
            assert losses.isfinite().all()


@pytest.mark.parametrize(
    "compiler,reason",
    [
        ("no-such-compiler", "'no-such-compiler' of \\$CC is not found"),
        ("false", "false .* failed"),
        ("gcc '", r"\$CC is no command: No closing quotation"),
    ],
)
def test_without_a_compiler(compiler, reason, own_cache, monkeypatch):
    monkeypatch.setenv("CC", compiler)
    with pytest.raises(RuntimeError, match=f"Expected to compile `mlp_adapt` but {reason}"):
        mlp_adapt(*operands([2, 3], "mse"), [2, 3], compiled=True)
    assert not list(own_cache.glob("*")), "half a library was left"


def test_first_order_is_another_gradient():
    arguments = operands([3, 7, 2], "mse", steps=3)
    exact, first = (mlp_adapt(*arguments, [3, 7, 2], "tanh", order=order).of_theta for order in (2, 1))
    assert (exact - first).abs().max() > 1e-3 * exact.abs().max()


@BOTH
def test_gradient_is_the_slope(compiled):
    """Finite differences of the query loss itself: no autograd in sight."""
    widths, step = [2, 6, 3], 1e-6
    theta, rates, *batch = operands(widths, "cross_entropy", steps=3, elements=True)
    output = mlp_adapt(theta, rates, *batch, widths, "gelu", "cross_entropy", rates_grad=True, compiled=compiled)
    for value, gradient in ((theta, output.of_theta), (rates, output.of_rates)):
        direction = torch.randn_like(value)
        ends = []
        for sign in (1, -1):
            moved = [value + sign * step * direction if other is value else other for other in (theta, rates)]
            moved_output = mlp_adapt(*moved, *batch, widths, "gelu", "cross_entropy", compiled=compiled)
            ends.append(moved_output.task_losses.mean())
        assert (gradient * direction).sum().item() == pytest.approx((ends[0] - ends[1]).item() / (2 * step), rel=1e-5)


def test_differentiating_an_output_raises():
    theta, *rest = operands([3, 4, 2], "mse")
    output = mlp_adapt(theta.requires_grad_(), *rest, [3, 4, 2])
    for value in output[:4]:
        with pytest.raises(RuntimeError, match="no autograd formula was registered"):
            value.sum().backward()


@BOTH
@pytest.mark.parametrize("rates_grad", [False, True])
def test_opcheck(rates_grad, compiled):
    kind = ([3, 4, 2], "tanh", "cross_entropy", [], 2, rates_grad, "ieee", compiled)
    arguments = (*operands([3, 4, 2], "cross_entropy"), *kind)
    results = torch.library.opcheck(torch.ops.lightning_maml.mlp_adapt.default, arguments)
    assert set(results.values()) == {"SUCCESS"}
    arguments = (*operands([3, 4, 2], "mse")[:4], [3, 4, 2], "sine", "mse", [0.5], "ieee", compiled)
    results = torch.library.opcheck(torch.ops.lightning_maml.mlp_trajectory.default, arguments)
    assert set(results.values()) == {"SUCCESS"}


@BOTH
def test_torch_compile_sees_one_graph(compiled):
    theta, *rest = operands([3, 4, 2], "mse")
    call = lambda theta: mlp_adapt(2 * theta, *rest, [3, 4, 2], "tanh", compiled=compiled)  # noqa: E731
    whole = torch.compile(call, fullgraph=True, backend="aot_eager")
    for ours, expected in zip(whole(theta), call(theta), strict=True):
        assert torch.equal(ours, expected)


def test_chunks_add_up(monkeypatch):
    arguments = operands([3, 7, 2], "mse", tasks=7, elements=True)
    whole = mlp_adapt(*arguments, [3, 7, 2], "tanh", rates_grad=True)
    monkeypatch.setattr(recursion, "CHUNK_NUMBERS", 1000)
    assert_equal(mlp_adapt(*arguments, [3, 7, 2], "tanh", rates_grad=True), whole, 1e-13)
    trajectory, _ = mlp_trajectory(*arguments[:4], [3, 7, 2], "tanh")
    torch.testing.assert_close(trajectory, naive(*arguments, [3, 7, 2], "tanh", "mse", 2)[5])


def test_buffers_kept_from_inference_mode_serve_outside():
    arguments = operands([3, 6, 2], "mse", tasks=2, support=3, query=4)
    with torch.inference_mode():
        first = mlp_adapt(*arguments, [3, 6, 2])
    assert_equal(mlp_adapt(*arguments, [3, 6, 2]), first, 0.0)


def test_rate_of_zero_keeps_a_layer_out():
    widths, steps = [2, 5, 1], 3
    theta, _, *batch = operands(widths, "mse")
    mask = torch.cat([torch.zeros(5 * 2 + 5), torch.ones(5 + 1)]).double()
    trajectory, _ = mlp_trajectory(theta, (0.1 * mask).expand(steps, -1), *batch[:2], widths)
    body, head = parameters_of(trajectory, widths)
    start = parameters_of(theta, widths)
    torch.testing.assert_close(body[0], start[0][0].expand_as(body[0]), rtol=0, atol=0)
    assert (head[0][:, -1] - start[1][0]).abs().max() > 1e-3


def test_matrices_are_the_transposed_weights_with_the_biases_below():
    flat = torch.randn(2, size([3, 5, 2]))
    rows = into_matrices(flat, [3, 5, 2])
    for (weight, bias), matrix in zip(parameters_of(flat, [3, 5, 2]), matrices(rows, [3, 5, 2]), strict=True):
        assert torch.equal(matrix, torch.cat([weight.mT, bias.unsqueeze(1)], 1))
    assert torch.equal(out_of_matrices(rows, [3, 5, 2]), flat)


@pytest.mark.parametrize(
    "change,match",
    [
        ({"widths": [3, 257, 2]}, "Expected `widths`"),
        ({"widths": [3, 5, 2]}, "Expected `theta`"),
        ({"activation": "swish"}, "Expected `activation`"),
        ({"loss": "hinge"}, "Expected `loss`"),
        ({"precision": "fp8"}, "Expected `precision`"),
        ({"order": 3}, "Expected `order`"),
        ({"loss": "cross_entropy"}, "Expected targets"),
    ],
    ids=str,
)
def test_what_is_not_covered_is_refused(change, match):
    with pytest.raises(ValueError, match=match):
        mlp_adapt(*operands([3, 4, 2], "mse"), **{"widths": [3, 4, 2], **change})


def test_rows_and_dtypes_are_checked():
    arguments = operands([3, 4, 2], "mse", support=0)
    with pytest.raises(ValueError, match="with N of at least 1"):
        mlp_adapt(*arguments, [3, 4, 2])
    theta, *rest = operands([3, 4, 2], "mse")
    with pytest.raises(ValueError, match="the same everywhere"):
        mlp_adapt(theta.float(), *rest, [3, 4, 2])
    arguments = operands([3, 4, 2], "cross_entropy")
    arguments[3] = arguments[3].int()
    with pytest.raises(ValueError, match="labels of torch.int64 but got torch.int32"):
        mlp_adapt(*arguments, [3, 4, 2], "relu", "cross_entropy", compiled=True)


# the kernels

CASES = {
    "sinusoid": ([1, 40, 40, 1], "mse", "relu", {"tasks": 2, "support": 10, "query": 10}, 2),
    "one_task": ([3, 7, 5, 2], "mse", "tanh", {"tasks": 1, "support": 1, "query": 1}, 2),
    "head": ([3, 5], "cross_entropy", "identity", {"elements": True}, 2),
    "three_hidden": ([2, 3, 4, 5, 3], "cross_entropy", "gelu", {"tasks": 2, "elements": True}, 2),
    "tiles": ([1, 67, 2], "bce", "tanh", {"tasks": 1, "support": 17, "query": 19, "steps": 1}, 2),
    "first_order": ([3, 7, 2], "mse", "relu", {"tasks": 2, "steps": 3}, 1),
    "first_order_elements": ([3, 7, 2], "bce", "gelu", {"tasks": 2, "elements": True}, 1),
    "no_steps": ([3, 7, 2], "mse", "identity", {"tasks": 2, "steps": 0}, 2),
}


@pytest.mark.parametrize("case", CASES)
def test_kernels(case, poisoned):
    widths, loss, activation, sizes, order = CASES[case]
    arguments = operands(widths, loss, **sizes)
    expected = naive(*arguments, widths, activation, loss, order)
    assert_equal(launch(arguments, widths, activation, loss, order), expected, 1e-5)


@pytest.mark.parametrize(
    "precision", ["ieee", "tf32", pytest.param("bf16", marks=ON_A_GPU)]
)  # no bf16 in the interpreter
def test_precisions(precision):
    arguments = operands([2, 9, 3], "mse", tasks=2)
    expected = naive(*arguments, [2, 9, 3], "relu", "mse", 2)
    output = launch(arguments, [2, 9, 3], "relu", "mse", precision=precision)
    assert_equal(output, expected, {"ieee": 1e-5, "tf32": 1e-2, "bf16": 5e-2}[precision])
    if precision == "bf16":
        with pytest.raises(AssertionError):  # or nothing was rounded
            assert_equal(output, expected, 1e-4)


def test_kernel_trajectory(poisoned):
    arguments = operands([2, 9, 3], "mse", tasks=2)
    expected = naive(*arguments, [2, 9, 3], "tanh", "mse", 2)
    output = launch(arguments, [2, 9, 3], "tanh", "mse", query=False)
    torch.testing.assert_close(output.trajectory.cpu().double(), expected[5], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(output.support_losses.cpu().double(), expected[2], rtol=1e-5, atol=1e-5)


def test_kernel_chunks_and_the_same_bits_twice(monkeypatch):
    kernel = pytest.importorskip("lightning_maml.kernels.mlp_adapt.kernel", reason="needs Triton")
    arguments = operands([2, 5, 1], "mse", tasks=3, steps=1)
    first, second = (launch(arguments, [2, 5, 1], "relu", "mse") for _ in range(2))
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a, b)
    monkeypatch.setattr(kernel, "SCRATCH_NUMBERS", 1)
    assert_equal(launch(arguments, [2, 5, 1], "relu", "mse"), [value.cpu() for value in first], 1e-6)


def test_kernel_shows_a_label_that_no_class_has():
    arguments = operands([2, 3], "cross_entropy", tasks=2, steps=1)
    arguments[5][1, 0] = 3
    losses = launch(arguments, [2, 3], "relu", "cross_entropy").task_losses.cpu()
    assert losses.isfinite().tolist() == [True, False]


@ON_A_GPU
@pytest.mark.parametrize("case", CASES)
def test_operator_on_the_gpu(case):
    widths, loss, activation, sizes, order = CASES[case]
    arguments = operands(widths, loss, **{**sizes, "tasks": 37})
    expected = naive(*arguments, widths, activation, loss, order)
    on_gpu = [a.cuda().float() if a.is_floating_point() else a.cuda() for a in arguments]
    output = mlp_adapt(*on_gpu, widths, activation, loss, order, True)
    assert_equal(output, expected, 1e-5)


@ON_A_GPU
@pytest.mark.parametrize("widths", [[1, 40, 40, 1], [2, 17, 33, 9, 3]], ids=str)
def test_sines_on_the_gpu(widths):
    arguments = operands(widths, "mse", tasks=37, elements=True)
    frequencies = frequencies_of(widths, "sine")
    expected = naive(*arguments, widths, "sine", "mse", 2, frequencies=frequencies)
    on_gpu = [a.cuda().float() for a in arguments]
    assert_equal(mlp_adapt(*on_gpu, widths, "sine", rates_grad=True, frequencies=frequencies), expected, 1e-5)


@ON_A_GPU
def test_operator_on_a_stream_of_its_own():
    arguments = [a.cuda().float() for a in operands([1, 40, 40, 1], "mse", tasks=37)]
    expected = mlp_adapt(*arguments, [1, 40, 40, 1])
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(10_000_000)  # whatever ran on the default stream would be early
        moved = [1.0 * a for a in arguments]
        output = mlp_adapt(*moved, [1, 40, 40, 1])
    stream.synchronize()
    assert_equal(output, [value.cpu() for value in expected], 0.0)


@BOTH
def test_the_limits_themselves_are_covered_and_no_number_beyond(compiled):
    def call(widths, rows=2, queries=2, **changed):
        arguments = operands(widths, "mse", tasks=1, steps=1)
        theta, rates, *_ = arguments
        batch = [
            torch.zeros(1, n, width, dtype=torch.float64) for n in (rows, queries) for width in (widths[0], widths[-1])
        ]
        return mlp_adapt(changed.get("theta", theta), changed.get("rates", rates), *batch, widths, compiled=compiled)

    for widths, rows, queries in (([256, 256], 1, 1037), ([2, *[1, 2] * 4, 1], 1037, 1)):
        assert call(widths, rows, queries).task_losses.isfinite().all()
    for widths in ([257, 1], [1, 257], [2] * 11, [2], [2, 0]):
        with pytest.raises(ValueError, match=r"up to 8 hidden layers and outputs, of 1 to 256 each"):
            call(widths)
    for rows, queries in ((0, 2), (2, 0)):
        with pytest.raises(ValueError, match=r"Expected inputs \[T, N, 5\] with N of at least 1"):
            call([5, 3, 2], rows, queries)
    for rates in (torch.zeros(1, dtype=torch.float64), torch.zeros(1, 1, 1, dtype=torch.float64)):
        with pytest.raises(ValueError, match=r"`rates` \[m, 1\]"):
            call([5, 2], rates=rates)
    theta, rates, inputs, *rest = operands([5, 2], "mse", tasks=1)
    for other in (inputs[0], inputs[None], inputs[..., 1:]):
        with pytest.raises(ValueError, match=r"Expected inputs \[T, N, 5\]"):
            mlp_adapt(theta, rates, other, *rest, [5, 2], compiled=compiled)
    assert mlp_adapt(theta, rates, inputs, *rest, [5, 2]).of_rates.shape == (0,)  # asked for by name alone
