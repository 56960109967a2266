"""Element-wise ops of general tensor graphs: arithmetic, comparisons, bits, casts, and the functions of neural networks.

They join the table of ops.py and take operands as its element-wise ops do: all of one dtype, f32 or i32, the first as large as the result.
Truth is an i32 that is 0 or 1. Integers wrap at 32 bits; narrower ones are kept in range by `wrap`.
"""
from __future__ import annotations

import math

import numpy as np

from .ir import Value
from .ops import NUMPY, OPS, OpDef, broadcast, need, sigmoid

# WGSL functions that the expressions below call, by name; a kernel that uses one appends it
FUNCTIONS: dict[str, str] = {}
INTEGERS = {8: (-128, 127), 16: (-32768, 32767), 32: (-2**31, 2**31 - 1)}


def _define(kind: str, operands: str, wgsl: str, reference, dtype: str = "", takes: str = "f32 i32") -> None:
    """dtype: of the result, if it is not that of the operands."""
    def infer(*v: Value, **attrs) -> Value:
        made = broadcast(*v)
        need(all(x.dtype in takes.split() for x in v), f"{kind} takes {takes}, not {', '.join(map(str, v))}")
        need(len({x.dtype for x in v}) == 1, f"operands differ in dtype: {', '.join(map(str, v))}")
        return Value(made.shape, dtype or made.dtype)

    def quietly(*arrays, **attrs):
        with np.errstate(all="ignore"):
            return reference(*arrays, **attrs)
    OPS[kind] = OpDef(tuple(operands.split()), infer, quietly, wgsl=wgsl)


def _function(name: str, text: str) -> None:
    FUNCTIONS[name] = text


# Arithmetic.

_define("sub", "a b", "({0} - {1})", np.subtract)
_define("div", "a b", "({0} / {1})", lambda a, b: a / b, takes="f32")
_define("negate", "a", "(-{0})", np.negative)
_define("absolute", "a", "abs({0})", np.abs)
_define("sign", "a", "sign({0})", np.sign)
_define("maximum", "a b", "max({0}, {1})", np.maximum)
_define("minimum", "a b", "min({0}, {1})", np.minimum)
_define("floor", "a", "floor({0})", np.floor, takes="f32")
_define("ceil", "a", "ceil({0})", np.ceil, takes="f32")
_define("round", "a", "round({0})", np.rint, takes="f32")        # halves to the even number, as WGSL's
_define("truncate", "a", "trunc({0})", np.trunc, takes="f32")


