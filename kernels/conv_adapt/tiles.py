"""What the kernels are made of: places of images, batch-norm from partial sums, activations and their tangents.

Rows are places of a convolution's output, channels last. Where windows of ``SIDE x SIDE`` places are pooled, the rows
of a window stand together; one that the image's rim cuts off keeps its place, and nothing is read or written there.
"""

import triton
import triton.language as tl

MOST_PARTS = tl.constexpr(32)
"""In which the rows of a layer may be summed: a program that needs the sums reads them all."""


@triton.jit
def dot(b_a, b_b, b_sum, PRECISION: tl.constexpr):
    """``b_sum + A @ B``."""
    if PRECISION == "bf16":
        return tl.dot(b_a.to(tl.bfloat16), b_b.to(tl.bfloat16), b_sum)
    else:
        return tl.dot(b_a, b_b, b_sum, input_precision=PRECISION)


@triton.jit
def windows_of(side, SIDE: tl.constexpr):
    """How many windows a side of an image has, one that its end cuts off included."""
    return (side + SIDE - 1) >> (SIDE - 1)


@triton.jit
def place_of(o_row, images, height, width, SIDE: tl.constexpr):
    """Of rows in the order of windows the image, y, x, and whether there is such a place."""
    SHIFT: tl.constexpr = SIDE - 1  # the side is 1 or 2
    high, wide = windows_of(height, SIDE), windows_of(width, SIDE)
    o_window, o_inside = o_row >> (2 * SHIFT), o_row & (SIDE * SIDE - 1)
    o_y = o_window // wide % high * SIDE + (o_inside >> SHIFT)
    o_x = o_window % wide * SIDE + (o_inside & SHIFT)
    o_image = o_window // (wide * high)
    return o_image, o_y, o_x, (o_image < images) & (o_y < height) & (o_x < width)


@triton.jit
def row_of(o_image, o_y, o_x, height, width, SIDE: tl.constexpr):
    """The other way round."""
    SHIFT: tl.constexpr = SIDE - 1
    high, wide = windows_of(height, SIDE), windows_of(width, SIDE)
    o_window = (o_image * high + (o_y >> SHIFT)) * wide + (o_x >> SHIFT)
    return o_window * (SIDE * SIDE) + (o_y & SHIFT) * SIDE + (o_x & SHIFT)


@triton.jit
def moments_of(p_moments, parts, o_channel, eps, CHANNELS: tl.constexpr, NORM: tl.constexpr):
    """The means of channels and the inverses of their deviations; 0 and 1 without a norm.

    ``p_moments``: ``[parts, 2, CHANNELS]``, each part's mean and sum of squares about it, then ``[parts]`` its number
    of rows. They are merged as Chan, Golub and LeVeque (1983) do. What is summed over lanes is masked in front of the
    sum: a product that the sum fused would be rounded differently in lanes that hold the same sum.
    """
    if NORM:
        o_part = tl.arange(0, MOST_PARTS)
        m_part = (o_part < parts)[:, None] & (o_channel < CHANNELS)[None, :]
        o_each = o_part[:, None] * (2 * CHANNELS) + o_channel[None, :]
        b_count = tl.load(p_moments + parts * (2 * CHANNELS) + o_part, mask=o_part < parts, other=0.0)
        b_means = tl.load(p_moments + o_each, mask=m_part, other=0.0)
        b_squares = tl.load(p_moments + o_each + CHANNELS, mask=m_part, other=0.0)
        total = tl.sum(b_count, 0)
        b_mean = tl.sum(tl.where(m_part, b_count[:, None] * b_means, 0.0), 0) / total
        b_off = b_means - b_mean[None, :]
        b_square = tl.sum(tl.where(m_part, b_squares + b_count[:, None] * (b_off * b_off), 0.0), 0)
        return b_mean, 1.0 / tl.sqrt(b_square / total + eps)
    else:
        b_none = tl.where(o_channel < CHANNELS, 0.0, 0.0)
        return b_none, b_none + 1.0


