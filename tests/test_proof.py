"""Proofs that indices are in range: bugs are planted in shaders that are, and what is proved is held to counting."""
from __future__ import annotations

import re
from pathlib import Path

import pytest
import tilewright.compiler
from hypothesis import given, settings
from hypothesis import strategies as st
from tilewright.api import compile_for, open_checkpoint
from tilewright.compiler.device import read_device
from tilewright.compiler.proof import proved, unproved

DEVICES = Path(tilewright.compiler.__file__).parent / "devices"
MODEL = Path(tilewright.__file__).parent / "frontends/demo/tales-llama4"

SHADER = """@group(0) @binding(0) var<storage, read> a0: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read_write> a1: array<f32>;
@group(0) @binding(2) var<storage, read> step: array<i32>;
var<workgroup> shared_sums: array<f32, 8>;
fn a0_load4(i: u32) -> vec4<f32> { return vec4<f32>(a0[i]); }
fn a1_store(i: u32, v: f32) { a1[i] = f32(v); }
@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) index: u32) {
    let lane = index % 8u;
    let row = group.x * 8u + index / 8u;
    var sum = 0.0;
    let slot = min(u32(step[group.y]), 2u);
    for (var block = lane; block < 32u; block += 8u) {
        let x = a0_load4((slot * 16u + min(row, 15u)) * 32u + block);
        sum += dot(x, x);
    }
    shared_sums[index / 8u] = sum;
    workgroupBarrier();
    if (row < 15u) { a1_store(row, shared_sums[lane]); } else if (row < 16u) { a1_store(row - 1u, sum); }
}
"""
GRID, SIZES = (2, 3, 1), (16 * 32 * 16 * 3, 15 * 4, 3 * 4)


def test_a_shader_whose_indices_are_in_range_is_proved():
    assert unproved(SHADER, GRID, SIZES) is None
    assert unproved(f"// a comment }} {{ (\n{SHADER}\n// and the last", GRID, SIZES) is None


@pytest.mark.parametrize("old, new", [
    ("min(row, 15u)", "row + 1u"), ("min(u32(step[group.y]), 2u)", "u32(step[group.y])"),
    ("block < 32u", "block < 33u"), ("array<f32, 8>", "array<f32, 7>"),
    ("row < 15u", "row < 17u"), ("row < 15u", "row < 15u || sum > 0.0"), ("a1_store(row - 1u", "a1_store(row"),
    ("a1_store(row - 1u", "a1_store(row - 16u"),
    ("index / 8u] = sum", "index / 7u] = sum"), ("% 8u", "% 9u"), ("step[group.y]), 2u", "step[group.y + 1u]), 2u"),
    ("let x = a0", "block += 1u; let x = a0"), ("for (var block = lane; block < 32u; block += 8u)", "loop"), ("a0[i]", "a0[i + 1u]"),
    ("let row =", "var row ="), ("shared_sums[lane]", "shared_sums[lane << 1u]"),
    ("(row < 15u) {", "(row < 15u) { let row = 15u;"), ("(row < 15u) {", "((row < 15u) == false) {"),
    ("(row < 15u) {", "(select(true, false, row < 15u)) {"),
    ("(row < 15u) {", "(row < 15u) { { var a1: array<f32, 99>; a1[98] = sum; } a1[98] = sum;"), ("a0_load4((slot", "x[step[0]] * a0_load4((slot"),
    ("let x = a0", "let y = vec4<f32>(); let x = y[lane] * a0"), ("let x = a0", "let x = # a0"),
    ("sum += dot", "sum += f32(step[9]) + dot"), ("sum += dot", "sum += a0_load4(block * 999u).x + dot"), ("sum); }\n}", "sum); }\n"),
    ("(row < 15u", "(row < 15u("),
])
def test_planted_violations_are_found(old, new):
    planted = SHADER.replace(old, new)
    if new == "var row =":      # an assignment within the condition that narrows it
        planted = planted.replace("(row < 15u) {", "(row < 15u) { row = row + 8u;")
    assert planted != SHADER
    assert unproved(planted, GRID, SIZES)


@pytest.mark.parametrize("grid, sizes", [((3, 3, 1), SIZES), ((2, 4, 1), SIZES), (GRID, (SIZES[0] - 4, *SIZES[1:])),
                                         (GRID, (SIZES[0], 14 * 4, 12))])