def _truncated(a, b):
    """Integer division towards zero; by zero it gives the dividend, as in WGSL."""
    b = np.where(b == 0, 1, b).astype(np.int64)
    return np.sign(a) * np.sign(b) * (np.abs(a.astype(np.int64)) // np.abs(b))


_define("int_div", "a b", "({0} / {1})", _truncated, takes="i32")
_define("remainder", "a b", "remainder({0}, {1})", np.fmod, takes="f32")      # the sign of the dividend
_define("float_modulo", "a b", "float_modulo({0}, {1})", np.mod, takes="f32")    # the sign of the divisor
_function("remainder", """fn remainder(a: f32, b: f32) -> f32 {
    let wide = (bitcast<u32>(b) & 0x7fffffffu) == 0x7f800000u;
    let size = (bitcast<u32>(a) & 0x7fffffffu);
    if (b == 0.0 || size >= 0x7f800000u) { return nan(); }
    if (wide) { return a; }
    return a - b * trunc(a / b);
}
""")
_function("float_modulo", """fn float_modulo(a: f32, b: f32) -> f32 {
    let left = remainder(a, b);
    return select(left, left + b, left != 0.0 && (left < 0.0) != (b < 0.0));
}
""")
_define("int_remainder", "a b", "({0} % {1})", lambda a, b: a - _truncated(a, b) * b, takes="i32")
_define("modulo", "a b", "((({0} % {1}) + {1}) % {1})", lambda a, b: np.mod(a, np.where(b == 0, 1, b)), takes="i32")     # the sign of the divisor


def _wrap(a, bits, signed):
    low = 2**(bits - 1) if signed else 0
    return (a.astype(np.int64) + low) % 2**bits - low


_define("wrap_signed", "a", "(({0} << (32u - u32({bits}))) >> (32u - u32({bits})))", lambda a, bits: _wrap(a, bits, True), takes="i32")
_define("wrap_unsigned", "a", "({0} & i32((1u << u32({bits})) - 1u))", lambda a, bits: _wrap(a, bits, False), takes="i32")

# Powers and exponentials. A power keeps the sign of a negative base under an odd whole exponent, which WGSL leaves open.

_function("power", """fn power(a: f32, b: f32) -> f32 {
    let whole = round(b);
    if (b == 2.0) { return a * a; }
    if (b == 0.0) { return 1.0; }
    if (a == 0.0 && b < 0.0) { return infinity(); }
    let size = pow(abs(a), b);
    if (a >= 0.0) { return size; }
    if (whole != b) { return nan(); }
    return select(size, -size, abs(whole - 2.0 * trunc(whole / 2.0)) == 1.0);
}
""")
_function("int_power", """fn int_power(a: i32, b: i32) -> i32 {
    var result = 1;
    var base = a;
    var left = u32(max(b, 0));
    for (; left > 0u; left >>= 1u) {
        if ((left & 1u) == 1u) { result *= base; }
        base *= base;
    }
    return select(result, select(0, select(1, -1, (b & 1) != 0 && a < 0), abs(a) == 1), b < 0);
}
""")
_function("nan", "fn nan() -> f32 { var bits = 0x7fc00000u; return bitcast<f32>(bits); }\n")
_function("infinity", "fn infinity() -> f32 { var bits = 0x7f800000u; return bitcast<f32>(bits); }\n")


def _int_power(a, b):
    result = np.power(a.astype(np.int64), np.maximum(b, 0))
    return np.where(b >= 0, result, np.where(np.abs(a) == 1, np.where(b % 2, a, 1), 0)).astype(np.int64).astype(np.int32)


_define("power", "a b", "power({0}, {1})", np.power, takes="f32")
_define("int_power", "a b", "int_power({0}, {1})", _int_power, takes="i32")
_define("sqrt", "a", "root({0})", np.sqrt, takes="f32")
_function("root", "fn root(a: f32) -> f32 { if (a < 0.0) { return nan(); } return sqrt(a); }\n")
_define("exp", "a", "exp({0})", np.exp, takes="f32")
_define("log", "a", "logarithm({0})", np.log, takes="f32")
_function("logarithm", """fn logarithm(a: f32) -> f32 {
    if (a < 0.0) { return nan(); }
    if (a == 0.0) { return -infinity(); }
    return log(a);
}
""")

# Trigonometry. WGSL promises sines to 2^-11 only: arguments are brought to -pi/4 to pi/4 and meet polynomials (Cephes' sinf and cosf).

_function("quarter", """fn quarter(a: f32) -> vec2<f32> {
    let turns = round(a * 0.636619772);
    return vec2<f32>(((a - turns * 1.5703125) - turns * 4.837512969970703125e-4) - turns * 7.549789948768648e-8, turns);
}
""")
_function("sine", """fn sine(a: f32) -> f32 {
    let q = quarter(a);
    let z = q.x * q.x;
    let s = ((-1.9515295891e-4 * z + 8.3321608736e-3) * z - 1.6666654611e-1) * z * q.x + q.x;
    let c = ((2.443315711809948e-5 * z - 1.388731625493765e-3) * z + 4.166664568298827e-2) * z * z - 0.5 * z + 1.0;
    let n = i32(q.y) & 3;
    return select(s, c, (n & 1) == 1) * select(1.0, -1.0, n >= 2);
}
""")
_define("sin", "a", "sine({0})", np.sin, takes="f32")
_define("cos", "a", "cosine({0})", np.cos, takes="f32")
_function("cosine", """fn cosine(a: f32) -> f32 {
    let q = quarter(a);
    let z = q.x * q.x;
    let s = ((-1.9515295891e-4 * z + 8.3321608736e-3) * z - 1.6666654611e-1) * z * q.x + q.x;
    let c = ((2.443315711809948e-5 * z - 1.388731625493765e-3) * z + 4.166664568298827e-2) * z * z - 0.5 * z + 1.0;
    let n = (i32(q.y) + 1) & 3;
    return select(s, c, (n & 1) == 1) * select(1.0, -1.0, n >= 2);
}
""")
_define("tan", "a", "(sine({0}) / cosine({0}))", np.tan, takes="f32")
_function("arctangent", """fn arctangent(a: f32) -> f32 {
    let t = abs(a);
    var start = 0.0;
    var x = t;
    if (t > 2.414213562) { start = 1.570796327; x = -1.0 / t; } else if (t > 0.414213562) { start = 0.785398163; x = (t - 1.0) / (t + 1.0); }
    let z = x * x;
    let y = start + ((((8.05374449538e-2 * z - 1.38776856032e-1) * z + 1.99777106478e-1) * z - 3.33329491539e-1) * z * x + x);
    return select(y, -y, a < 0.0);
}
""")
_define("atan", "a", "arctangent({0})", np.arctan, takes="f32")
_function("arcsine", """fn arcsine(a: f32) -> f32 {
    let t = abs(a);
    if (t > 1.0) { return nan(); }
    let far = t > 0.5;
    let z = select(t * t, 0.5 * (1.0 - t), far);
    let x = select(t, sqrt(z), far);
    let y = ((((4.2163199048e-2 * z + 2.4181311049e-2) * z + 4.5470025998e-2) * z + 7.4953002686e-2) * z + 1.6666752422e-1) * z * x + x;
    let r = select(y, 1.570796327 - 2.0 * y, far);
    return select(r, -r, a < 0.0);
}
""")
_define("asin", "a", "arcsine({0})", np.arcsin, takes="f32")
_define("acos", "a", "arccosine({0})", np.arccos, takes="f32")
_function("arccosine", """fn arccosine(a: f32) -> f32 {
    if (a > 0.5) { return 2.0 * arcsine(sqrt(0.5 * (1.0 - a))); }
    return 1.570796327 - arcsine(a);
}
""")
# where both exponentials are near 1 their difference is lost, so small arguments take the series
_define("sinh", "a", "sinh_({0})", np.sinh, takes="f32")
_function("sinh_", """fn sinh_(a: f32) -> f32 {
    let z = a * a;
    if (z < 0.25) { return a * (1.0 + z / 6.0 * (1.0 + z / 20.0 * (1.0 + z / 42.0))); }
    return 0.5 * (exp(a) - exp(-a));
}
""")
_define("cosh", "a", "(0.5 * (exp({0}) + exp(-{0})))", np.cosh, takes="f32")
_define("tanh", "a", "tanh_({0})", np.tanh, takes="f32")
_function("tanh_", """fn tanh_(a: f32) -> f32 {
    let z = a * a;
    if (z < 0.0625) { return a * (1.0 - z / 3.0 * (1.0 - z * 0.4 * (1.0 - z * 17.0 / 42.0))); }
    let e = exp(2.0 * clamp(a, -15.0, 15.0));
    return (e - 1.0) / (e + 1.0);
}
""")
_define("asinh", "a", "asinh_({0})", np.arcsinh, takes="f32")
# logarithms are good to 2^-21 only where they are near 0
_function("log1p_", """fn log1p_(a: f32) -> f32 {
    if (abs(a) > 0.25) { return log(1.0 + a); }
    let s = a / (2.0 + a);
    let z = s * s;
    return 2.0 * s * (1.0 + z * (0.333333333 + z * (0.2 + z * (0.142857143 + z * 0.111111111))));
}
""")
_function("asinh_", """fn asinh_(a: f32) -> f32 {
    let t = abs(a);
    let y = log1p_(t + t * t / (1.0 + sqrt(t * t + 1.0)));
    return select(y, -y, a < 0.0);
}
""")
_define("acosh", "a", "acosh_({0})", np.arccosh, takes="f32")
_function("acosh_", """fn acosh_(a: f32) -> f32 {
    if (a < 1.0) { return nan(); }
    let t = a - 1.0;
    return log1p_(t + sqrt(2.0 * t + t * t));
}
""")
_define("atanh", "a", "atanh_({0})", np.arctanh, takes="f32")
_function("atanh_", """fn atanh_(a: f32) -> f32 {
    if (abs(a) > 1.0) { return nan(); }
    return 0.5 * log1p_(2.0 * a / (1.0 - a));
}
""")
# log(1 + exp(a)) without overflow
_define("softplus", "a", "(max({0}, 0.0) + log1p_(exp(-abs({0}))))", lambda a: np.maximum(a, 0) + np.log1p(np.exp(-np.abs(a))), takes="f32")

# the error function as a quotient of polynomials (Eigen's, 4 units in the last place)
_function("erf_", """fn erf_(a: f32) -> f32 {
    let x = clamp(a, -4.0, 4.0);
    let z = x * x;
    let p = ((((((-2.72614225801306e-10 * z + 2.77068142495902e-08) * z - 2.10102402082508e-06) * z - 5.69250639462346e-05) * z
        - 7.34990630326855e-04) * z - 2.95459980854025e-03) * z - 1.60960333262415e-02) * x;
    let q = (((-1.45660718464996e-05 * z - 2.13374055278905e-04) * z - 1.68282697438203e-03) * z - 7.37332916720468e-03) * z
        - 1.42647390514189e-02;
    return p / q;
}
""")
_define("erf", "a", "erf_({0})", lambda a: np.vectorize(math.erf, otypes=[np.float32])(a), takes="f32")

# Truth, choices and bits.

_define("equal", "a b", "select(0, 1, {0} == {1})", np.equal, dtype="i32")
_define("less", "a b", "select(0, 1, {0} < {1})", np.less, dtype="i32")
_define("less_equal", "a b", "select(0, 1, {0} <= {1})", np.less_equal, dtype="i32")
_define("bit_and", "a b", "({0} & {1})", np.bitwise_and, takes="i32")
_define("bit_or", "a b", "({0} | {1})", np.bitwise_or, takes="i32")
_define("bit_xor", "a b", "({0} ^ {1})", np.bitwise_xor, takes="i32")
_define("bit_not", "a", "(~{0})", np.invert, takes="i32")
# by more than 31, or less than 0, everything is shifted out
_define("shift_left", "a b", "select({0} << (u32({1}) & 31u), 0, u32({1}) > 31u)",
        lambda a, b: np.where((b > 31) | (b < 0), 0, a << (b & 31)), takes="i32")
_define("shift_right", "a b", "({0} >> min(u32({1}), 31u))", lambda a, b: a >> np.where((b > 31) | (b < 0), 31, b), takes="i32")
# by the bits: compilers may take it that no float is infinite or no number
_define("is_nan", "a", "select(0, 1, (bitcast<u32>({0}) & 0x7fffffffu) > 0x7f800000u)", np.isnan, dtype="i32", takes="f32")
_define("is_inf", "a", "select(0, 1, (bitcast<u32>({0}) & 0x7fffffffu) == 0x7f800000u)", np.isinf, dtype="i32", takes="f32")


def _where(condition: Value, a: Value, b: Value) -> Value:
    broadcast(condition, a, b)
    need(condition.dtype == "i32", f"the condition {condition} is no truth (i32)")
    need(a.dtype == b.dtype, f"operands differ in dtype: {a}, {b}")
    return Value(condition.shape, a.dtype)


OPS["where"] = OpDef(("condition", "a", "b"), _where, lambda condition, a, b: np.where(condition != 0, a, b), wgsl="select({2}, {1}, {0} != 0)")


def _casts(a: Value, *, to: str) -> Value:
    need(to in NUMPY, f"unknown dtype {to}")
    return Value(a.shape, to)


def _to_integer(a, *, to):
    """Towards zero, and to the nearest end where the number does not fit; what is no number gives 0."""
    return np.clip(np.nan_to_num(np.trunc(a.astype(np.float64)), nan=0.0), *INTEGERS[32]).astype(np.int32)


OPS["to_float"] = OpDef(("a",), _casts, lambda a, to: a.astype(np.float32), wgsl="f32({0})")
OPS["to_integer"] = OpDef(("a",), _casts, _to_integer, wgsl="integer({0})")
OPS["bits_to_float"] = OpDef(("a",), _casts, lambda a, to: a.view(np.float32), wgsl="bitcast<f32>({0})")
OPS["float_to_bits"] = OpDef(("a",), _casts, lambda a, to: a.view(np.int32), wgsl="bitcast<i32>({0})")
# 2147483520 is the greatest float below 2^31
_function("integer", """fn integer(a: f32) -> i32 {
    if ((bitcast<u32>(a) & 0x7fffffffu) > 0x7f800000u) { return 0; }
    if (a >= 2147483648.0) { return 2147483647; }
    if (a <= -2147483648.0) { return -2147483647 - 1; }
    return i32(a);
}
""")

# Functions of neural networks with numbers of their own.

_define("elu", "a", "select({alpha} * (exp(min({0}, 0.0)) - 1.0), {0}, {0} > 0.0)",
        lambda a, alpha: np.where(a > 0, a, np.float32(alpha) * (np.exp(np.minimum(a, 0)) - 1)), takes="f32")
_define("swish", "a", "({0} / (1.0 + exp(-{alpha} * {0})))", lambda a, alpha: a * sigmoid(np.float32(alpha) * a), takes="f32")
_define("clamp", "a", "clamp({0}, {low}, {high})", lambda a, low, high: np.clip(a, np.float32(low), np.float32(high)), takes="f32")
