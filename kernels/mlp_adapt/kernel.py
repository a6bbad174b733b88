"""The Triton kernels: one program adapts one task, a second launch takes the meta-gradient back through its steps.

All operands lie in memory, which for one task is a few kilobytes and stays in the L1 and L2 caches: registers hold one
tile of a result and one slice of its operands, whatever the size of the network, so that many programs share a
multiprocessor and hide each other's latency. Layers are a loop over a small table of widths and offsets: the same code
for any depth. Threads of a program meet at a barrier wherever one reads what another wrote.

Weights are matrices ``[in + 1, out]`` with the bias as the last row (``layout.py``).
"""

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from lightning_maml.kernels.adaptation import Adaptation, room
from lightning_maml.kernels.mlp_adapt.layout import FROM_SUMS, Kind, in_torchs_order, into_matrices
from lightning_maml.kernels.mlp_adapt.products import (
    activation_of,
    add_back,
    add_forward,
    add_gradient,
    bend_of,
    elements_of,
    layer_of,
    loss_of,
    loss_tangent_of,
    slope_of,
    tile_of,
)

COMPILER = {"num_warps": 4, "num_stages": 1, "maxnreg": 128, "enable_fp_fusion": True}
"""128 registers: four programs of four warps share a multiprocessor."""
SCRATCH_NUMBERS = 1 << 29
"""Tasks are launched in chunks of at most this many numbers of scratch, 2 GiB."""
_RUNTIME = ["P", "S", "layers", "steps", "rows", "queries", "rate_step", "rate_stride"]


