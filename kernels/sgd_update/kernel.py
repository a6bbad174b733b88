"""The Triton kernel: every program updates one block of one task."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

__all__ = ["BLOCK", "COMPILER", "launch", "sgd_update_kernel"]

BLOCK = 1024
COMPILER = {"num_warps": 4, "num_stages": 1, "enable_fp_fusion": True}


@triton.jit(do_not_specialize=["P", "blocks"])
def sgd_update_kernel(
    p_phi,
    p_gradient,
    p_rate,
    p_out,
    P,
    blocks,
    phi_stride,  # 0 where all tasks start from the shared theta
    rate_stride,  # 0 where one rate serves all elements
    BLOCK: tl.constexpr,
):
    program = tl.program_id(0)
    i_task = (program // blocks).to(tl.int64)  # T * P may exceed 2^31
    o_block = (program % blocks).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    m_block = o_block < P
    b_phi = tl.load(p_phi + i_task * phi_stride + o_block, mask=m_block)
    b_gradient = tl.load(p_gradient + i_task * P + o_block, mask=m_block)
    b_rate = tl.load(p_rate + o_block * rate_stride, mask=m_block)
    tl.store(p_out + i_task * P + o_block, b_phi - b_rate * b_gradient, mask=m_block)


def launch(phi: Tensor, gradient: Tensor, rate: Tensor) -> Tensor:
    """``phi [T, P]`` or ``[P]``, ``gradient [T, P]``, ``rate []`` or ``[P]`` -> ``[T, P]``."""
    tasks, P = gradient.shape
    phi, gradient, rate = phi.contiguous(), gradient.contiguous(), rate.contiguous()
    out = torch.empty_like(gradient)
    blocks = triton.cdiv(P, BLOCK)
    phi_stride, rate_stride = P if phi.ndim == 2 else 0, rate.ndim
    sgd_update_kernel[(tasks * blocks,)](
        phi, gradient, rate, out, P, blocks, phi_stride, rate_stride, BLOCK, **COMPILER
    )
    return out
