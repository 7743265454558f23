"""The LSTM layer on a CPU in float32: one fused pass over the sequence in each direction.

Four (or two) sequences and one vector of units are taken at a time, so that the recurrent product of all four gates
(forward) and of the gradient (backward) stays in registers until it is whole; forward, the activations of a step follow
when all its products are added to the gates. The weights are packed
to be read in order. No sequence's numbers depend on another's, nor on how sequences are grouped or spread over
threads: every sum runs over k in one order, and a reset is a selection, so NaN stays in its sequence.

Relative to exact arithmetic the activations are off by at most about 2e-7 (exp by its Taylor series to degree 6 on
[-ln 2 / 2, ln 2 / 2]).
"""

from __future__ import annotations

from lit_ppo.nets.kernels.simd import BYTES, LANES, constant, fma, load, load_all, load_flag, store
from lit_ppo.nets.kernels.vector_math import compiled, inline, sigmoid, tanh

ROWS = 4  # sequences taken together
MANY_REGISTERS = LANES == 16  # AVX-512 has 32: with 16, four sequences of four gates would spill to memory


@inline
def _add(i, f, g, o, gate, width, flags, row):
    """Add one sequence's products to its gates' inputs, unless it starts anew; `row` after the one of `gate`, `flags`.

    `width` is H in bytes; `flags` is 0 where there are none.
    """
    gate = gate + 4 * row * width
    if flags == 0 or not load_flag(flags + row):
        store(gate, i + load(gate))
        store(gate + width, f + load(gate + width))
        store(gate + 2 * width, g + load(gate + 2 * width))
        store(gate + 3 * width, o + load(gate + 3 * width))


@inline
def _one_product(hidden, weights, H, gate, flags):
    i0, f0, g0, o0 = constant(0.0), constant(0.0), constant(0.0), constant(0.0)
    width = 4 * H
    for k in range(H):
        w = weights + k * 4 * BYTES
        h = load_all(hidden + 4 * k)
        i0, f0 = fma(load(w), h, i0), fma(load(w + BYTES), h, f0)
        g0, o0 = fma(load(w + 2 * BYTES), h, g0), fma(load(w + 3 * BYTES), h, o0)
    _add(i0, f0, g0, o0, gate, width, flags, 0)


@inline
def _two_products(hidden, weights, H, gate, flags):
    i0, f0, g0, o0 = constant(0.0), constant(0.0), constant(0.0), constant(0.0)
    i1, f1, g1, o1 = constant(0.0), constant(0.0), constant(0.0), constant(0.0)
    width = 4 * H
    for k in range(H):
        w = weights + k * 4 * BYTES
        wi, wf, wg, wo = load(w), load(w + BYTES), load(w + 2 * BYTES), load(w + 3 * BYTES)
        h = load_all(hidden + 4 * k)
        i0, f0, g0, o0 = fma(wi, h, i0), fma(wf, h, f0), fma(wg, h, g0), fma(wo, h, o0)
        h = load_all(hidden + width + 4 * k)
        i1, f1, g1, o1 = fma(wi, h, i1), fma(wf, h, f1), fma(wg, h, g1), fma(wo, h, o1)
    _add(i0, f0, g0, o0, gate, width, flags, 0)
    _add(i1, f1, g1, o1, gate, width, flags, 1)


