"""The Triton kernels: a layer forward, the head and the loss, a layer's two products back, a step of the parameters.

One program has some rows of a task's layer, or some columns. Each product's operands are gathered from where they
lie, so that no patches are in memory; what stands between two convolutions happens where an operand is loaded or a
result stored: batch-norm, ReLU and pooling have no launch of their own, and no array. Sums over a task's rows are kept
in parts, which the next launch adds up in their order.

With ``TANGENT`` a kernel is of the tangents in the direction u, by README.md's formulas: ``p_*2`` are tangents, and
what has no 2 was left by the pass without. Parameters lie as ``layout.places_of`` says, in one block of all filters.
"""

import triton
import triton.language as tl

from lightning_maml.kernels.conv_adapt.tiles import (
    affine_of,
    dot,
    in_windows,
    is_chosen,
    largest,
    means_of,
    moments_of,
    place_of,
    rectified,
    row_of,
    store_sums,
    sums_of,
    windows_of,
)
from lightning_maml.kernels.mlp_adapt.products import loss_of, loss_tangent_of

_SIZES = ["images", "height", "width", "in_high", "in_wide", "to_height", "to_width"]
_PARTS = ["part_rows", "parts", "in_parts", "own_parts", "out_parts", "groups", "spans", "most_parts"]
_PLACES = ["phi_stride", "P", "o_weight", "o_gamma", "o_in_gamma", "ways", "layers", "blocks"]
_STEPS = ["base_stride", "out_stride", "kept_stride", "rate_stride", "loss_stride", "target_stride"]
RUNTIME = [*_SIZES, *_PARTS, *_PLACES, *_STEPS, "in_total", "total", "eps"]
ANYWHERE = ["p_phi", "p_u", "p_targets", "p_logits", "p_losses", "p_base", "p_rates", "p_out", "p_kept"]
"""Of a step or a task, so that addresses are no multiples of 16: a kernel is not compiled anew for those that are."""


@triton.jit
def _active(
    p_z, p_z2, o_z, m_z, b_mean, b_inverse, b_gamma, b_beta, b_mean2, b_along, b_gamma2, b_beta2, TANGENT: tl.constexpr
):
    """After norm and ReLU, and the tangents: 0 where there is no z."""
    b_z = tl.load(p_z + o_z, mask=m_z, other=0.0)
    b_normal = (b_z - b_mean) * b_inverse
    b_y = b_gamma * b_normal + b_beta
    b_active = tl.where(m_z, rectified(b_y), 0.0)
    if TANGENT:
        b_z2 = tl.load(p_z2 + o_z, mask=m_z, other=0.0)
        b_tangent = b_inverse * (b_z2 - b_mean2 - b_normal * b_along)
        b_y2 = b_gamma2 * b_normal + b_gamma * b_tangent + b_beta2
        return b_active, tl.where(m_z & (b_y > 0), b_y2, 0.0)
    else:
        return b_active, b_active


