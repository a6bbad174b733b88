"""The Triton kernel: every program updates one block of one task."""

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 1024
OPTIONS = ("FACTORS", "DECAY", "BUFFER", "MOMENTUM")
COMPILER = {"num_warps": 4, "num_stages": 1, "enable_fp_fusion": True}


@triton.jit(do_not_specialize=["P", "blocks", "weight_decay", "momentum"])
def sgd_update_kernel(
    p_phi,
    p_gradient,
    p_rate,
    p_factors,
    p_buffer,
    p_out,
    p_buffer_out,
    P,
    blocks,
    phi_stride,  # 0 where all tasks start from the shared theta
    rate_stride,  # 0 where one rate serves all elements
    weight_decay,
    momentum,
    FACTORS: tl.constexpr,
    DECAY: tl.constexpr,
    BUFFER: tl.constexpr,  # whether there is one from the step before
    MOMENTUM: tl.constexpr,
    BLOCK: tl.constexpr,
):
    program = tl.program_id(0)
    i_task = (program // blocks).to(tl.int64)  # T * P may exceed 2^31
    o_block = (program % blocks).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    m_block = o_block < P
    o_task = i_task * P + o_block
    b_phi = tl.load(p_phi + i_task * phi_stride + o_block, mask=m_block)
    b_gradient = tl.load(p_gradient + o_task, mask=m_block)
    b_rate = tl.load(p_rate + o_block * rate_stride, mask=m_block)
    if FACTORS:
        b_gradient *= tl.load(p_factors + i_task)
    if DECAY:
        b_gradient += weight_decay * b_phi
    if BUFFER:
        b_gradient += momentum * tl.load(p_buffer + o_task, mask=m_block)
    if MOMENTUM:
        tl.store(p_buffer_out + o_task, b_gradient, mask=m_block)
    tl.store(p_out + o_task, b_phi - b_rate * b_gradient, mask=m_block)


def launch(
    phi: Tensor,
    gradient: Tensor,
    rate: Tensor,
    factors: Tensor | None = None,
    weight_decay: float = 0.0,
    buffer: Tensor | None = None,
    momentum: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """As the operator (``op.py``); the second result is empty without momentum."""
    tasks, P = gradient.shape
    given = (phi, gradient, rate, phi if factors is None else factors, phi if buffer is None else buffer)
    operands = [value.contiguous() for value in given]
    out = torch.empty_like(gradient)
    buffer_out = torch.empty_like(gradient) if momentum else gradient.new_empty(0)
    blocks = triton.cdiv(P, BLOCK)
    phi_stride, rate_stride = P if phi.ndim == 2 else 0, rate.ndim
    numbers = (P, blocks, phi_stride, rate_stride, weight_decay, momentum)
    chosen = (factors is not None, weight_decay != 0, buffer is not None, momentum != 0)
    sgd_update_kernel[(tasks * blocks,)](
        *operands, out, buffer_out if momentum else out, *numbers, *chosen, BLOCK=BLOCK, **COMPILER
    )
    return out, buffer_out