@inline
def _four_products(hidden, weights, H, gate, flags):
    i0, f0, g0, o0 = constant(0.0), constant(0.0), constant(0.0), constant(0.0)
    i1, f1, g1, o1 = constant(0.0), constant(0.0), constant(0.0), constant(0.0)
    i2, f2, g2, o2 = constant(0.0), constant(0.0), constant(0.0), constant(0.0)
    i3, f3, g3, o3 = constant(0.0), constant(0.0), constant(0.0), constant(0.0)
    width = 4 * H
    for k in range(H):
        w = weights + k * 4 * BYTES
        wi, wf, wg, wo = load(w), load(w + BYTES), load(w + 2 * BYTES), load(w + 3 * BYTES)
        h = load_all(hidden + 4 * k)
        i0, f0, g0, o0 = fma(wi, h, i0), fma(wf, h, f0), fma(wg, h, g0), fma(wo, h, o0)
        h = load_all(hidden + width + 4 * k)
        i1, f1, g1, o1 = fma(wi, h, i1), fma(wf, h, f1), fma(wg, h, g1), fma(wo, h, o1)
        h = load_all(hidden + 2 * width + 4 * k)
        i2, f2, g2, o2 = fma(wi, h, i2), fma(wf, h, f2), fma(wg, h, g2), fma(wo, h, o2)
        h = load_all(hidden + 3 * width + 4 * k)
        i3, f3, g3, o3 = fma(wi, h, i3), fma(wf, h, f3), fma(wg, h, g3), fma(wo, h, o3)
    _add(i0, f0, g0, o0, gate, width, flags, 0)
    _add(i1, f1, g1, o1, gate, width, flags, 1)
    _add(i2, f2, g2, o2, gate, width, flags, 2)
    _add(i3, f3, g3, o3, gate, width, flags, 3)


@inline
def _activate(gate, width, cell, previous, output, kept):
    """Turn one vector of units' gates into its new cell and output; keep activations and cell where `kept`."""
    entrance, forget = sigmoid(load(gate)), sigmoid(load(gate + width))
    candidate, exit_ = tanh(load(gate + 2 * width)), sigmoid(load(gate + 3 * width))
    current = fma(forget, previous, entrance * candidate)
    store(cell, current)
    store(output, exit_ * tanh(current))
    if kept != 0:
        store(gate, entrance)
        store(gate + width, forget)
        store(gate + 2 * width, candidate)
        store(gate + 3 * width, exit_)
        store(kept, current)


