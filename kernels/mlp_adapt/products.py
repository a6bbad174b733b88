"""What the kernels are made of: layers, tiles, products of matrices in memory, activations and losses."""

import triton
import triton.language as tl


@triton.jit
def layer_of(p_table, layer, p_inputs, p_rows):
    """Of the matrix behind ``layer``: inputs, outputs, where it and the activations of both sides start, its inputs."""
    p_entry = p_table + 3 * layer
    ins, outs, o_matrix = tl.load(p_entry), tl.load(p_entry + 3), tl.load(p_entry + 1)
    o_in, o_out = tl.load(p_entry + 2), tl.load(p_entry + 5)
    p_from = p_inputs
    if layer > 0:
        p_from = p_rows + o_in
    return ins, outs, o_matrix, o_in, o_out, p_from


@triton.jit
def tile_of(start_row, start_column, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """The rows and the columns of a tile, and a sum of nothing for its elements."""
    tile = start_row + tl.arange(0, ROWS), start_column + tl.arange(0, COLUMNS)
    return tile, tl.zeros((ROWS, COLUMNS), tl.float32)


@triton.jit
def elements_of(tile, rows, columns, o_start):
    """Which elements of a tile a matrix ``[rows, columns]`` has, and where in one that starts at ``o_start``."""
    o_row, o_column = tile
    m_tile = (o_row < rows)[:, None] & (o_column < columns)[None, :]
    return m_tile, o_start + o_row[:, None] * columns + o_column[None, :]


@triton.jit
def _add_product(
    b_sum, p_a, a_row, a_column, a_rows, a_inner, p_b, b_row, b_column, b_inner, b_columns, tile,
    FILL: tl.constexpr, PRECISION: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """``b_sum + A @ B`` for the rows and columns of ``tile``; A is ``FILL`` and B zero where they end."""
    o_row, o_column = tile
    for start in range(0, b_inner, BK):
        o_inner = start + tl.arange(0, BK)
        m_a = (o_row < a_rows)[:, None] & (o_inner < a_inner)[None, :]
        m_b = (o_inner < b_inner)[:, None] & (o_column < b_columns)[None, :]
        b_a = tl.load(p_a + o_row[:, None] * a_row + o_inner[None, :] * a_column, mask=m_a, other=FILL)
        b_b = tl.load(p_b + o_inner[:, None] * b_row + o_column[None, :] * b_column, mask=m_b, other=0.0)
        if PRECISION == "bf16":
            b_sum = tl.dot(b_a.to(tl.bfloat16), b_b.to(tl.bfloat16), b_sum)
        else:
            b_sum = tl.dot(b_a, b_b, b_sum, input_precision=PRECISION)
    return b_sum


# Products of a layer. With ``BIAS`` a one stands behind each row, which the last row of the matrix multiplies.


@triton.jit
def add_forward(
    b_sum, p_rows, p_matrix, n, ins, outs, tile, BIAS: tl.constexpr, PRECISION: tl.constexpr, BK: tl.constexpr
):
    """``b_sum + rows @ matrix``, ``[n, outs]``."""
    return _add_product(b_sum, p_rows, ins, 1, n, ins, p_matrix, outs, 1, ins + BIAS, outs, tile, BIAS, PRECISION, BK)


@triton.jit
def add_back(b_sum, p_deltas, p_matrix, n, ins, outs, tile, PRECISION: tl.constexpr, BK: tl.constexpr):
    """``b_sum + deltas @ matrix.T``, ``[n, ins]``."""
    return _add_product(b_sum, p_deltas, outs, 1, n, outs, p_matrix, 1, outs, outs, ins, tile, 0, PRECISION, BK)


@triton.jit
def add_gradient(
    b_sum, p_rows, p_deltas, n, ins, outs, tile, BIAS: tl.constexpr, PRECISION: tl.constexpr, BK: tl.constexpr
):
    """``b_sum + rows.T @ deltas``, ``[ins + 1, outs]``."""
    return _add_product(b_sum, p_rows, 1, ins, ins, n, p_deltas, outs, 1, n, outs, tile, BIAS, PRECISION, BK)


@triton.jit
def _tanh(b_x):
    # near zero by its series: the quotient loses all digits there
    b_square = b_x * b_x
    b_series = 1.0 + b_square * (-1 / 3 + b_square * (2 / 15 + b_square * (-17 / 315 + b_square * (62 / 2835))))
    b_quotient = 1.0 - 2.0 / (tl.exp(2.0 * tl.abs(b_x)) + 1.0)
    return tl.where(b_square < 0.04, b_x * b_series, tl.where(b_x < 0, -b_quotient, b_quotient))


@triton.jit
def _density(b_x):
    return 0.3989422804014327 * tl.exp(-0.5 * b_x * b_x)


@triton.jit
def _cumulative(b_x):
    return 0.5 + 0.5 * tl.erf(b_x * 0.7071067811865476)


@triton.jit
def activation_of(b_x, ACTIVATION: tl.constexpr):
    if ACTIVATION == "relu":
        return tl.where(b_x > 0, b_x, 0.0)
    elif ACTIVATION == "tanh":
        return _tanh(b_x)
    elif ACTIVATION == "gelu":
        return b_x * _cumulative(b_x)
    elif ACTIVATION == "silu":
        return b_x * tl.sigmoid(b_x)
    else:
        tl.static_assert(ACTIVATION == "identity", "Expected a known ACTIVATION")
        return b_x


@triton.jit
def slope_of(b_x, ACTIVATION: tl.constexpr):
    """The slope, from the activation's value; of GELU and SiLU from what went into it."""
    if ACTIVATION == "relu":
        return tl.where(b_x > 0, 1.0, 0.0)
    elif ACTIVATION == "tanh":
        return 1.0 - b_x * b_x
    elif ACTIVATION == "gelu":
        return _cumulative(b_x) + b_x * _density(b_x)
    elif ACTIVATION == "silu":
        b_share = tl.sigmoid(b_x)
        return b_share * (1.0 + b_x * (1.0 - b_share))
    else:
        tl.static_assert(ACTIVATION == "identity", "Expected a known ACTIVATION")
        return b_x * 0.0 + 1.0


@triton.jit
def bend_of(b_x, ACTIVATION: tl.constexpr):
    """The second derivative, from what went in."""
    if ACTIVATION == "silu":
        b_share = tl.sigmoid(b_x)
        return b_share * (1.0 - b_share) * (2.0 + b_x * (1.0 - 2.0 * b_share))
    else:
        tl.static_assert(ACTIVATION == "gelu", "Expected a known ACTIVATION")
        return _density(b_x) * (2.0 - b_x * b_x)


@triton.jit
def loss_of(b_logits, p_targets, tile, m_tile, rows, classes, LOSS: tl.constexpr):
    """The sum of the rows' losses, and their gradient at the logits."""
    o_row, o_column = tile
    if LOSS == "cross_entropy":
        b_label = tl.load(p_targets + o_row, mask=o_row < rows, other=0.0)
        b_shown = tl.where((o_column < classes)[None, :], b_logits, float("-inf"))
        b_high = tl.max(b_shown, 1)
        b_exp = tl.exp(b_shown - b_high[:, None])
        b_total = tl.sum(b_exp, 1)
        m_label = (o_column[None, :] == b_label[:, None]) & m_tile
        b_picked = tl.sum(tl.where(m_label, b_logits, 0.0), 1)
        b_each = tl.log(b_total) + b_high - b_picked
        # a label that no class has shows itself
        b_each = tl.where((b_label >= 0) & (b_label < classes), b_each, float("nan"))
        b_delta = b_exp / b_total[:, None] - tl.where(m_label, 1.0, 0.0)
        return tl.sum(tl.where(o_row < rows, b_each, 0.0), 0), b_delta
    else:
        b_targets = tl.load(p_targets + o_row[:, None] * classes + o_column[None, :], mask=m_tile, other=0.0)
        if LOSS == "bce":
            b_small = tl.exp(-tl.abs(b_logits))
            b_each = tl.where(b_logits > 0, b_logits, 0.0) - b_logits * b_targets + tl.log(1.0 + b_small)
            b_delta = tl.where(b_logits > 0, 1.0 / (1.0 + b_small), b_small / (1.0 + b_small)) - b_targets
        else:
            tl.static_assert(LOSS == "mse", "Expected a known LOSS")
            b_delta = b_logits - b_targets
            b_each = b_delta * b_delta
            b_delta = 2.0 * b_delta
        return tl.sum(tl.sum(tl.where(m_tile, b_each, 0.0), 1), 0), b_delta


@triton.jit
def loss_tangent_of(b_logits, b_tangent, tile, classes, LOSS: tl.constexpr):
    """The tangent of the gradient at the logits, from the tangent of the logits."""
    _, o_column = tile
    if LOSS == "cross_entropy":
        b_shown = tl.where((o_column < classes)[None, :], b_logits, float("-inf"))
        b_exp = tl.exp(b_shown - tl.max(b_shown, 1)[:, None])
        b_share = b_exp / tl.sum(b_exp, 1)[:, None]
        # what lies behind the last class is zero in any case, but a product that meets the sum would be fused into it:
        # the lanes of a row would add up with other roundings, and which of their sums counts would be open
        b_product = tl.where((o_column < classes)[None, :], b_share * b_tangent, 0.0)
        return b_share * (b_tangent - tl.sum(b_product, 1)[:, None])
    elif LOSS == "bce":
        b_small = tl.exp(-tl.abs(b_logits))
        return b_tangent * b_small / ((1.0 + b_small) * (1.0 + b_small))
    else:
        tl.static_assert(LOSS == "mse", "Expected a known LOSS")
        return 2.0 * b_tangent