@triton.jit(do_not_specialize=RUNTIME, do_not_specialize_on_alignment=ANYWHERE)
def conv_forward(
    p_x,  # images [T, N, IN, H, W], or the z chosen by the layer below [T, N, windows, IN]
    p_x2,
    p_x_moments,  # of the layer below, [T, in_parts, 2, IN] and [T, in_parts]
    p_x_sums2,  # [T, in_parts, 2, IN]: of its tangents, and of them times the normal z
    p_phi,
    p_u,
    p_z,  # [T, rows, OUT]
    p_z2,
    p_chosen,  # [T, windows, OUT], the same memory without pooling
    p_chosen2,
    p_moments,  # [T, parts, 2, OUT] and [T, parts]
    p_sums2,
    images, height, width, in_high, in_wide, to_height, to_width, part_rows, parts, in_parts, phi_stride, P,
    o_weight, o_gamma, o_in_gamma, in_total, total, eps,
    FIRST: tl.constexpr, TANGENT: tl.constexpr, NORM: tl.constexpr, STRIDE: tl.constexpr, SIDE: tl.constexpr,
    IN: tl.constexpr, OUT: tl.constexpr, PRECISION: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    COLUMNS: tl.constexpr = (OUT + BN - 1) // BN
    program = tl.program_id(0)
    part = program // COLUMNS % parts
    i_task = (program // (COLUMNS * parts)).to(tl.int64)
    o_out = program % COLUMNS * BN + tl.arange(0, BN)
    m_out = o_out < OUT
    windows = images * windows_of(to_height, SIDE) * windows_of(to_width, SIDE)
    rows = windows * (SIDE * SIDE)
    numbers_in = images * IN * (height * width if FIRST else in_high * in_wide)
    p_x += i_task * numbers_in
    p_x2 += i_task * numbers_in
    p_x_moments += i_task * in_parts * (2 * IN + 1)
    p_x_sums2 += i_task * in_parts * (2 * IN)
    p_phi += i_task * phi_stride
    p_u += i_task * P
    p_z += i_task * rows * OUT
    p_z2 += i_task * rows * OUT
    p_chosen += i_task * windows * OUT
    p_chosen2 += i_task * windows * OUT
    p_moments += i_task * parts * (2 * OUT + 1)
    p_sums2 += i_task * parts * (2 * OUT)

    b_gamma, _own_beta = affine_of(p_phi + o_gamma, o_out, OUT)
    b_first, b_second = tl.zeros((BN,), tl.float32), tl.zeros((BN,), tl.float32)
    count = 0.0
    b_mean, b_inverse = b_first, b_first
    if TANGENT:
        b_mean, b_inverse = moments_of(p_moments, parts, o_out, eps, OUT, NORM)
    start = part * part_rows
    for first in range(start, tl.minimum(start + part_rows, rows), BM):
        o_row = first + tl.arange(0, BM)
        o_image, o_y, o_x, m_row = place_of(o_row, images, to_height, to_width, SIDE)
        b_z = tl.zeros((BM, BN), tl.float32)
        if FIRST:  # three taps or less fill a slice: it goes through taps and channels alike
            for k in range(0, 9 * IN, BK):
                o_k = k + tl.arange(0, BK)
                o_tap, o_channel = o_k // IN, o_k % IN
                o_in_y = (o_y * STRIDE - 1)[:, None] + (o_tap // 3)[None, :]
                o_in_x = (o_x * STRIDE - 1)[:, None] + (o_tap % 3)[None, :]
                m_in = (o_in_y >= 0) & (o_in_y < height) & (o_in_x >= 0) & (o_in_x < width)
                m_in = m_in & m_row[:, None] & (o_k < 9 * IN)[None, :]
                o_in = ((o_image * IN)[:, None] + o_channel[None, :]) * (height * width) + o_in_y * width + o_in_x
                b_in = tl.load(p_x + o_in, mask=m_in, other=0.0)
                m_weight = (o_k < 9 * IN)[:, None] & m_out[None, :]
                p_from = p_u if TANGENT else p_phi
                b_weight = tl.load(p_from + o_weight + o_k[:, None] * OUT + o_out[None, :], mask=m_weight, other=0.0)
                b_z = dot(b_in, b_weight, b_z, PRECISION)
        else:
            for k in range(0, IN, BK):
                o_k = k + tl.arange(0, BK)
                b_in_mean, b_in_inverse = moments_of(p_x_moments, in_parts, o_k, eps, IN, NORM)
                b_in_gamma, b_in_beta = affine_of(p_phi + o_in_gamma, o_k, IN)
                b_in_mean2, b_along, b_gamma2, b_beta2 = b_in_mean, b_in_mean, b_in_mean, b_in_mean
                if TANGENT:
                    b_in_mean2, b_along = means_of(p_x_sums2, in_parts, o_k, in_total, IN, NORM)
                    b_gamma2, b_beta2 = affine_of(p_u + o_in_gamma, o_k, IN)
                m_weight = (o_k < IN)[:, None] & m_out[None, :]
                for tap in range(9):
                    o_in_y, o_in_x = o_y * STRIDE - 1 + tap // 3, o_x * STRIDE - 1 + tap % 3
                    m_place = m_row & (o_in_y >= 0) & (o_in_y < height) & (o_in_x >= 0) & (o_in_x < width)
                    o_place = (o_image * in_high + o_in_y) * in_wide + o_in_x
                    b_in, b_in2 = _active(
                        p_x, p_x2, o_place[:, None] * IN + o_k[None, :], m_place[:, None] & (o_k < IN)[None, :],
                        b_in_mean[None, :], b_in_inverse[None, :], b_in_gamma[None, :], b_in_beta[None, :],
                        b_in_mean2[None, :], b_along[None, :], b_gamma2[None, :], b_beta2[None, :], TANGENT,
                    )  # fmt: skip
                    o_each = o_weight + (tap * IN + o_k)[:, None] * OUT + o_out[None, :]
                    b_weight = tl.load(p_phi + o_each, mask=m_weight, other=0.0)
                    b_z = dot(b_in2, b_weight, b_z, PRECISION)
                    if TANGENT:
                        b_weight2 = tl.load(p_u + o_each, mask=m_weight, other=0.0)
                        b_z = dot(b_in, b_weight2, b_z, PRECISION)

        m_tile = m_row[:, None] & m_out[None, :]
        o_tile = o_row[:, None] * OUT + o_out[None, :]
        o_window = (first >> (2 * SIDE - 2)) + tl.arange(0, BM // (SIDE * SIDE))
        _image, o_window_y, o_window_x, m_window = place_of(
            o_window, images, windows_of(to_height, SIDE), windows_of(to_width, SIDE), 1
        )
        m_window = m_window & (o_window_y < (to_height >> (SIDE - 1))) & (o_window_x < (to_width >> (SIDE - 1)))
        m_window = m_window[:, None] & m_out[None, :]
        o_window = o_window[:, None] * OUT + o_out[None, :]
        if TANGENT:
            tl.store(p_z2 + o_tile, b_z, mask=m_tile)
            b_before = tl.load(p_z + o_tile, mask=m_tile, other=0.0)
            if SIDE > 1:
                b_chosen = tl.load(p_chosen + o_window, mask=m_window, other=0.0)
                m_chosen = is_chosen(b_before, b_chosen, BM, SIDE, BN)
                b_chosen2 = tl.sum(tl.where(m_chosen, in_windows(b_z, BM, SIDE, BN), 0.0), 1)
                tl.store(p_chosen2 + o_window, b_chosen2, mask=m_window)
            if NORM:
                b_normal = (b_before - b_mean[None, :]) * b_inverse[None, :]
                b_first += tl.sum(tl.where(m_tile, b_z, 0.0), 0)
                b_second += tl.sum(tl.where(m_tile, b_z * b_normal, 0.0), 0)
        else:
            tl.store(p_z + o_tile, b_z, mask=m_tile)
            if SIDE > 1:
                tl.store(p_chosen + o_window, largest(b_z, b_gamma, BM, SIDE, BN), mask=m_window)
            if NORM:  # the mean, and the squares about it, of the rows up to here
                here = tl.sum(m_row.to(tl.float32), 0)
                share = here / tl.maximum(count + here, 1.0)
                b_here = tl.sum(tl.where(m_tile, b_z, 0.0), 0) / tl.maximum(here, 1.0)
                b_off = b_z - b_here[None, :]
                b_second += tl.sum(tl.where(m_tile, b_off * b_off, 0.0), 0)
                b_shift = b_here - b_first
                b_second += b_shift * b_shift * (count * share)
                b_first += b_shift * share
                count += here
    if NORM:
        if TANGENT:
            store_sums(p_sums2, part, o_out, b_first, b_second, OUT)
        else:
            store_sums(p_moments, part, o_out, b_first, b_second, OUT)
            if program % COLUMNS == 0:
                tl.store(p_moments + parts * (2 * OUT) + part, count)


@triton.jit(do_not_specialize=RUNTIME, do_not_specialize_on_alignment=ANYWHERE)
def conv_head(
    p_x,  # what the last layer chose, [T, N, windows, IN]
    p_x2,
    p_x_moments,
    p_x_sums2,
    p_phi,
    p_u,
    p_targets,  # [T, N, ways], labels [T, N]
    p_logits,  # [T, N, ways]
    p_delta,  # [T, N, ways]: the loss's gradient at the logits
    p_delta2,
    p_losses,  # of each task one
    p_dy,  # [T, N, windows, IN]: the gradient in front of the last layer's ReLU
    p_dy2,
    p_sums,  # [T, 1, 2, IN]: of that, and of it times the normal z
    p_sums2,
    p_gradient,  # [T, most_parts, P]
    images, height, width, in_high, in_wide, in_parts, most_parts, phi_stride, P, o_weight, o_in_gamma, ways,
    loss_stride, in_total, eps,
    LOSS: tl.constexpr, BACK: tl.constexpr, TANGENT: tl.constexpr, NORM: tl.constexpr, FLAT: tl.constexpr,
    IN: tl.constexpr, PRECISION: tl.constexpr, BM: tl.constexpr, BW: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    i_task = tl.program_id(0).to(tl.int64)
    places = height * width
    features = IN * (places if FLAT else 1)
    numbers = images * in_high * in_wide * IN
    o_ways = tl.arange(0, BW)
    m_ways = o_ways < ways
    p_x += i_task * numbers
    p_x2 += i_task * numbers
    p_x_moments += i_task * in_parts * (2 * IN + 1)
    p_x_sums2 += i_task * in_parts * (2 * IN)
    p_phi += i_task * phi_stride + o_weight
    p_u += i_task * P + o_weight
    p_norm = p_phi - o_weight + o_in_gamma
    p_norm2 = p_u - o_weight + o_in_gamma
    p_logits += i_task * images * ways
    p_delta += i_task * images * ways
    p_delta2 += i_task * images * ways
    p_targets += i_task * images * (1 if LOSS == "cross_entropy" else ways)
    p_dy += i_task * numbers
    p_dy2 += i_task * numbers
    p_sums += i_task * (2 * IN)
    p_sums2 += i_task * (2 * IN)
    p_gradient += i_task * most_parts * P + o_weight
    share = 1.0 if FLAT else 1.0 / places
    terms = images if LOSS == "cross_entropy" else images * ways

    p_bias = (p_u if TANGENT else p_phi) + ways * features
    b_of_bias = tl.zeros((BW,), tl.float32)
    loss = tl.zeros((), tl.float32)
    for first in range(0, images, BM):
        o_image = first + tl.arange(0, BM)
        m_image = o_image < images
        b_logits = tl.zeros((BM, BW), tl.float32)
        for k in range(0, IN, BK):
            o_k = k + tl.arange(0, BK)
            m_k = o_k < IN
            b_mean, b_inverse = moments_of(p_x_moments, in_parts, o_k, eps, IN, NORM)
            b_gamma, b_beta = affine_of(p_norm, o_k, IN)
            b_mean2, b_along, b_gamma2, b_beta2 = b_mean, b_mean, b_mean, b_mean
            if TANGENT:
                b_mean2, b_along = means_of(p_x_sums2, in_parts, o_k, in_total, IN, NORM)
                b_gamma2, b_beta2 = affine_of(p_norm2, o_k, IN)
            for place in range(places):
                o_place = (o_image * in_high + place // width) * in_wide + place % width
                b_in, b_in2 = _active(
                    p_x, p_x2, o_place[:, None] * IN + o_k[None, :], m_image[:, None] & m_k[None, :],
                    b_mean[None, :], b_inverse[None, :], b_gamma[None, :], b_beta[None, :],
                    b_mean2[None, :], b_along[None, :], b_gamma2[None, :], b_beta2[None, :], TANGENT,
                )  # fmt: skip
                o_each = o_ways[None, :] * features + (place * IN if FLAT else 0) + o_k[:, None]
                m_weight = m_k[:, None] & m_ways[None, :]
                b_weight = tl.load(p_phi + o_each, mask=m_weight, other=0.0)
                b_logits = dot(b_in2, b_weight, b_logits, PRECISION)
                if TANGENT:
                    b_weight2 = tl.load(p_u + o_each, mask=m_weight, other=0.0)
                    b_logits = dot(b_in, b_weight2, b_logits, PRECISION)
        b_logits = b_logits * share + tl.load(p_bias + o_ways, mask=m_ways, other=0.0)[None, :]
        tile = o_image, o_ways
        m_tile = m_image[:, None] & m_ways[None, :]
        o_tile = o_image[:, None] * ways + o_ways[None, :]
        if TANGENT:
            b_before = tl.load(p_logits + o_tile, mask=m_tile, other=0.0)
            b_delta = tl.where(m_tile, loss_tangent_of(b_before, b_logits, tile, ways, LOSS) / terms, 0.0)
            tl.store(p_delta2 + o_tile, b_delta, mask=m_tile)
        else:
            b_logits = tl.where(m_tile, b_logits, 0.0)
            part, b_delta = loss_of(b_logits, p_targets, tile, m_tile, images, ways, LOSS)
            b_delta = tl.where(m_tile, b_delta / terms, 0.0)
            loss += part
            tl.store(p_logits + o_tile, b_logits, mask=m_tile)
            tl.store(p_delta + o_tile, b_delta, mask=m_tile)
        b_of_bias += tl.sum(b_delta, 0)
    if not TANGENT:
        tl.store(p_losses + i_task * loss_stride, loss / terms)
    if BACK:
        tl.store(p_gradient + ways * features + o_ways, b_of_bias, mask=m_ways)
        tl.debug_barrier()
        for k in range(0, IN, BK):
            o_k = k + tl.arange(0, BK)
            m_k = o_k < IN
            b_mean, b_inverse = moments_of(p_x_moments, in_parts, o_k, eps, IN, NORM)
            b_gamma, b_beta = affine_of(p_norm, o_k, IN)
            b_mean2, b_along, b_gamma2, b_beta2 = b_mean, b_mean, b_mean, b_mean
            if TANGENT:
                b_mean2, b_along = means_of(p_x_sums2, in_parts, o_k, in_total, IN, NORM)
                b_gamma2, b_beta2 = affine_of(p_norm2, o_k, IN)
            b_first, b_second = tl.zeros((BK,), tl.float32), tl.zeros((BK,), tl.float32)
            b_of_weight = tl.zeros((BW, BK), tl.float32)
            o_weights = o_ways[:, None] * features + o_k[None, :]
            m_weight = m_ways[:, None] & m_k[None, :]
            for place in range(places):
                o_here = o_weights + (place * IN if FLAT else 0)
                b_weight = tl.load(p_phi + o_here, mask=m_weight, other=0.0)
                if FLAT:
                    b_of_weight = tl.zeros((BW, BK), tl.float32)
                for first in range(0, images, BM):
                    o_image = first + tl.arange(0, BM)
                    m_tile = (o_image < images)[:, None] & m_k[None, :]
                    o_place = (o_image * in_high + place // width) * in_wide + place % width
                    o_tile = o_place[:, None] * IN + o_k[None, :]
                    b_in, b_in2 = _active(
                        p_x, p_x2, o_tile, m_tile,
                        b_mean[None, :], b_inverse[None, :], b_gamma[None, :], b_beta[None, :],
                        b_mean2[None, :], b_along[None, :], b_gamma2[None, :], b_beta2[None, :], TANGENT,
                    )  # fmt: skip
                    b_normal = (tl.load(p_x + o_tile, mask=m_tile, other=0.0) - b_mean[None, :]) * b_inverse[None, :]
                    m_delta = (o_image < images)[:, None] & m_ways[None, :]
                    o_delta = o_image[:, None] * ways + o_ways[None, :]
                    b_delta = tl.load(p_delta + o_delta, mask=m_delta, other=0.0)
                    b_none = tl.zeros((BM, BK), tl.float32)
                    if TANGENT:
                        b_delta2 = tl.load(p_delta2 + o_delta, mask=m_delta, other=0.0)
                        b_weight2 = tl.load(p_u + o_here, mask=m_weight, other=0.0)
                        b_dy = dot(b_delta, b_weight2, dot(b_delta2, b_weight, b_none, PRECISION), PRECISION)
                        b_of_weight = dot(tl.trans(b_delta), b_in2, b_of_weight, PRECISION)
                        b_of_weight = dot(tl.trans(b_delta2), b_in, b_of_weight, PRECISION)
                        b_dy = tl.where(b_in > 0, b_dy * share, 0.0)
                        tl.store(p_dy2 + o_tile, b_dy, mask=m_tile)
                        b_before = tl.load(p_dy + o_tile, mask=m_tile, other=0.0)
                        b_z2 = tl.load(p_x2 + o_tile, mask=m_tile, other=0.0)
                        b_normal2 = b_inverse[None, :] * (b_z2 - b_mean2[None, :] - b_normal * b_along[None, :])
                        b_product = b_dy * b_normal + b_before * b_normal2
                    else:
                        b_dy = dot(b_delta, b_weight, b_none, PRECISION)
                        b_of_weight = dot(tl.trans(b_delta), b_in, b_of_weight, PRECISION)
                        b_dy = tl.where(b_in > 0, b_dy * share, 0.0)
                        tl.store(p_dy + o_tile, b_dy, mask=m_tile)
                        b_product = b_dy * b_normal
                    b_first += tl.sum(tl.where(m_tile, b_dy, 0.0), 0)
                    b_second += tl.sum(tl.where(m_tile, b_product, 0.0), 0)
                if FLAT:
                    tl.store(p_gradient + o_here, b_of_weight, mask=m_weight)
            if not FLAT:
                tl.store(p_gradient + o_weights, b_of_weight * share, mask=m_weight)
            store_sums(p_sums2 if TANGENT else p_sums, 0, o_k, b_first, b_second, IN)


@triton.jit(do_not_specialize=RUNTIME, do_not_specialize_on_alignment=ANYWHERE)
def conv_gradient(
    p_x,
    p_x2,
    p_x_moments,
    p_x_sums2,
    p_phi,
    p_u,
    p_z,  # [T, rows, OUT]
    p_z2,
    p_chosen,  # [T, windows, OUT]
    p_moments,  # [T, own_parts, 2, OUT] and [T, own_parts]
    p_z_sums2,  # [T, own_parts, 2, OUT]
    p_dy,  # [T, windows, OUT]
    p_dy2,
    p_sums,  # [T, out_parts, 2, OUT]: of the gradient in front of the ReLU, and of it times the normal z
    p_sums2,
    p_dz,  # [T, rows, OUT]: the gradient of the convolution's output
    p_dz2,
    p_gradient,  # [T, most_parts, P]
    images, height, width, in_high, in_wide, to_height, to_width, part_rows, parts, in_parts, own_parts, out_parts,
    groups, spans, most_parts, phi_stride, P, o_weight, o_gamma, o_in_gamma, in_total, total, eps,
    FIRST: tl.constexpr, TANGENT: tl.constexpr, NORM: tl.constexpr, STRIDE: tl.constexpr, SIDE: tl.constexpr,
    IN: tl.constexpr, OUT: tl.constexpr, PRECISION: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """``groups`` slices of BM taps and channels are shared out to ``spans`` programs, which read all rows of a part."""
    COLUMNS: tl.constexpr = (OUT + BN - 1) // BN
    program = tl.program_id(0)
    o_out = program % COLUMNS * BN + tl.arange(0, BN)
    m_out = o_out < OUT
    span = program // COLUMNS % spans
    part = program // (COLUMNS * spans) % parts
    i_task = (program // (COLUMNS * spans * parts)).to(tl.int64)
    windows = images * windows_of(to_height, SIDE) * windows_of(to_width, SIDE)
    rows = windows * (SIDE * SIDE)
    numbers_in = images * IN * (height * width if FIRST else in_high * in_wide)
    p_x += i_task * numbers_in
    p_x2 += i_task * numbers_in
    p_x_moments += i_task * in_parts * (2 * IN + 1)
    p_x_sums2 += i_task * in_parts * (2 * IN)
    p_phi += i_task * phi_stride
    p_u += i_task * P
    p_z += i_task * rows * OUT
    p_z2 += i_task * rows * OUT
    p_chosen += i_task * windows * OUT
    p_moments += i_task * own_parts * (2 * OUT + 1)
    p_z_sums2 += i_task * own_parts * (2 * OUT)
    p_dy += i_task * windows * OUT
    p_dy2 += i_task * windows * OUT
    p_sums += i_task * out_parts * (2 * OUT)
    p_sums2 += i_task * out_parts * (2 * OUT)
    p_dz += i_task * rows * OUT
    p_dz2 += i_task * rows * OUT
    p_gradient += (i_task * most_parts + part) * P

    b_mean, b_inverse = moments_of(p_moments, own_parts, o_out, eps, OUT, NORM)
    b_gamma, _own_beta = affine_of(p_phi + o_gamma, o_out, OUT)
    b_b, b_g = means_of(p_sums, out_parts, o_out, total, OUT, NORM)
    b_scale = b_gamma * b_inverse
    b_mean2, b_along, b_b2, b_g2, b_scale2 = b_mean, b_mean, b_mean, b_mean, b_mean
    if TANGENT:
        b_mean2, b_along = means_of(p_z_sums2, own_parts, o_out, total, OUT, NORM)
        b_b2, b_g2 = means_of(p_sums2, out_parts, o_out, total, OUT, NORM)
        b_gamma2, _own_beta2 = affine_of(p_u + o_gamma, o_out, OUT)
        b_scale2 = b_gamma2 * b_inverse - b_gamma * b_inverse * b_inverse * b_along
    if (part == 0) & (span == 0):  # the gradients of the norm's weight and bias are these sums
        b_of_beta, b_of_gamma = sums_of(p_sums2 if TANGENT else p_sums, out_parts, o_out, OUT)
        if not NORM:
            b_of_gamma = tl.zeros((BN,), tl.float32)
        tl.store(p_gradient + o_gamma + o_out, b_of_gamma, mask=m_out)
        tl.store(p_gradient + o_gamma + OUT + o_out, b_of_beta, mask=m_out)

    start = part * part_rows
    stop = tl.minimum(start + part_rows, rows)
    for group in range(groups * span // spans, groups * (span + 1) // spans):
        o_k = group * BM + tl.arange(0, BM)
        o_tap, o_channel = o_k // IN, o_k % IN
        m_k = o_k < 9 * IN
        b_in_mean, b_in_inverse, b_in_gamma, b_in_beta = 0.0, 0.0, 0.0, 0.0
        b_in_mean2, b_in_along, b_in_gamma2, b_in_beta2 = 0.0, 0.0, 0.0, 0.0
        if not FIRST:
            b_in_mean, b_in_inverse = moments_of(p_x_moments, in_parts, o_channel, eps, IN, NORM)
            b_in_gamma, b_in_beta = affine_of(p_phi + o_in_gamma, o_channel, IN)
            b_in_mean2, b_in_along, b_in_gamma2, b_in_beta2 = b_in_mean, b_in_mean, b_in_mean, b_in_mean
            if TANGENT:
                b_in_mean2, b_in_along = means_of(p_x_sums2, in_parts, o_channel, in_total, IN, NORM)
                b_in_gamma2, b_in_beta2 = affine_of(p_u + o_in_gamma, o_channel, IN)
        b_sum = tl.zeros((BM, BN), tl.float32)
        for first in range(start, stop, BK):
            o_row = first + tl.arange(0, BK)
            o_image, o_y, o_x, m_row = place_of(o_row, images, to_height, to_width, SIDE)
            m_tile = m_row[:, None] & m_out[None, :]
            o_tile = o_row[:, None] * OUT + o_out[None, :]
            o_window = (first >> (2 * SIDE - 2)) + tl.arange(0, BK // (SIDE * SIDE))
            _image, o_window_y, o_window_x, m_window = place_of(
                o_window, images, windows_of(to_height, SIDE), windows_of(to_width, SIDE), 1
            )
            m_window = m_window & (o_window_y < (to_height >> (SIDE - 1))) & (o_window_x < (to_width >> (SIDE - 1)))
            m_window = m_window[:, None] & m_out[None, :]
            o_window = o_window[:, None] * OUT + o_out[None, :]
            b_z = tl.load(p_z + o_tile, mask=m_tile, other=0.0)
            b_dy = tl.load(p_dy + o_window, mask=m_window, other=0.0)
            b_dy2 = b_dy
            if TANGENT:
                b_dy2 = tl.load(p_dy2 + o_window, mask=m_window, other=0.0)
            if SIDE > 1:
                m_chosen = is_chosen(b_z, tl.load(p_chosen + o_window, mask=m_window, other=0.0), BK, SIDE, BN)
                b_dy = tl.reshape(tl.where(m_chosen, b_dy[:, None, :], 0.0), (BK, BN))
                if TANGENT:
                    b_dy2 = tl.reshape(tl.where(m_chosen, b_dy2[:, None, :], 0.0), (BK, BN))
            b_normal = (b_z - b_mean[None, :]) * b_inverse[None, :]
            b_e = b_dy - b_b[None, :] - b_normal * b_g[None, :]
            b_dz = tl.where(m_tile, b_scale[None, :] * b_e, 0.0)
            b_dz2 = b_dz
            if TANGENT:
                b_z2 = tl.load(p_z2 + o_tile, mask=m_tile, other=0.0)
                b_normal2 = b_inverse[None, :] * (b_z2 - b_mean2[None, :] - b_normal * b_along[None, :])
                b_e2 = b_dy2 - b_b2[None, :] - b_normal2 * b_g[None, :] - b_normal * b_g2[None, :]
                b_dz2 = tl.where(m_tile, b_scale2[None, :] * b_e + b_scale[None, :] * b_e2, 0.0)
            if not FIRST:  # noqa: SIM102 - compiled or not, while the other decides as it runs
                if group == 0:
                    tl.store((p_dz2 if TANGENT else p_dz) + o_tile, b_dz2, mask=m_tile)

            o_in_y = (o_y * STRIDE - 1)[None, :] + (o_tap // 3)[:, None]
            o_in_x = (o_x * STRIDE - 1)[None, :] + (o_tap % 3)[:, None]
            m_in = (o_in_y >= 0) & (o_in_y < height) & (o_in_x >= 0) & (o_in_x < width)
            m_in = m_in & m_row[None, :] & m_k[:, None]
            if FIRST:
                o_in = ((o_image * IN)[None, :] + o_channel[:, None]) * (height * width) + o_in_y * width + o_in_x
                b_sum = dot(tl.load(p_x + o_in, mask=m_in, other=0.0), b_dz2, b_sum, PRECISION)
            else:
                o_in = (((o_image * in_high)[None, :] + o_in_y) * in_wide + o_in_x) * IN + o_channel[:, None]
                b_in, b_in2 = _active(
                    p_x, p_x2, o_in, m_in,
                    b_in_mean[:, None], b_in_inverse[:, None], b_in_gamma[:, None], b_in_beta[:, None],
                    b_in_mean2[:, None], b_in_along[:, None], b_in_gamma2[:, None], b_in_beta2[:, None], TANGENT,
                )  # fmt: skip
                b_sum = dot(b_in, b_dz2, b_sum, PRECISION)
                if TANGENT:
                    b_sum = dot(b_in2, b_dz, b_sum, PRECISION)
        o_each = o_weight + o_k[:, None] * OUT + o_out[None, :]
        tl.store(p_gradient + o_each, b_sum, mask=m_k[:, None] & m_out[None, :])


@triton.jit(do_not_specialize=RUNTIME, do_not_specialize_on_alignment=ANYWHERE)
def conv_back(
    p_dz,  # [T, rows, OUT]
    p_dz2,
    p_phi,
    p_u,
    p_x,  # what the layer below chose, [T, N, windows, IN]
    p_x2,
    p_x_moments,
    p_x_sums2,
    p_dy,  # [T, N, windows, IN]: the gradient in front of the ReLU below
    p_dy2,
    p_sums,  # [T, STRIDE^2 parts, 2, IN]
    p_sums2,
    images, height, width, in_high, in_wide, to_height, to_width, part_rows, parts, in_parts, phi_stride, P,
    o_weight, o_in_gamma, in_total, eps,
    FIRST: tl.constexpr, TANGENT: tl.constexpr, NORM: tl.constexpr, STRIDE: tl.constexpr, SIDE: tl.constexpr,
    IN: tl.constexpr, OUT: tl.constexpr, PRECISION: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """With a stride of 2 an input's place meets 1, 2 or 4 of the 9 taps: programs have places of one kind alone."""
    tl.static_assert(not FIRST, "Expected a layer below")
    COLUMNS: tl.constexpr = (IN + BN - 1) // BN
    program = tl.program_id(0)
    o_in = program % COLUMNS * BN + tl.arange(0, BN)
    m_in = o_in < IN
    part = program // COLUMNS % (parts * STRIDE * STRIDE)
    i_task = (program // (COLUMNS * parts * STRIDE * STRIDE)).to(tl.int64)
    from_y, from_x = part // parts // STRIDE, part // parts % STRIDE
    kind_height, kind_width = (height - from_y + STRIDE - 1) // STRIDE, (width - from_x + STRIDE - 1) // STRIDE
    first_y, first_x = (from_y + 1) % STRIDE, (from_x + 1) % STRIDE
    taps_y, taps_x = (2 - first_y) // STRIDE + 1, (2 - first_x) // STRIDE + 1
    rows = images * windows_of(to_height, SIDE) * windows_of(to_width, SIDE) * (SIDE * SIDE)
    numbers_in = images * in_high * in_wide * IN
    p_dz += i_task * rows * OUT
    p_dz2 += i_task * rows * OUT
    p_phi += i_task * phi_stride + o_weight
    p_norm = p_phi - o_weight + o_in_gamma
    p_u += i_task * P + o_weight
    p_x += i_task * numbers_in
    p_x2 += i_task * numbers_in
    p_x_moments += i_task * in_parts * (2 * IN + 1)
    p_x_sums2 += i_task * in_parts * (2 * IN)
    p_dy += i_task * numbers_in
    p_dy2 += i_task * numbers_in
    p_sums += i_task * parts * (STRIDE * STRIDE) * (2 * IN)
    p_sums2 += i_task * parts * (STRIDE * STRIDE) * (2 * IN)

    b_mean, b_inverse = moments_of(p_x_moments, in_parts, o_in, eps, IN, NORM)
    b_gamma, b_beta = affine_of(p_norm, o_in, IN)
    b_mean2, b_along = b_mean, b_mean
    if TANGENT:
        b_mean2, b_along = means_of(p_x_sums2, in_parts, o_in, in_total, IN, NORM)
    b_first, b_second = tl.zeros((BN,), tl.float32), tl.zeros((BN,), tl.float32)
    start = part % parts * part_rows
    for first in range(start, tl.minimum(start + part_rows, images * kind_height * kind_width), BM):
        o_image, o_y, o_x, m_row = place_of(first + tl.arange(0, BM), images, kind_height, kind_width, 1)
        o_y, o_x = o_y * STRIDE + from_y, o_x * STRIDE + from_x
        b_sum = tl.zeros((BM, BN), tl.float32)
        for k in range(0, OUT, BK):
            o_k = k + tl.arange(0, BK)
            m_k = o_k < OUT
            for index in range(taps_y * taps_x):
                tap_y, tap_x = first_y + index // taps_x * STRIDE, first_x + index % taps_x * STRIDE
                # a division of what may be negative, by way of numbers that are not
                o_to_y, o_to_x = (o_y + 1 - tap_y + STRIDE) // STRIDE - 1, (o_x + 1 - tap_x + STRIDE) // STRIDE - 1
                m_to = m_row & (o_to_y >= 0) & (o_to_y < to_height) & (o_to_x >= 0) & (o_to_x < to_width)
                o_row = row_of(o_image, o_to_y, o_to_x, to_height, to_width, SIDE)
                m_dz = m_to[:, None] & m_k[None, :]
                o_dz = o_row[:, None] * OUT + o_k[None, :]
                b_dz = tl.load(p_dz + o_dz, mask=m_dz, other=0.0)
                o_each = ((tap_y * 3 + tap_x) * IN + o_in)[None, :] * OUT + o_k[:, None]
                m_weight = m_k[:, None] & m_in[None, :]
                b_weight = tl.load(p_phi + o_each, mask=m_weight, other=0.0)
                if TANGENT:
                    b_dz2 = tl.load(p_dz2 + o_dz, mask=m_dz, other=0.0)
                    b_sum = dot(b_dz2, b_weight, b_sum, PRECISION)
                    b_weight = tl.load(p_u + o_each, mask=m_weight, other=0.0)
                b_sum = dot(b_dz, b_weight, b_sum, PRECISION)

        m_tile = m_row[:, None] & m_in[None, :]
        o_tile = ((o_image * in_high + o_y) * in_wide + o_x)[:, None] * IN + o_in[None, :]
        b_normal = (tl.load(p_x + o_tile, mask=m_tile, other=0.0) - b_mean[None, :]) * b_inverse[None, :]
        b_dy = tl.where(b_gamma[None, :] * b_normal + b_beta[None, :] > 0, b_sum, 0.0)
        b_product = b_dy * b_normal
        if TANGENT:
            tl.store(p_dy2 + o_tile, b_dy, mask=m_tile)
            b_before = tl.load(p_dy + o_tile, mask=m_tile, other=0.0)
            b_z2 = tl.load(p_x2 + o_tile, mask=m_tile, other=0.0)
            b_product += b_before * (b_inverse[None, :] * (b_z2 - b_mean2[None, :] - b_normal * b_along[None, :]))
        else:
            tl.store(p_dy + o_tile, b_dy, mask=m_tile)
        b_first += tl.sum(tl.where(m_tile, b_dy, 0.0), 0)
        b_second += tl.sum(tl.where(m_tile, b_product, 0.0), 0)
    store_sums(p_sums2 if TANGENT else p_sums, part, o_in, b_first, b_second, IN)


@triton.jit(do_not_specialize=RUNTIME, do_not_specialize_on_alignment=ANYWHERE)
def conv_update(
    p_base,  # [T, P]: the parameters, or v
    p_gradient,  # [T, most_parts, P]
    p_table,  # [layers, 3]: where a layer's weights begin and end, and in how many parts their gradient is
    p_rates,  # of the step: one, or [P]
    p_out,
    p_u,  # [T, P]
    p_kept,  # where the gradient goes
    most_parts, P, layers, blocks, base_stride, out_stride, kept_stride, rate_stride,
    WAY: tl.constexpr, KEEP: tl.constexpr, RATED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """``WAY``: "down", a step from the base; "seed", the gradient as it is, v; "back", the base without it, the next v.

    ``RATED``: of v, whether there is a step before, by whose rates it is multiplied: u.
    """
    tl.static_assert(WAY == "down" or WAY == "seed" or WAY == "back", "Expected a known WAY")
    program = tl.program_id(0)
    i_task = (program // blocks).to(tl.int64)
    o_each = program % blocks * BLOCK + tl.arange(0, BLOCK)
    m_each = o_each < P
    b_parts = tl.full((BLOCK,), 1, tl.int32)
    for layer in range(layers):
        p_entry = p_table + 3 * layer
        m_layer = (o_each >= tl.load(p_entry)) & (o_each < tl.load(p_entry + 1))
        b_parts = tl.where(m_layer, tl.load(p_entry + 2), b_parts)
    b_gradient = tl.zeros((BLOCK,), tl.float32)
    for part in range(most_parts):
        p_part = p_gradient + (i_task * most_parts + part) * P
        b_gradient += tl.load(p_part + o_each, mask=m_each & (part < b_parts), other=0.0)
    b_out = b_gradient
    if WAY != "seed":
        b_base = tl.load(p_base + i_task * base_stride + o_each, mask=m_each, other=0.0)
        b_out = b_base - b_gradient
    if WAY == "down":
        b_rate = tl.load(p_rates + o_each * rate_stride, mask=m_each, other=0.0)
        b_out = b_base - b_rate * b_gradient
        if KEEP:
            tl.store(p_kept + i_task * kept_stride + o_each, b_gradient, mask=m_each)
    elif RATED:
        b_rate = tl.load(p_rates + o_each * rate_stride, mask=m_each, other=0.0)
        tl.store(p_u + i_task * P + o_each, b_rate * b_out, mask=m_each)
    tl.store(p_out + i_task * out_stride + o_each, b_out, mask=m_each)
