"""What C is told by Python: the sizes of structures, limits, and the numbers of names; nobody takes one for another."""

from __future__ import annotations

import ctypes
import re
from functools import partial
from typing import Any

import pytest
import test_kernels_conv_adapt as convolutional
import test_kernels_mlp_adapt as perceptrons
import test_kernels_policy_gradient as policies
import torch

from lightning_maml.kernels import compiler
from lightning_maml.kernels.conv_adapt import native as conv_adapt
from lightning_maml.kernels.mlp_adapt import naive as mlp_formula
from lightning_maml.kernels.mlp_adapt import native as mlp_adapt
from lightning_maml.kernels.mlp_adapt import recursion
from lightning_maml.kernels.policy_gradient import naive as policy_formula
from lightning_maml.kernels.policy_gradient import native as policy_gradient

NATIVES = {"mlp_adapt": mlp_adapt, "conv_adapt": conv_adapt, "policy_gradient": policy_gradient}
NETWORK = convolutional.NETWORKS["no bias"]


def call(operator: str, **changed: Any) -> Any:
    """An operator's C on a small problem, always the same, past what checks its arguments."""
    torch.manual_seed(0)
    if operator == "mlp_adapt":
        arguments = perceptrons.operands([3, 4, 2], "mse", tasks=2)
        kind = {"activation": "tanh", "loss": "mse", "order": 2, "rates_grad": True}
        return mlp_adapt.adapt(*arguments, kind=([3, 4, 2], *{**kind, **changed}.values()))
    if operator == "conv_adapt":
        kind = {"loss": "mse", "order": 2, "rates_grad": True}
        return conv_adapt.adapt(*convolutional.operands(NETWORK, "mse", tasks=2), NETWORK, **{**kind, **changed})
    phi, *rows = policies.operands([3, 4, 2], "gaussian")
    kind = {"activation": "tanh", "distribution": "gaussian", "kind": "ratio"}
    return (policy_gradient.run(phi, None, *rows, [3, 4, 2], **{**kind, **changed}),)


@pytest.mark.parametrize("operator", NATIVES)
def test_a_structure_of_another_size_is_refused(operator, monkeypatch):
    """Or C would read past its end, or pointers from the wrong places."""
    native = NATIVES[operator]

    class Longer(native._Problem):
        _fields_ = [("more", ctypes.c_int64)]  # noqa: RUF012

    monkeypatch.setattr(native, "_Problem", Longer)
    bytes_of = ctypes.sizeof(Longer)
    reason = f"the problem of native.c has {bytes_of - 8} bytes where Python's has {bytes_of}"
    assert native.unavailable() == reason
    with pytest.raises(RuntimeError, match=f"Expected to compile `{operator}` but {reason}"):
        call(operator)


@pytest.mark.parametrize(
    "operator,table,argument",
    [
        ("mlp_adapt", "ACTIVATIONS", "activation"),
        ("mlp_adapt", "LOSSES", "loss"),
        ("mlp_adapt", None, "order"),
        ("conv_adapt", "LOSSES", "loss"),
        ("conv_adapt", None, "order"),
        ("policy_gradient", "ACTIVATIONS", "activation"),
        ("policy_gradient", "DISTRIBUTIONS", "distribution"),
        ("policy_gradient", "KINDS", "kind"),
    ],
)
def test_a_number_that_c_has_no_name_for_runs_as_no_other(operator, table, argument, monkeypatch):
    if table:
        monkeypatch.setattr(NATIVES[operator], table, (*getattr(NATIVES[operator], table), "unheard of"))
    with pytest.raises(RuntimeError, match="Expected names and sizes that the C source was compiled for"):
        call(operator, **{argument: "unheard of" if table else 3})


