"""Vectors of float32 for numba: the one thing its loops lack, registers that stay registers.

A `Float32Vector` is one machine vector (16 lanes with AVX-512, else 8). Kernels written with it address memory by
number (`Tensor.data_ptr()`), so nothing is boxed or checked: who calls them has checked shapes, dtype and contiguity.

numba's disk cache watches the file of a kernel only: after a change here, touch the files that use it.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import llvmlite.binding
from llvmlite import ir
from numba import types
from numba.extending import intrinsic as _intrinsic
from numba.extending import models, overload, register_model

LANES = 16 if llvmlite.binding.get_host_cpu_features().get("avx512f", False) else 8
BYTES = 4 * LANES
intrinsic: Callable[..., Any] = _intrinsic  # its own annotation knows the generator's arguments, not the caller's
_FLOAT, _INT = ir.FloatType(), ir.IntType(32)
_FLOATS, _INTS = ir.VectorType(_FLOAT, LANES), ir.VectorType(_INT, LANES)


class Float32VectorType(types.Type):
    """LANES numbers in one register."""

    def __init__(self) -> None:
        super().__init__(name=f"float32x{LANES}")


Float32Vector = Float32VectorType()


@register_model(Float32VectorType)
class _Float32VectorModel(models.PrimitiveModel):
    def __init__(self, dmm: Any, fe_type: Any) -> None:
        super().__init__(dmm, fe_type, _FLOATS)


def _spread(builder: Any, scalar: Any) -> Any:
    one = builder.insert_element(ir.Constant(_FLOATS, ir.Undefined), scalar, ir.Constant(_INT, 0))
    return builder.shuffle_vector(one, ir.Constant(_FLOATS, ir.Undefined), ir.Constant(_INTS, [0] * LANES))


@intrinsic
def load(typingctx, address):
    """Return the LANES numbers at `address` (any alignment)."""

    def generate(context, builder, signature, args):
        return builder.load(builder.inttoptr(args[0], _FLOATS.as_pointer()), align=4)

    return Float32Vector(types.int64), generate


@intrinsic
def store(typingctx, address, vector):
    """Write a vector to `address` (any alignment)."""

    def generate(context, builder, signature, args):
        builder.store(args[1], builder.inttoptr(args[0], _FLOATS.as_pointer()), align=4)
        return context.get_dummy_value()

    return types.void(types.int64, Float32Vector), generate


@intrinsic
def load_all(typingctx, address):
    """Return the one number at `address` in every lane."""

    def generate(context, builder, signature, args):
        return _spread(builder, builder.load(builder.inttoptr(args[0], _FLOAT.as_pointer()), align=4))

    return Float32Vector(types.int64), generate


@intrinsic
def copy_number(typingctx, source, target):
    """Copy the one number at address `source` to `target`."""

    def generate(context, builder, signature, args):
        number = builder.load(builder.inttoptr(args[0], _FLOAT.as_pointer()), align=4)
        builder.store(number, builder.inttoptr(args[1], _FLOAT.as_pointer()), align=4)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), generate


@intrinsic
def load_flag(typingctx, address):
    """Return whether the byte at `address` is not zero."""

    def generate(context, builder, signature, args):
        byte = builder.load(builder.inttoptr(args[0], ir.IntType(8).as_pointer()), align=1)
        return builder.icmp_unsigned("!=", byte, ir.Constant(ir.IntType(8), 0))

    return types.boolean(types.int64), generate


@intrinsic
def constant(typingctx, number):
    """Return a number in every lane."""

    def generate(context, builder, signature, args):
        return _spread(builder, builder.fptrunc(args[0], _FLOAT))

    return Float32Vector(types.float64), generate


@intrinsic
def fma(typingctx, a, b, c):
    """Return a * b + c, rounded once where the processor can."""

    def generate(context, builder, signature, args):
        name = f"llvm.fmuladd.v{LANES}f32"
        function_type = ir.FunctionType(_FLOATS, [_FLOATS] * 3)
        return builder.call(builder.module.globals.get(name) or ir.Function(builder.module, function_type, name), args)

    return Float32Vector(Float32Vector, Float32Vector, Float32Vector), generate


@intrinsic
def clamp(typingctx, x, lowest, highest):
    """Return x within [lowest, highest]; NaN stays NaN."""

    def generate(context, builder, signature, args):
        x, lowest, highest = args
        x = builder.select(builder.fcmp_ordered("<", x, lowest), lowest, x)
        return builder.select(builder.fcmp_ordered(">", x, highest), highest, x)

    return Float32Vector(Float32Vector, Float32Vector, Float32Vector), generate


@intrinsic
def where_at_most(typingctx, a, b, chosen, other):
    """Return `chosen` where a <= b, else `other` (as for NaN)."""

    def generate(context, builder, signature, args):
        a, b, chosen, other = args
        return builder.select(builder.fcmp_ordered("<=", a, b), chosen, other)

    return Float32Vector(*[Float32Vector] * 4), generate


@intrinsic
def exponent_of(typingctx, shifted):
    """Return 2**n for shifted = n + 1.5 * 2**23, whose lowest mantissa bits are the whole number n."""

    def generate(context, builder, signature, args):
        bits = builder.shl(builder.bitcast(args[0], _INTS), ir.Constant(_INTS, [23] * LANES))
        return builder.bitcast(builder.add(bits, ir.Constant(_INTS, [127 << 23] * LANES)), _FLOATS)

    return Float32Vector(Float32Vector), generate


def _define(operation: Callable[..., Any], instruction: str) -> None:
    @intrinsic
    def apply(typingctx, a, b):
        def generate(context, builder, signature, args):
            return getattr(builder, instruction)(*args)

        return Float32Vector(Float32Vector, Float32Vector), generate

    @overload(operation)
    def typed(a, b):
        if a is Float32Vector and b is Float32Vector:
            return lambda a, b: apply(a, b)
        return None


for _operation, _instruction in (
    (operator.add, "fadd"),
    (operator.sub, "fsub"),
    (operator.mul, "fmul"),
    (operator.truediv, "fdiv"),
):
    _define(_operation, _instruction)
