"""The Triton kernel that `engine.update` launches: a step of Adam, AdamW, SGD or RMSprop.

Notation: S slots, G groups of parameters; a *tile* is up to TILE numbers of one parameter of one
slot.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _number(c, slots, row):  # type: ignore[no-untyped-def]
    """Number `row` of a slot in float32, rounded once; `c` points to its number 0."""
    return tl.load(c + row * slots).to(tl.float32)


@triton.jit
def _lerp(a, b, weight):  # type: ignore[no-untyped-def]
    """As torch.lerp."""
    return tl.where(weight < 0.5, a + weight * (b - a), b - (b - a) * (1 - weight))


@triton.jit  # type: ignore[untyped-decorator]
def _regularized(  # type: ignore[no-untyped-def]
    g, p, c, slots, L1: tl.constexpr, HELD: tl.constexpr, BOUND: tl.constexpr
):
    """The gradient with L1, held back and clipped by value; NaN stays NaN."""
    if L1:
        sign = (p > 0).to(tl.float32) - (p < 0).to(tl.float32)
        g += sign * _number(c, slots, 6)
    if HELD:
        g = tl.where(_number(c, slots, 8) > 0, 0.0, g)
    if BOUND:
        bound = _number(c, slots, 7)
        g = tl.where(g > bound, bound, tl.where(g < -bound, -bound, g))
    return g


@triton.jit(do_not_specialize=["slots"], do_not_specialize_on_alignment=["numbers", "squares"])  # type: ignore[untyped-decorator]
def moved(  # type: ignore[no-untyped-def]
    weights,  # not `params`: Triton's own code around a kernel has a variable of that name
    grads, first, second, mean, tiles, numbers, scale, squares, slots,
    RULE: tl.constexpr, DECAY: tl.constexpr, L1: tl.constexpr, BOUND: tl.constexpr,
    HELD: tl.constexpr, NORM: tl.constexpr, AVERAGE: tl.constexpr,
    ROWS: tl.constexpr, TILE: tl.constexpr, UNIT: tl.constexpr,
):  # fmt: skip
    """One tile of one slot, by a program of the grid (tiles, S).

    DECAY is 0, 1 (L2) or 2 (decoupled); NORM 0, 1 (add up squares, change nothing) or 2 (multiply
    by `scale`).

    weights, first, second, mean are the storages of the parameters, their moments and running
    average: parameter after parameter, in each slot after slot. grads is a tuple, a tensor of each
    parameter of the launch, slot after slot. tiles is a table of `Update.tiles`, whose places are
    in units of UNIT numbers: four lie on 16 bytes, which are then read at once. numbers (G, ROWS,
    S). squares (tiles, S) are written with NORM 1, scale (S,) is read with NORM 2; where something
    is not used, any pointer stands for it.
    """
    tile, slot = tl.program_id(0), tl.program_id(1)
    which, group = tl.load(tiles + tile * 6), tl.load(tiles + tile * 6 + 1)
    begin, size = tl.load(tiles + tile * 6 + 2) * UNIT, tl.load(tiles + tile * 6 + 3) * UNIT
    start, shift = tl.load(tiles + tile * 6 + 4) * UNIT, tl.load(tiles + tile * 6 + 5) * UNIT
    within = start + tl.arange(0, TILE)
    inside = within < size
    place = begin * slots + slot * size + within
    c = numbers + group * ROWS * slots + slot
    given = grads[0]  # of the parameter that the tile is of; a tuple takes no index of run time
    for i in tl.static_range(1, len(grads)):
        given = tl.where(which == i, grads[i], given)
    g = tl.load(given + shift + slot * size + within, mask=inside, other=0.0)
    p = tl.load(weights + place, mask=inside, other=0.0)
    g = _regularized(g, p, c, slots, L1, HELD, BOUND)
    if NORM == 1:
        tl.store(squares + tile * slots + slot, tl.sum(tl.where(inside, g * g, 0.0), 0))
    else:
        if NORM == 2:
            g *= tl.load(scale + slot)
        if DECAY == 1:
            g += p * _number(c, slots, 5)
        if DECAY == 2:
            p *= _number(c, slots, 5)
        c0, c1 = _number(c, slots, 0), _number(c, slots, 1)
        c2, c3 = _number(c, slots, 2), _number(c, slots, 3)
        m = tl.load(first + place, mask=inside, other=0.0)
        if RULE == "sgd":  # momentum, of_grad, of_buffer, new
            m = m * c0 + g * c3
            p = p + g * c1
            p = p + m * c2
        else:
            c4 = _number(c, slots, 4)
            v = tl.load(second + place, mask=inside, other=0.0)
            if RULE == "rmsprop":  # alpha, eps, momentum, one_minus_alpha, rate
                m = m * c0 + g * (g * c3)
                v = v * c2 + tl.div_rn(g, tl.sqrt_rn(m) + c1)
                p = p + v * c4
            else:  # one_minus_beta1, beta2, one_minus_beta2, eps, rate
                m = _lerp(m, g, c0)
                v = v * c1 + g * (g * c2)
                p = p + tl.div_rn(m, tl.sqrt_rn(v) + c3) * c4
            tl.store(second + place, v, mask=inside)
        tl.store(first + place, m, mask=inside)
        tl.store(weights + place, p, mask=inside)
        if AVERAGE:
            kept = tl.load(mean + place, mask=inside, other=0.0)
            tl.store(mean + place, _lerp(kept, p, _number(c, slots, 9)), mask=inside)