@triton.jit(do_not_specialize=_RUNTIME)
def mlp_forward(
    p_theta,  # [P]
    p_rates,  # [m, 1] or [m, P]
    p_support_inputs,  # [T, N, in]
    p_support_targets,  # [T, N, out], labels [T, N]
    p_query_inputs,  # [T, Nq, in]
    p_query_targets,
    p_table,  # [layers + 1, 3]: width, start of the matrix behind, start of the activations
    p_path,  # [T, m, P]: the parameters after each step, the memory of the weights
    p_tape,  # [T, m + 1, SECTIONS, S]: activations, gradients at the sums (GELU: sums, gradients at the activations)
    p_v,  # [T, P]: the gradient of the task's query loss at the last parameters
    p_u,  # [T, 2, P]: the same times the last rate
    p_support_losses,  # [T, m + 1]
    p_task_losses,  # [T]
    p_predictions,  # [T, Nq, out]
    P, S, layers, steps, rows, queries, rate_step, rate_stride,
    ACTIVATION: tl.constexpr, LOSS: tl.constexpr, QUERY: tl.constexpr, PRECISION: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    FROM_SUM: tl.constexpr = ACTIVATION == "gelu" or ACTIVATION == "silu"
    SECTIONS: tl.constexpr = 4 if FROM_SUM else 2
    i_task = tl.program_id(0).to(tl.int64)
    inputs = tl.load(p_table)
    classes = tl.load(p_table + 3 * layers)
    last = tl.load(p_table + 3 * layers + 2)
    # the inner steps, the support set once more, then the query set
    for i_pass in range(steps + 1 + QUERY):
        step = tl.minimum(i_pass, steps)
        n = rows
        p_inputs = p_support_inputs + i_task * rows * inputs
        p_targets = p_support_targets + i_task * rows * (1 if LOSS == "cross_entropy" else classes)
        if i_pass > steps:
            n = queries
            p_inputs = p_query_inputs + i_task * queries * inputs
            p_targets = p_query_targets + i_task * queries * (1 if LOSS == "cross_entropy" else classes)
        p_phi = p_theta
        if step > 0:
            p_phi = p_path + (i_task * steps + step - 1) * P
        p_rows = p_tape + (i_task * (steps + 1) + step) * SECTIONS * S
        p_deltas = p_rows + S

        for layer in range(layers):
            ins, outs, o_matrix, o_in, o_out, p_from = layer_of(p_table, layer, p_inputs, p_rows)
            for start_row in range(0, n, BM):
                for start_column in range(0, outs, BN):
                    tile, b_sum = tile_of(start_row, start_column, BM, BN)
                    b_sum = add_forward(b_sum, p_from, p_phi + o_matrix, n, ins, outs, tile, 1, PRECISION, BK)
                    m_tile, o_tile = elements_of(tile, n, outs, o_out)
                    if FROM_SUM:
                        tl.store(p_rows + 2 * S + o_tile, b_sum, mask=m_tile)
                    # no branch for the logits: Triton 3.9 fails to compile one around GELU
                    b_sum = tl.where(layer + 1 < layers, activation_of(b_sum, ACTIVATION), b_sum)
                    tl.store(p_rows + o_tile, b_sum, mask=m_tile)
            tl.debug_barrier()

        terms = n if LOSS == "cross_entropy" else n * classes
        total = tl.zeros((), tl.float32)
        for start_row in range(0, n, BM):
            tile, _ = tile_of(start_row, 0, BM, BC)
            m_tile, o_tile = elements_of(tile, n, classes, 0)
            b_logits = tl.load(p_rows + last + o_tile, mask=m_tile, other=0.0)
            part, b_delta = loss_of(b_logits, p_targets, tile, m_tile, n, classes, LOSS)
            total += part
            tl.store(p_deltas + last + o_tile, b_delta / terms, mask=m_tile)
            if i_pass > steps:
                tl.store(p_predictions + i_task * queries * classes + o_tile, b_logits, mask=m_tile)
        if i_pass > steps:
            tl.store(p_task_losses + i_task, total / terms)
        else:
            tl.store(p_support_losses + i_task * (steps + 1) + step, total / terms)
        tl.debug_barrier()

        if i_pass != steps:
            for back in range(1, layers):
                layer = layers - back
                ins, outs, o_matrix, o_in, o_out, _ = layer_of(p_table, layer, p_inputs, p_rows)
                for start_row in range(0, n, BM):
                    for start_column in range(0, ins, BN):
                        tile, b_sum = tile_of(start_row, start_column, BM, BN)
                        b_sum = add_back(b_sum, p_deltas + o_out, p_phi + o_matrix, n, ins, outs, tile, PRECISION, BK)
                        m_tile, o_tile = elements_of(tile, n, ins, o_in)
                        if FROM_SUM:
                            tl.store(p_rows + 3 * S + o_tile, b_sum, mask=m_tile)
                            b_from = tl.load(p_rows + 2 * S + o_tile, mask=m_tile, other=0.0)
                        else:
                            b_from = tl.load(p_rows + o_tile, mask=m_tile, other=0.0)
                        tl.store(p_deltas + o_tile, b_sum * slope_of(b_from, ACTIVATION), mask=m_tile)
                tl.debug_barrier()

            for layer in range(layers):
                ins, outs, o_matrix, o_in, o_out, p_from = layer_of(p_table, layer, p_inputs, p_rows)
                for start_row in range(0, ins + 1, BM):
                    for start_column in range(0, outs, BN):
                        tile, b_sum = tile_of(start_row, start_column, BM, BN)
                        b_sum = add_gradient(b_sum, p_from, p_deltas + o_out, n, ins, outs, tile, 1, PRECISION, BK)
                        m_tile, o_tile = elements_of(tile, ins + 1, outs, o_matrix)
                        if i_pass < steps:
                            b_rate = tl.load(p_rates + step * rate_step + o_tile * rate_stride, mask=m_tile, other=0.0)
                            b_phi = tl.load(p_phi + o_tile, mask=m_tile, other=0.0)
                            p_next = p_path + (i_task * steps + step) * P
                            tl.store(p_next + o_tile, b_phi - b_rate * b_sum, mask=m_tile)
                        else:
                            m_rate = m_tile & (o_tile < P * steps)  # none where there are no steps
                            o_rate = (steps - 1) * rate_step + o_tile * rate_stride
                            b_rate = tl.load(p_rates + o_rate, mask=m_rate, other=0.0)
                            tl.store(p_v + i_task * P + o_tile, b_sum, mask=m_tile)
                            tl.store(p_u + i_task * 2 * P + o_tile, b_rate * b_sum, mask=m_tile)
            tl.debug_barrier()


@triton.jit(do_not_specialize=_RUNTIME)
def mlp_backward(
    p_theta,
    p_rates,
    p_support_inputs,
    p_table,
    p_path,
    p_tape,
    p_v,  # [T, P]: comes in at the last parameters, leaves at the first
    p_u,  # [T, 2, P]: v times the rate of the step, in turns
    p_tangents,  # [T, 3, S]: tangents of the activations, of the gradients at the sums, of the sums
    p_of_rates,  # [T, m] or [T, m, P]
    P, S, layers, steps, rows, queries, rate_step, rate_stride,
    ACTIVATION: tl.constexpr, LOSS: tl.constexpr, ORDER: tl.constexpr,
    RATES_GRAD: tl.constexpr,  # 0: none, 1: one a step, 2: one for each element
    PRECISION: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    FROM_SUM: tl.constexpr = ACTIVATION == "gelu" or ACTIVATION == "silu"
    SECTIONS: tl.constexpr = 4 if FROM_SUM else 2
    tl.static_assert(ORDER == 1 or ORDER == 2, "Expected a known ORDER")
    CURVED: tl.constexpr = FROM_SUM or ACTIVATION == "tanh"
    i_task = tl.program_id(0).to(tl.int64)
    inputs = tl.load(p_table)
    classes = tl.load(p_table + 3 * layers)
    last = tl.load(p_table + 3 * layers + 2)
    n = rows
    p_inputs = p_support_inputs + i_task * rows * inputs
    p_row_tangents = p_tangents + i_task * 3 * S
    p_delta_tangents = p_row_tangents + S
    p_sum_tangents = p_row_tangents + 2 * S
    for back_step in range(steps):
        step = steps - 1 - back_step
        p_phi = p_theta
        if step > 0:
            p_phi = p_path + (i_task * steps + step - 1) * P
        p_rows = p_tape + (i_task * (steps + 1) + step) * SECTIONS * S
        p_deltas = p_rows + S
        p_direction = p_u + (i_task * 2 + back_step % 2) * P
        p_next = p_u + (i_task * 2 + (back_step + 1) % 2) * P

        if ORDER == 2:
            for layer in range(layers):
                ins, outs, o_matrix, o_in, o_out, p_from = layer_of(p_table, layer, p_inputs, p_rows)
                for start_row in range(0, n, BM):
                    for start_column in range(0, outs, BN):
                        tile, b_sum = tile_of(start_row, start_column, BM, BN)
                        b_sum = add_forward(b_sum, p_from, p_direction + o_matrix, n, ins, outs, tile, 1, PRECISION, BK)
                        if layer > 0:
                            b_sum = add_forward(
                                b_sum, p_row_tangents + o_in, p_phi + o_matrix, n, ins, outs, tile, 0, PRECISION, BK
                            )
                        m_tile, o_tile = elements_of(tile, n, outs, o_out)
                        if CURVED:
                            tl.store(p_sum_tangents + o_tile, b_sum, mask=m_tile)
                        p_slope = p_rows + 2 * S if FROM_SUM else p_rows
                        b_from = tl.load(p_slope + o_tile, mask=m_tile, other=0.0)
                        b_sum = tl.where(layer + 1 < layers, b_sum * slope_of(b_from, ACTIVATION), b_sum)
                        tl.store(p_row_tangents + o_tile, b_sum, mask=m_tile)
                tl.debug_barrier()

            terms = n if LOSS == "cross_entropy" else n * classes
            for start_row in range(0, n, BM):
                tile, _ = tile_of(start_row, 0, BM, BC)
                m_tile, o_tile = elements_of(tile, n, classes, last)
                b_logits = tl.load(p_rows + o_tile, mask=m_tile, other=0.0)
                b_tangent = tl.load(p_row_tangents + o_tile, mask=m_tile, other=0.0)
                b_delta = loss_tangent_of(b_logits, b_tangent, tile, classes, LOSS) / terms
                tl.store(p_delta_tangents + o_tile, b_delta, mask=m_tile)
            tl.debug_barrier()

            for back in range(1, layers):
                layer = layers - back
                ins, outs, o_matrix, o_in, o_out, _ = layer_of(p_table, layer, p_inputs, p_rows)
                for start_row in range(0, n, BM):
                    for start_column in range(0, ins, BN):
                        tile, b_sum = tile_of(start_row, start_column, BM, BN)
                        b_sum = add_back(
                            b_sum, p_delta_tangents + o_out, p_phi + o_matrix, n, ins, outs, tile, PRECISION, BK
                        )
                        b_sum = add_back(
                            b_sum, p_deltas + o_out, p_direction + o_matrix, n, ins, outs, tile, PRECISION, BK
                        )
                        m_tile, o_tile = elements_of(tile, n, ins, o_in)
                        p_slope = p_rows + 2 * S if FROM_SUM else p_rows
                        b_from = tl.load(p_slope + o_tile, mask=m_tile, other=0.0)
                        b_sum = b_sum * slope_of(b_from, ACTIVATION)
                        if CURVED:
                            b_bend = tl.load(p_sum_tangents + o_tile, mask=m_tile, other=0.0)
                            if FROM_SUM:
                                b_upstream = tl.load(p_rows + 3 * S + o_tile, mask=m_tile, other=0.0)
                                b_sum += bend_of(b_from, ACTIVATION) * b_upstream * b_bend
                            else:
                                b_delta = tl.load(p_deltas + o_tile, mask=m_tile, other=0.0)
                                b_sum -= 2.0 * b_from * b_delta * b_bend
                        tl.store(p_delta_tangents + o_tile, b_sum, mask=m_tile)
                tl.debug_barrier()

        of_rate = tl.zeros((), tl.float32)
        for layer in range(layers):
            ins, outs, o_matrix, o_in, o_out, p_from = layer_of(p_table, layer, p_inputs, p_rows)
            for start_row in range(0, ins + 1, BM):
                for start_column in range(0, outs, BN):
                    tile, b_zeros = tile_of(start_row, start_column, BM, BN)
                    m_tile, o_tile = elements_of(tile, ins + 1, outs, o_matrix)
                    b_v = tl.load(p_v + i_task * P + o_tile, mask=m_tile, other=0.0)
                    if RATES_GRAD > 0:
                        b_sum = add_gradient(b_zeros, p_from, p_deltas + o_out, n, ins, outs, tile, 1, PRECISION, BK)
                        b_sum = tl.where(m_tile, -b_sum * b_v, 0.0)
                        if RATES_GRAD == 2:
                            tl.store(p_of_rates + (i_task * steps + step) * P + o_tile, b_sum, mask=m_tile)
                        else:
                            of_rate += tl.sum(tl.sum(b_sum, 1), 0)
                    if ORDER == 2:
                        b_sum = add_gradient(
                            b_zeros, p_from, p_delta_tangents + o_out, n, ins, outs, tile, 1, PRECISION, BK
                        )
                        if layer > 0:
                            b_sum = add_gradient(
                                b_sum, p_row_tangents + o_in, p_deltas + o_out, n, ins, outs, tile, 0, PRECISION, BK
                            )
                        b_v -= b_sum
                        tl.store(p_v + i_task * P + o_tile, b_v, mask=m_tile)
                        m_rate = m_tile & (o_tile < P * step)
                        o_rate = (step - 1) * rate_step + o_tile * rate_stride
                        b_rate = tl.load(p_rates + o_rate, mask=m_rate, other=0.0)
                        tl.store(p_next + o_tile, b_rate * b_v, mask=m_tile)
        if RATES_GRAD == 1:
            tl.store(p_of_rates + i_task * steps + step, of_rate)
        tl.debug_barrier()


def options(widths: Sequence[int], precision: str) -> dict[str, int | str]:
    """The sizes of the tiles for a network."""
    return {
        "PRECISION": precision,
        "BM": 16,  # rows: the fewest that a tensor core takes
        "BN": 32 if max(widths[1:]) <= 32 else 64,
        "BK": 16,
        "BC": max(16, triton.next_power_of_2(widths[-1])),
    }


@cache  # a copy to the device takes longer than a kernel, and has no place in a CUDA graph, which reads this for good
def _table(widths: tuple[int, ...], rows: int, device: torch.device) -> Tensor:
    """Of each layer ``[layers + 1, 3]``: width, start of the matrix behind it, start of its activations."""
    entries, matrix, activations = [], 0, 0
    for index, (width, following) in enumerate(zip(widths, (*widths[1:], 0), strict=True)):
        entries.append([width, matrix, activations])
        matrix += (width + 1) * following
        activations += rows * width if index > 0 else 0  # the inputs lie elsewhere
    return torch.tensor(entries, dtype=torch.int32, device=device)


def launch(theta: Tensor, rates: Tensor, *sets: Any, kind: Kind, precision: str) -> Adaptation:
    """As the operator (``op.py``); without a query set, the trajectory ``[T, m, P]`` and the support losses alone."""
    widths, activation, loss, order, rates_grad = kind
    query_inputs = sets[2]
    with_query = query_inputs is not None
    given = sets if with_query else sets[:2] * 2
    batch = [tensor.to(theta.dtype).contiguous() for tensor in given]  # labels too: up to 128 classes are exact
    theta, rates = (into_matrices(value, widths).contiguous() for value in (theta, rates))
    tasks, rows = batch[0].shape[:2]
    queries = batch[2].shape[1]
    P, steps, longest = theta.numel(), len(rates), max(rows, queries)
    S, sections = longest * sum(widths[1:]), 4 if activation in FROM_SUMS else 2
    table = _table(tuple(widths), longest, theta.device)
    each = (steps + 1) * (sections * S + P) + 3 * S + 3 * P + (steps * P if rates_grad else 0)
    chunk = max(1, min(tasks, SCRATCH_NUMBERS // each))
    result = room(theta, rates, batch[0], query_inputs, widths[-1], rates_grad)
    of_theta, of_rates = result.of_theta.zero_(), result.of_rates.zero_()
    path = theta.new_empty(chunk, steps, P) if with_query else result.trajectory
    tape = theta.new_empty(chunk, steps + 1, sections, S)
    v, u = theta.new_empty(chunk, P), theta.new_empty(chunk, 2, P)
    sizes = (P, S, len(widths) - 1, steps, rows, queries, rates.stride(0), int(rates.shape[1] > 1))
    kinds = {"ACTIVATION": activation, "LOSS": loss, **options(widths, precision), **COMPILER}
    for start in range(0, tasks, chunk):
        part = slice(start, min(start + chunk, tasks))
        count = part.stop - start
        x, y, xq, yq = (tensor[part] for tensor in batch)
        where = path if with_query else path[part]
        outputs = (result.support_losses[part], result.task_losses[part], result.predictions[part])
        mlp_forward[(count,)](
            theta, rates, x, y, xq, yq, table, where, tape, v, u, *outputs, *sizes, QUERY=int(with_query), **kinds
        )
        if with_query and steps and (order == 2 or rates_grad):
            per_step = theta.new_empty(count, *of_rates.shape) if rates_grad else of_rates
            of_kind = 0 if not rates_grad else 1 if rates.shape[1] == 1 else 2
            tangents = theta.new_empty(count, 3, S) if order == 2 else v
            mlp_backward[(count,)](
                theta, rates, x, table, path, tape, v, u, tangents, per_step, *sizes,
                ORDER=order, RATES_GRAD=of_kind, **kinds,
            )  # fmt: skip
            if rates_grad:
                of_rates += per_step.sum(0) / tasks
        if with_query:
            of_theta += v[:count].sum(0) / tasks
    return in_torchs_order(result, widths)