@triton.jit
def sums_of(p_sums, parts, o_channel, CHANNELS: tl.constexpr):
    """Both sums of channels, of the parts' ``[parts, 2, CHANNELS]``."""
    o_part = tl.arange(0, MOST_PARTS)
    m_part = (o_part < parts)[:, None] & (o_channel < CHANNELS)[None, :]
    o_each = o_part[:, None] * (2 * CHANNELS) + o_channel[None, :]
    b_first = tl.sum(tl.load(p_sums + o_each, mask=m_part, other=0.0), 0)
    b_second = tl.sum(tl.load(p_sums + o_each + CHANNELS, mask=m_part, other=0.0), 0)
    return b_first, b_second


@triton.jit
def means_of(p_sums, parts, o_channel, total, CHANNELS: tl.constexpr, NORM: tl.constexpr):
    """The same over ``total``; 0 without a norm, which takes no means."""
    if NORM:
        b_first, b_second = sums_of(p_sums, parts, o_channel, CHANNELS)
        return b_first / total, b_second / total
    else:
        b_none = tl.where(o_channel < CHANNELS, 0.0, 0.0)
        return b_none, b_none


@triton.jit
def store_sums(p_sums, part, o_channel, b_first, b_second, CHANNELS: tl.constexpr):
    p_each = p_sums + part * (2 * CHANNELS) + o_channel
    tl.store(p_each, b_first, mask=o_channel < CHANNELS)
    tl.store(p_each + CHANNELS, b_second, mask=o_channel < CHANNELS)


@triton.jit
def affine_of(p_gamma, o_channel, CHANNELS: tl.constexpr):
    """Weight and bias of a norm, which stand one behind the other."""
    m_channel = o_channel < CHANNELS
    b_gamma = tl.load(p_gamma + o_channel, mask=m_channel, other=0.0)
    return b_gamma, tl.load(p_gamma + CHANNELS + o_channel, mask=m_channel, other=0.0)


@triton.jit
def rectified(b_x):
    """NaN stays."""
    return tl.where(b_x < 0, 0.0, b_x)


@triton.jit
def in_windows(b_tile, ROWS: tl.constexpr, SIDE: tl.constexpr, COLUMNS: tl.constexpr):
    """``[ROWS, COLUMNS]`` -> ``[windows, places of one, COLUMNS]``."""
    return tl.reshape(b_tile, (ROWS // (SIDE * SIDE), SIDE * SIDE, COLUMNS))


@triton.jit
def _larger(a, b):
    return tl.where((a > b) | (a != a), a, b)


@triton.jit
def largest(b_tile, b_gamma, ROWS: tl.constexpr, SIDE: tl.constexpr, COLUMNS: tl.constexpr):
    """Each window's z that a norm with these weights makes the largest: also its smallest; of equal ones the first."""
    b_sign = tl.where(b_gamma < 0, -1.0, 1.0)[None, None, :]
    o_inside = tl.arange(0, SIDE * SIDE)[None, :, None]
    b_value = in_windows(b_tile, ROWS, SIDE, COLUMNS) * b_sign
    b_value = tl.where((b_gamma == 0)[None, None, :] & (o_inside > 0), float("-inf"), b_value)
    return tl.reduce(b_value, 1, _larger) * tl.where(b_gamma < 0, -1.0, 1.0)[None, :]


@triton.jit
def is_chosen(b_tile, b_chosen, ROWS: tl.constexpr, SIDE: tl.constexpr, COLUMNS: tl.constexpr):
    """Whether a place is the first of its window whose z was chosen, ``[windows, places of one, COLUMNS]``."""
    b_inside = tl.arange(0, SIDE * SIDE).to(tl.float32)[None, :, None]
    b_same = in_windows(b_tile, ROWS, SIDE, COLUMNS) == b_chosen[:, None, :]
    b_first = tl.min(tl.where(b_same, b_inside, 1.0 * SIDE * SIDE), 1)
    return b_inside == b_first[:, None, :]