@compiled
def forward(first, last, T, S, H, gates, hidden, cell, outputs, cells, starts, packed):
    """Sequences first..last-1 of a layer.

    Addresses: gates [T, S, 4H] (in: of the inputs; out, if cells: activations), hidden [S, H] and cell [S, H] before
    the first step (cell out: after the last), outputs [T, S, H], cells [T, S, H] or 0 (without gradient),
    starts [T, S] bytes or 0, packed [H / LANES, H, 4, LANES] recurrent weights.
    """
    width = 4 * H
    for t in range(T):
        if t > 0:
            hidden = outputs + (t - 1) * S * width
        for block in range(H // LANES):  # outermost: its weights stay in the core's nearest cache for every sequence
            weights = packed + block * H * 4 * BYTES
            s = first
            while s < last:
                rows = 4 if s + 4 <= last and MANY_REGISTERS else 2 if s + 2 <= last else 1
                flags = starts + t * S + s if starts != 0 else 0
                source, gate = hidden + s * width, gates + 4 * (t * S + s) * width + block * BYTES
                if rows == 4:
                    _four_products(source, weights, H, gate, flags)
                elif rows == 2:
                    _two_products(source, weights, H, gate, flags)
                else:
                    _one_product(source, weights, H, gate, flags)
                s += rows
        for s in range(first, last):
            row = t * S + s
            fresh = starts != 0 and load_flag(starts + row)
            for unit in range(0, width, BYTES):
                state = cell + s * width + unit
                previous = constant(0.0)
                if not fresh:
                    previous = load(state)
                kept = cells + row * width + unit if cells != 0 else 0
                _activate(gates + 4 * row * width + unit, width, state, previous, outputs + row * width + unit, kept)


@inline
def _finish_backward(product, starts_next, starts, grad_output, gates, cell, previous, carry, width):
    """Turn one sequence's unit vector of dL/dh_t into the gradient of its gates, written over their activations.

    Arguments from `grad_output` on are addresses. `carry` holds dL/dc_t from later steps, and gets that for the step
    before.
    """
    grad_hidden = load(grad_output)
    grad_cell = constant(0.0)
    if not starts_next:
        grad_hidden = grad_hidden + product
        grad_cell = load(carry)
    one = constant(1.0)
    entrance, forget = load(gates), load(gates + width)
    candidate, exit_ = load(gates + 2 * width), load(gates + 3 * width)
    squashed = tanh(load(cell))
    grad_cell = fma(grad_hidden * exit_, one - squashed * squashed, grad_cell)
    before = constant(0.0)
    if not starts:
        before = load(previous)
    store(gates, grad_cell * candidate * entrance * (one - entrance))
    store(gates + width, grad_cell * before * forget * (one - forget))
    store(gates + 2 * width, grad_cell * entrance * (one - candidate * candidate))
    store(gates + 3 * width, grad_hidden * squashed * exit_ * (one - exit_))
    store(carry, grad_cell * forget)


@compiled
def backward(first, last, T, S, H, grad_outputs, gates, cells, cell, carry, starts, packed):
    """Sequences first..last-1 of a layer, from the last step to the first.

    Addresses: grad_outputs [T, S, H], gates [T, S, 4H] (in: activations; out: the gradient before them), cells
    [T, S, H], cell [S, H] before the first step, carry [S, H] (in: gradient of the last cell; out: of the cell before
    the first step, where no reset stands between), starts [T, S] bytes or 0, packed [H / LANES, 4H, LANES].
    """
    width = 4 * H
    for t in range(T - 1, -1, -1):
        inner = t < T - 1
        s = first
        while s < last:
            rows = ROWS if s + ROWS <= last else 1
            source = gates + 4 * ((t + 1) * S + s) * width
            flags = starts + t * S + s
            for block in range(H // LANES):
                p0, p1, p2, p3 = constant(0.0), constant(0.0), constant(0.0), constant(0.0)
                weights = packed + block * 4 * H * BYTES
                if inner and rows == 1:
                    q0 = constant(0.0)
                    for k in range(0, 4 * H, 2):  # even and odd k apart: two chains of additions in flight
                        p0 = fma(load(weights + k * BYTES), load_all(source + 4 * k), p0)
                        q0 = fma(load(weights + (k + 1) * BYTES), load_all(source + 4 * k + 4), q0)
                    p0 = p0 + q0
                elif inner:
                    q0, q1, q2, q3 = constant(0.0), constant(0.0), constant(0.0), constant(0.0)
                    for k in range(0, 4 * H, 2):
                        even, odd = load(weights + k * BYTES), load(weights + (k + 1) * BYTES)
                        a = source + 4 * k
                        p0, q0 = fma(even, load_all(a), p0), fma(odd, load_all(a + 4), q0)
                        a += 4 * width
                        p1, q1 = fma(even, load_all(a), p1), fma(odd, load_all(a + 4), q1)
                        a += 4 * width
                        p2, q2 = fma(even, load_all(a), p2), fma(odd, load_all(a + 4), q2)
                        a += 4 * width
                        p3, q3 = fma(even, load_all(a), p3), fma(odd, load_all(a + 4), q3)
                    p0, p1, p2, p3 = p0 + q0, p1 + q1, p2 + q2, p3 + q3
                for row in range(rows):
                    product = p0
                    if row == 1:
                        product = p1
                    elif row == 2:
                        product = p2
                    elif row == 3:
                        product = p3
                    offset = (t * S + s + row) * width + block * BYTES
                    gate = 4 * (t * S + s + row) * width + block * BYTES
                    state = (s + row) * width + block * BYTES
                    _finish_backward(
                        product,
                        starts != 0 and inner and load_flag(flags + S + row),
                        starts != 0 and load_flag(flags + row),
                        grad_outputs + offset,
                        gates + gate,
                        cells + offset,
                        cells + offset - S * width if t > 0 else cell + state,
                        carry + state,
                        width,
                    )
            s += rows