def test_a_larger_grid_or_a_smaller_buffer_is_not_proved(grid, sizes):
    reason = unproved(SHADER.replace("min(row, 15u)", "row"), grid, sizes)
    assert reason and re.search(r"an index of \w+ may be \d+ to \d+, and it has \d+ elements", reason)


LEAVES = st.sampled_from(["index", "group.x", "group.y", "lane", "i", "3u", "1u", "16u", "7u", "40u"])


def _grow(inner):
    binary = st.builds("({} {} {})".format, inner, st.sampled_from(["+", "-", "*", "/", "%", "&", "|", "^"]), inner)
    shifted = st.builds("({} {} {}u)".format, inner, st.sampled_from(["<<", ">>"]), st.integers(0, 4))
    called = st.builds("{}({}, {})".format, st.sampled_from(["min", "max"]), inner, inner)
    return binary | shifted | called | st.builds("select({}, {}, lane > 2u)".format, inner, inner)


def _meaning(text: str, names: dict[str, int]) -> int | None:
    """The expression in u32 arithmetic; None where it divides by zero."""
    wrapped = re.sub(r"\b(\d+)u\b", r"U(\1)", text).replace("group.", "group_")
    def choose(a, b, c): return b if c else a
    try:
        return int(eval(wrapped, {"U": U, "min": min, "max": max, "select": choose} | {n: U(v) for n, v in names.items()}))
    except ZeroDivisionError:
        return None


class U(int):
    """A u32."""


for _name in ("add", "sub", "mul", "floordiv", "mod", "and", "or", "xor", "lshift", "rshift"):
    _method = f"__{_name}__"
    setattr(U, "__truediv__" if _name == "floordiv" else _method,
            lambda a, b, _method=_method: U(getattr(int, _method)(int(a), int(b)) % 2**32))


@settings(max_examples=400, deadline=None)
@given(index=st.recursive(LEAVES, _grow, max_leaves=7), length=st.sampled_from([1, 4, 16, 64, 200, 1000, 5000]), limit=st.integers(1, 9),
       start=st.sampled_from(["0u", "lane", "group.x"]), stride=st.integers(1, 5),
       guard=st.sampled_from(["", "lane < 3u", "group.x >= 1u", "i > 2u"]))
def test_what_is_proved_stays_in_range(index, length, limit, start, stride, guard):
    body = f"a0[{index}] = 1.0;"
    text = f"""@group(0) @binding(0) var<storage, read_write> a0: array<f32>;
@compute @workgroup_size(12)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) index: u32) {{
    let lane = index % 5u;
    for (var i = {start}; i < {limit}u; i += {stride}u) {{ {f"if ({guard}) {{ {body} }}" if guard else body} }}
}}"""
    if unproved(text, (3, 2, 1), (4 * length,)) is not None:
        return
    for x in range(3):
        for y in range(2):
            for lane in range(12):
                names = {"index": lane, "lane": lane % 5, "group_x": x, "group_y": y}
                for i in range(_meaning(start, names), limit, stride):
                    if not guard or _meaning(guard, names | {"i": i}):
                        found = _meaning(index, names | {"i": i})
                        assert found is None or found < length, (x, y, lane, i, found)


@pytest.fixture(scope="module")
def packages():
    """The demo model compiled for devices that are not here."""
    checkpoint = open_checkpoint(MODEL)
    return {name: compile_for(checkpoint, read_device(DEVICES / f"{name}.toml"), context=128, quantize="q4_0", batch=8)
            for name in ("nvidia-h200", "web-default")}


@pytest.mark.parametrize("program", ["decode_1", "decode_8"])
@pytest.mark.parametrize("record", ["nvidia-h200", "web-default"])
def test_the_shaders_that_decode_are_proved(record, program, packages):
    manifest = packages[record].manifest
    numbers = proved(manifest)
    for d in manifest["programs"][program]["dispatches"]:
        kernel = manifest["shaders"][d["shader"]]["kernel"]
        if not kernel.startswith(("argmax", "sample")):
            assert d["shader"] in numbers, kernel


def test_a_package_whose_buffers_are_too_small_is_not_proved(packages):
    manifest = packages["nvidia-h200"].manifest
    dispatches = manifest["programs"]["decode_1"]["dispatches"]
    first = dispatches[1]
    smaller = {**first, "bindings": [[name, at, size // 2] for name, at, size in first["bindings"]]}
    changed = {**manifest, "programs": {"decode_1": {"dispatches": [smaller]}}}
    assert first["shader"] in proved(manifest) and first["shader"] not in proved(changed)