@pytest.mark.parametrize("operator", NATIVES)
def test_names_are_numbered_in_python_alone(operator, monkeypatch, tmp_path):
    native, expected = NATIVES[operator], call(operator)

    class Turned(native._Problem):
        constants = {  # noqa: RUF012
            name: value if isinstance(value, int) else value[::-1] for name, value in native._Problem.constants.items()
        }

    monkeypatch.setenv("LIGHTNING_MAML_CACHE", str(tmp_path))
    monkeypatch.setattr(native, "_Problem", Turned)
    for name, value in Turned.constants.items():
        if not isinstance(value, int):
            monkeypatch.setattr(native, name, value)
    for found, wanted in zip(call(operator), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("operator", NATIVES)
def test_a_name_without_a_case_does_not_compile(operator, monkeypatch, tmp_path):
    native = NATIVES[operator]
    tables = {name: value for name, value in native._Problem.constants.items() if not isinstance(value, int)}

    class More(native._Problem):
        constants = {  # noqa: RUF012
            **native._Problem.constants,
            **{name: (*value, f"new_of_{name}") for name, value in tables.items()},
        }

    monkeypatch.setenv("LIGHTNING_MAML_CACHE", str(tmp_path))
    monkeypatch.setattr(compiler, "CHOICES", ([],))
    reason = compiler.load(native.SOURCE, torch.float64, More)
    assert isinstance(reason, str)
    for name in tables:
        assert re.search(f"NEW_OF_{name}.{{,3}} not handled in switch", reason), reason
    assert not list(tmp_path.iterdir())


def test_limits_are_pythons(monkeypatch, tmp_path):
    monkeypatch.setenv("LIGHTNING_MAML_CACHE", str(tmp_path))
    assert NETWORK.blocks == 2
    expected = call("conv_adapt")
    for most in (2, 1):

        class Limited(conv_adapt._Problem):
            constants = {**conv_adapt._Problem.constants, "LAYERS": most}  # noqa: RUF012

        monkeypatch.setattr(conv_adapt, "_Problem", Limited)
        if most == 2:
            assert all(torch.equal(a, b) for a, b in zip(call("conv_adapt"), expected, strict=True))
    with pytest.raises(RuntimeError, match="names and sizes"):
        call("conv_adapt")


def test_what_python_has_no_case_for_is_refused():
    arguments = perceptrons.operands([3, 4, 2], "mse")
    logits = torch.zeros(1, 2, 3)
    for unknown in (
        partial(mlp_formula.mlp_adapt, *arguments, [3, 4, 2], "tanh", "hinge", 2),
        partial(recursion.adapt, *arguments, kind=([3, 4, 2], "tanh", "hinge", 2, False)),
        partial(recursion._losses, logits, logits, "hinge"),
        partial(recursion._delta_tangent, logits, logits, "hinge", logits),
    ):
        with pytest.raises(ValueError, match=r"Expected `loss` to be one of .* but got 'hinge'"):
            unknown()
    arguments = policies.operands([2, 5, 3], "gaussian")
    for kind, name in (("beta", "ratio"), "distribution"), (("gaussian", "dice"), "kind"):
        with pytest.raises(ValueError, match=f"Expected `{name}` to be one of"):
            policy_formula.policy_gradient(*arguments, [2, 5, 3], "tanh", *kind)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs Triton's interpreter")
@pytest.mark.parametrize("change", [{"activation": "swish"}, {"loss": "hinge"}, {"order": 3}], ids=str)
def test_what_a_kernel_has_no_case_for_is_refused(change):
    kernel_of = {"activation": "relu", "loss": "mse", **change}
    with pytest.raises(Exception, match=f"Expected a known {next(iter(change)).upper()}"):
        perceptrons.launch(perceptrons.operands([2, 3], "mse", tasks=1, steps=1), [2, 3], **kernel_of)


@pytest.mark.parametrize(
    "script,reason",
    [
        ("sleep 60", "cc --version did not end within 0.3 s"),
        ('[ "$1" = --version ] || sleep 60', r"-lm did not end within 0.3 s"),
        (r"printf '\377\376 is no UTF-8' >&2; exit 1", "(?s)failed:.*\ufffd\ufffd is no UTF-8"),
    ],
)
def test_a_compiler_that_hangs_or_babbles_is_a_reason(script, reason, monkeypatch, tmp_path):
    path = tmp_path / "cc"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    monkeypatch.setenv("LIGHTNING_MAML_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("CC", str(path))
    monkeypatch.setattr(compiler, "PATIENCE", 0.3)
    compiler.load.cache_clear()
    try:
        assert re.search(reason, str(mlp_adapt.unavailable()))
        assert not list((tmp_path / "cache").glob("*"))
    finally:
        compiler.load.cache_clear()
