"""Sixteen numbers at a time in compiled code: a numba type for a vector, and the few operations that the loops need.

Every operation is generic LLVM, so it is right on every processor; one without 512-bit registers splits the vectors.
`squeeze` and `expand` are single instructions with AVX-512 only (`SQUEEZES`): elsewhere the loops move single entries.
IEEE arithmetic is not relaxed; only `times_plus` rounds once instead of twice, where the processor can.
"""

# mypy: disable-error-code="untyped-decorator"

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

from llvmlite import binding, ir
from numba import config, types
from numba.core import cgutils
from numba.core.typing.templates import AbstractTemplate, infer_global, signature
from numba.extending import intrinsic, lower_builtin, models, register_model

LANES = 16


def _squeezes() -> bool:
    """Whether the processor that numba compiles for has an instruction that squeezes a vector."""
    if config.CPU_FEATURES is not None:
        return "+avx512f" in config.CPU_FEATURES
    return config.CPU_NAME in (None, "host") and bool(binding.get_host_cpu_features().get("avx512f", False))


SQUEEZES = _squeezes()


class Vector(types.Type):  # type: ignore[misc]
    """The type of sixteen numbers of one kind; lives in registers only."""

    def __init__(self, name: str, element: ir.Type) -> None:
        self.llvm = ir.VectorType(element, LANES)
        super().__init__(name=name)


@register_model(Vector)
class _VectorModel(models.PrimitiveModel):  # type: ignore[misc]
    def __init__(self, manager: Any, kind: Vector) -> None:
        super().__init__(manager, kind, kind.llvm)


_WORD = ir.IntType(32)
floats = Vector("sixteen_float32", ir.FloatType())
words = Vector("sixteen_uint32", _WORD)
flags = Vector("sixteen_bits", ir.IntType(1))
_OF = {types.float32: floats, types.uint32: words, types.int32: words}
_ZEROS = ir.Constant(floats.llvm, None)


