"""Small kernels with known verdicts."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from lightning_maml.kernels.emulator import Emulation


@triton.jit
def shift(p_in, p_scratch, p_out, BARRIER: tl.constexpr, BLOCK: tl.constexpr):
    """Every element is read by the thread that holds its neighbour of 64 further on: another warp."""
    o = tl.arange(0, BLOCK)
    tl.store(p_scratch + o, tl.load(p_in + o) * 2)
    if BARRIER:
        tl.debug_barrier()
    tl.store(p_out + o, tl.load(p_scratch + (o + 64) % BLOCK))


@triton.jit
def back(p_in, p_scratch, p_out):
    """What one warp has read, another overwrites, without a barrier between them."""
    o = tl.arange(0, 128)
    tl.store(p_scratch + o, tl.load(p_in + o))
    tl.debug_barrier()
    b_other = tl.load(p_scratch + (o + 64) % 128)
    tl.store(p_scratch + o, b_other + 1)


@triton.jit
def twice(p_in, p_scratch, p_out):
    """Two warps write one place, other values each."""
    o = tl.arange(0, 128)
    tl.store(p_out + o % 64, tl.load(p_in + o))


@triton.jit
def lanes(p_in, p_scratch, p_out):
    """Two lanes of a warp write one place in one instruction, other values each."""
    o = tl.arange(0, 128)
    tl.store(p_out + o % 16 + o // 32 * 32, tl.load(p_in + o))


@triton.jit
def meet(p_in, p_scratch, p_out):
    """All programs write the same place."""
    o = tl.arange(0, 128)
    tl.store(p_scratch + o, tl.load(p_in + o) * (1 + tl.program_id(0)))


@triton.jit
def outside(p_in, p_scratch, p_out):
    o = tl.arange(0, 128)
    tl.store(p_out + o, tl.load(p_in + o + 1))


@triton.jit
def before(p_in, p_scratch, p_out):
    o = tl.arange(0, 128)
    tl.store(p_out + o - 1, tl.load(p_in + o))


@triton.jit
def unwritten(p_in, p_scratch, p_out):
    o = tl.arange(0, 128)
    tl.store(p_out + o, tl.load(p_scratch + o))


@triton.jit
def onto_input(p_in, p_scratch, p_out):
    o = tl.arange(0, 128)
    tl.store(p_in + o, tl.load(p_in + o) + 1)


@triton.jit
def product(p_a, p_b, p_out, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr, PRECISION: tl.constexpr):
    """``A @ B.T``, rows divided by their sums: a product, other layouts, reductions over lanes and over warps."""
    m, n, k = tl.arange(0, M), tl.arange(0, N), tl.arange(0, K)
    a = tl.load(p_a + m[:, None] * K + k[None, :])
    b = tl.load(p_b + n[None, :] * K + k[:, None])
    if PRECISION == "bf16":
        c = tl.dot(a.to(tl.bfloat16), b.to(tl.bfloat16))
    else:
        c = tl.dot(a, b, input_precision=PRECISION)
    c = c / tl.sum(c, 1)[:, None] + tl.max(c, 0)[None, :]
    tl.store(p_out + m[:, None] * N + n[None, :], c)


def verdict(
    kernel: str, schedule: str | int = "forward", programs: int = 1, **constants: int
) -> tuple[list[str], list[str]]:
    """Faults of a kernel of this file, and remarks."""
    x = torch.arange(128.0)
    with Emulation(80, schedule, megabytes=2) as emulation:
        globals()[kernel][(programs,)](x, x.new_empty(128), x.new_empty(128), **constants, num_warps=4)
    return emulation.faults(), emulation.remarks()


def of_product(arch: int, precision: str, warps: int) -> tuple[float, list[str]]:
    """Its error, of the largest number, and its faults."""
    a, b = (torch.rand(rows, 32, generator=torch.Generator().manual_seed(rows)) for rows in (16, 64))
    with Emulation(arch, 1, megabytes=2) as emulation:
        out = a.new_empty(16, 64)
        product[(1,)](a, b, out, 16, 64, 32, precision, num_warps=warps)
    c = a.double() @ b.double().T
    wanted = c / c.sum(1, keepdim=True) + c.max(0).values
    return float((out - wanted).abs().max() / wanted.abs().max()), emulation.faults()
