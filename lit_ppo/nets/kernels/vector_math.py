"""Functions of vectors (`lit_ppo.nets.kernels.simd`) for numba kernels, and how a kernel is compiled."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import numba
import numpy as np

from lit_ppo.nets.kernels.simd import LANES, clamp, constant, copy_number, exponent_of, fma, load, store

inline = numba.njit(error_model="numpy", forceinline=True)


def compiled(function: Callable) -> Callable:
    """Compile at the first call, or load from numba's disk cache; threads may run the result side by side."""
    try:
        return numba.njit(cache=True, nogil=True, error_model="numpy")(function)
    except RuntimeError:
        warnings.warn(
            "numba found no directory it may write to, so every process compiles the LSTM kernels anew (seconds). "
            "Set NUMBA_CACHE_DIR to a writable one.",
            stacklevel=1,
        )
        return numba.njit(nogil=True, error_model="numpy")(function)


@inline
def exp(x):
    shift = constant(12582912.0)  # 1.5 * 2**23: adding it rounds to a whole number
    x = clamp(x, constant(-87.0), constant(88.0))
    shifted = fma(x, constant(1.4426950408889634), shift)
    whole = shifted - shift
    r = fma(whole, constant(-0.693359375), x)  # ln 2 in two parts, the first exact in 10 bits
    r = fma(whole, constant(2.1219444005469057e-4), r)
    p = fma(constant(1.0 / 720.0), r, constant(1.0 / 120.0))
    p = fma(p, r, constant(1.0 / 24.0))
    p = fma(p, r, constant(1.0 / 6.0))
    p = fma(p, r, constant(0.5))
    p = fma(p, r, constant(1.0))
    p = fma(p, r, constant(1.0))
    return p * exponent_of(shifted)


@inline
def sigmoid(x):
    return constant(1.0) / (constant(1.0) + exp(constant(0.0) - x))


@inline
def tanh(x):
    return constant(1.0) - constant(2.0) / (constant(1.0) + exp(x + x))


@compiled
def tanh_of(inputs, outputs, count):
    """Elementwise, float32; addresses. The last, partial vector is computed as a whole one: same bits at any place."""
    whole = count // LANES * LANES
    for i in range(0, whole, LANES):
        store(outputs + 4 * i, tanh(load(inputs + 4 * i)))
    if whole < count:
        rest = np.zeros(LANES, dtype=np.float32)
        address = rest.ctypes.data
        for i in range(whole, count):
            copy_number(inputs + 4 * i, address + 4 * (i - whole))
        store(address, tanh(load(address)))
        for i in range(whole, count):
            copy_number(address + 4 * (i - whole), outputs + 4 * i)