def _operation(sign: Any, kind: Vector, emit: Callable[[ir.IRBuilder, ir.Value, ir.Value], ir.Value]) -> None:
    """Define an operator for two vectors of one kind."""

    class Typing(AbstractTemplate):  # type: ignore[misc]
        def generic(self, args: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
            return signature(kind, kind, kind) if tuple(args) == (kind, kind) else None

    infer_global(sign)(Typing)

    @lower_builtin(sign, kind, kind)
    def lower(context: Any, builder: ir.IRBuilder, sig: Any, args: list[ir.Value]) -> ir.Value:
        return emit(builder, *args)


_operation(operator.add, floats, lambda b, x, y: b.fadd(x, y))
_operation(operator.sub, floats, lambda b, x, y: b.fsub(x, y))
_operation(operator.mul, floats, lambda b, x, y: b.fmul(x, y))
_operation(operator.truediv, floats, lambda b, x, y: b.fdiv(x, y))
_operation(operator.add, words, lambda b, x, y: b.add(x, y))
_operation(operator.mul, words, lambda b, x, y: b.mul(x, y))
_operation(operator.xor, words, lambda b, x, y: b.xor(x, y))
_operation(operator.rshift, words, lambda b, x, y: b.lshr(x, y))
_operation(operator.or_, flags, lambda b, x, y: b.or_(x, y))


def _call(builder: ir.IRBuilder, name: str, kind: ir.Type, args: list[ir.Value]) -> ir.Value:
    function = ir.FunctionType(kind, [arg.type for arg in args])
    return builder.call(cgutils.get_or_insert_function(builder.module, function, name), args)


def _address(context: Any, builder: ir.IRBuilder, kind: Any, array: ir.Value, index: ir.Value) -> ir.Value:
    return builder.gep(context.make_array(kind)(context, builder, array).data, [index])


def _spread(builder: ir.IRBuilder, value: ir.Value) -> ir.Value:
    nothing = ir.Constant(ir.VectorType(value.type, LANES), ir.Undefined)
    one = builder.insert_element(nothing, value, ir.Constant(_WORD, 0))
    return builder.shuffle_vector(one, nothing, ir.Constant(words.llvm, None))


@intrinsic
def load(typing: Any, array: Any, index: Any) -> Any:
    """Return array[index : index + 16]; the caller knows that it is there."""
    kind = _OF[array.dtype]

    def generate(context: Any, builder: ir.IRBuilder, sig: Any, args: list[ir.Value]) -> ir.Value:
        place = _address(context, builder, sig.args[0], args[0], args[1])
        value = builder.load(builder.bitcast(place, kind.llvm.as_pointer()))
        value.align = 4
        return value

    return kind(array, types.intp), generate


@intrinsic
def store(typing: Any, array: Any, index: Any, vector: Any) -> Any:
    """Write array[index : index + 16]."""

    def generate(context: Any, builder: ir.IRBuilder, sig: Any, args: list[ir.Value]) -> ir.Value:
        place = _address(context, builder, sig.args[0], args[0], args[1])
        builder.store(args[2], builder.bitcast(place, args[2].type.as_pointer())).align = 4
        return context.get_dummy_value()

    return types.void(array, types.intp, vector), generate


@intrinsic
def store_some(typing: Any, array: Any, index: Any, vector: Any, chosen: Any) -> Any:
    """Write the chosen entries of array[index : index + 16]; the others are not touched and need not be there."""

    def generate(context: Any, builder: ir.IRBuilder, sig: Any, args: list[ir.Value]) -> ir.Value:
        place = builder.bitcast(_address(context, builder, sig.args[0], args[0], args[1]), args[2].type.as_pointer())
        _call(builder, "llvm.masked.store.v16f32.p0", ir.VoidType(), [args[2], place, args[3]])
        return context.get_dummy_value()

    return types.void(array, types.intp, floats, flags), generate


@intrinsic
def expand(typing: Any, array: Any, index: Any, chosen: Any) -> Any:
    """Return array[index], array[index + 1], ... in the chosen lanes, in order, and zero in the others.

    No more entries are read than are chosen.
    """

    def generate(context: Any, builder: ir.IRBuilder, sig: Any, args: list[ir.Value]) -> ir.Value:
        place = _address(context, builder, sig.args[0], args[0], args[1])
        return _call(builder, "llvm.masked.expandload.v16f32", floats.llvm, [place, args[2], _ZEROS])

    return floats(array, types.intp, flags), generate


@intrinsic
def prefetch(typing: Any, array: Any, index: Any) -> Any:
    """Ask for the memory at array[index] to be fetched into the second cache; it need not be inside the array."""

    def generate(context: Any, builder: ir.IRBuilder, sig: Any, args: list[ir.Value]) -> ir.Value:
        place = _address(context, builder, sig.args[0], args[0], args[1])
        read, near, data = (ir.Constant(_WORD, number) for number in (0, 2, 1))
        _call(builder, "llvm.prefetch.p0", ir.VoidType(), [place, read, near, data])
        return context.get_dummy_value()

    return types.void(array, types.intp), generate


@intrinsic
def squeeze(typing: Any, vector: Any, chosen: Any) -> Any:
    """Return the chosen lanes side by side from the first lane on, then zeros."""

    def generate(context: Any, builder: ir.IRBuilder, sig: Any, args: list[ir.Value]) -> ir.Value:
        return _call(builder, "llvm.experimental.vector.compress.v16f32", floats.llvm, [*args, _ZEROS])

    return floats(floats, flags), generate


@intrinsic
def spread(typing: Any, value: Any) -> Any:
    """Return a vector of sixteen times `value` (float32, uint32 or int32)."""

    def generate(context: Any, builder: ir.IRBuilder, sig: Any, args: list[ir.Value]) -> ir.Value:
        return _spread(builder, args[0])

    return _OF[value](value), generate


@intrinsic
def ramp(typing: Any) -> Any:
    """Return 0, 1, ..., 15."""

    def generate(context: Any, builder: ir.IRBuilder, sig: Any, args: list[ir.Value]) -> ir.Value:
        return ir.Constant(words.llvm, list(range(LANES)))

    return words(), generate


@intrinsic
def lanes(typing: Any, word: Any) -> Any:
    """Return the sixteen bits of a uint16, the lowest first."""

    def generate(context: Any, builder: ir.IRBuilder, sig: Any, args: list[ir.Value]) -> ir.Value:
        return builder.bitcast(args[0], flags.llvm)

    return flags(types.uint16), generate


@intrinsic
def ones(typing: Any, word: Any) -> Any:
    """Return how many bits of a uint16 are set."""

    def generate(context: Any, builder: ir.IRBuilder, sig: Any, args: list[ir.Value]) -> ir.Value:
        return builder.zext(_call(builder, "llvm.ctpop.i16", args[0].type, args), ir.IntType(64))

    return types.int64(types.uint16), generate


@intrinsic
def ones_of_word(typing: Any, array: Any, index: Any) -> Any:
    """Return how many bits of the eight bytes array[index : index + 8] are set."""

    def generate(context: Any, builder: ir.IRBuilder, sig: Any, args: list[ir.Value]) -> ir.Value:
        place = _address(context, builder, sig.args[0], args[0], args[1])
        word = builder.load(builder.bitcast(place, ir.IntType(64).as_pointer()))
        word.align = 1
        return _call(builder, "llvm.ctpop.i64", word.type, [word])

    return types.int64(array, types.intp), generate


@intrinsic
def less(typing: Any, left: Any, right: Any) -> Any:
    """Compare two vectors of words as signed numbers."""

    def generate(context: Any, builder: ir.IRBuilder, sig: Any, args: list[ir.Value]) -> ir.Value:
        return builder.icmp_signed("<", *args)

    return flags(words, words), generate


@intrinsic
def choose(typing: Any, chosen: Any, yes: Any, no: Any) -> Any:
    """Return the lanes of `yes` where chosen, of `no` elsewhere."""

    def generate(context: Any, builder: ir.IRBuilder, sig: Any, args: list[ir.Value]) -> ir.Value:
        return builder.select(*args)

    return yes(flags, yes, yes), generate


@intrinsic
def times_plus(typing: Any, left: Any, right: Any, more: Any) -> Any:
    """Return left * right + more."""

    def generate(context: Any, builder: ir.IRBuilder, sig: Any, args: list[ir.Value]) -> ir.Value:
        return _call(builder, "llvm.fmuladd.v16f32", floats.llvm, args)

    return floats(floats, floats, floats), generate


@intrinsic
def root(typing: Any, vector: Any) -> Any:
    """Return the square roots."""

    def generate(context: Any, builder: ir.IRBuilder, sig: Any, args: list[ir.Value]) -> ir.Value:
        return _call(builder, "llvm.sqrt.v16f32", floats.llvm, args)

    return floats(floats), generate
