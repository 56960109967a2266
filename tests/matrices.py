"""WGSL with products of small matrices, for adapters that have none: what such a module says, written out over workgroup memory."""
from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
from tilewright import testing
from tilewright.compiler.codegen import Shader, module_text
from tilewright.compiler.device import MATRICES, Device, Matrices

F16 = Matrices("f16", "f32", 16, 16, 16)
LANES = 32      # of a subgroup that is written out, whatever the adapter's own has
DECLARED = re.compile(r"var<workgroup> (\w+): array<(vec4<f16>|vec4<f32>|f32), \d+>;")
LOAD = re.compile(r"subgroupMatrixLoad<subgroup_matrix_(\w+)<f(?:16|32), (\d+), (\d+)>, (\w+)_major>\(\s*&(\w+),")
STORE = re.compile(r"subgroupMatrixStore<row_major>\(&(\w+),")
PLACE = re.compile(r",\s*@builtin\(subgroup_id\) subgroup: u32, @builtin\(subgroup_invocation_id\) lane: u32\) {")
COMMON = """
fn two_halves(word: u32) -> vec2<f16> { return vec2<f16>(unpack2x16float(word)); }
fn multiply_accumulate(left: array<vec4<f32>, LEFT>, right: array<vec4<f32>, QUADS>, given: array<f32, EACH>) -> array<f32, EACH> {
    var rows = left;
    var column = right;
    var made = given;
    for (var i = 0u; i < EACHu; i++) {
        for (var q = 0u; q < QUADSu; q++) { made[i] += dot(rows[i * QUADSu + q], column[q]); }
    }
    return made;
}
"""
# an invocation's elements of a result are `lane` and every LANES-th after it: a column of them, in rows that lie LANES / N apart
FUNCTIONS = {
    "left_row": """fn left_row_ARRAY(at: u32, pitch: u32, lane: u32) -> array<vec4<f32>, LEFT> {
    var made: array<vec4<f32>, LEFT>;
    for (var i = 0u; i < LEFTu; i++) {
        let row = (lane + i / QUADSu * LANESu) / Nu * pitch;
        let k = 4u * (i % QUADSu);
        made[i] = vec4<f32>(ARRAY_at(at, row, k), ARRAY_at(at, row, k + 1u), ARRAY_at(at, row, k + 2u), ARRAY_at(at, row, k + 3u));
    }
    return made;
}
""",
    "right_col": """fn right_col_ARRAY(at: u32, pitch: u32, lane: u32) -> array<vec4<f32>, QUADS> {
    var made: array<vec4<f32>, QUADS>;
    let c = lane % Nu * pitch;
    for (var q = 0u; q < QUADSu; q++) {
        made[q] = vec4<f32>(ARRAY_at(at, c, 4u * q), ARRAY_at(at, c, 4u * q + 1u), ARRAY_at(at, c, 4u * q + 2u), ARRAY_at(at, c, 4u * q + 3u));
    }
    return made;
}
""",
    "right_row": """fn right_row_ARRAY(at: u32, pitch: u32, lane: u32) -> array<vec4<f32>, QUADS> {
    var made: array<vec4<f32>, QUADS>;
    let c = lane % Nu;
    for (var q = 0u; q < QUADSu; q++) {
        let k = 4u * q * pitch;
        made[q] = vec4<f32>(ARRAY_at(at, k, c), ARRAY_at(at, k + pitch, c), ARRAY_at(at, k + 2u * pitch, c), ARRAY_at(at, k + 3u * pitch, c));
    }
    return made;
}
""",
    "result_row": """fn result_row_ARRAY(at: u32, pitch: u32, lane: u32) -> array<f32, EACH> {
    var made: array<f32, EACH>;
    for (var i = 0u; i < EACHu; i++) { made[i] = ARRAY_at(at, (lane + i * LANESu) / Nu * pitch, lane % Nu); }
    return made;
}
""",
    "store": """fn store_ARRAY(at: u32, given: array<f32, EACH>, pitch: u32, lane: u32) {
    var stored = given;
    for (var i = 0u; i < EACHu; i++) {
        let row = (lane + i * LANESu) / Nu * pitch;
        let c = lane % Nu;
        SET;
    }
}
""",
}


def with_matrices(device: Device, shape: Matrices = F16) -> Device:
    """The device as if it multiplied matrices, by default of 16 x 16."""
    return replace(device, features=device.features | {"subgroups", MATRICES}, matrices=(shape,), subgroup_size=LANES)


@contextmanager
def writing_out(shape: Matrices = F16) -> Iterator[None]:
    """Within it, `tilewright.testing` runs what needs matrices without them."""
    def text(shader: Shader, dialect: str) -> str:
        if MATRICES in shader.needs:
            shader = replace(shader, wgsl=written_out(shader.wgsl, shape, LANES), needs=shader.needs - {MATRICES})
        return module_text(shader, dialect)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(testing, "module_text", text)
        yield


def written_out(wgsl: str, shape: Matrices, lanes: int) -> str:
    """The module with matrices as arrays, an invocation holding what its share of a product needs: `lanes` invocations of a workgroup that
    follow one another are a subgroup, and each has some rows of a left matrix, a column of a right one, and that column in those rows of
    results. Places and pitches count elements of the array, which may be vectors."""
    wide = {name: type.startswith("vec4") for name, type in DECLARED.findall(wgsl)}
    each, quads = shape.m * shape.n // lanes, shape.k // 4
    used = {(f"{side}_{major}", array) for side, _, _, major, array in LOAD.findall(wgsl)} | {("store", array) for array in STORE.findall(wgsl)}
    text = PLACE.sub(rf") {{ let subgroup = index / {lanes}u; let lane = index % {lanes}u;", wgsl)
    text = _calls(LOAD, text, lambda m: f"{m[1]}_{m[4]}_{m[5]}(")
    text = _calls(STORE, text, lambda m: f"store_{m[1]}(")
    text = text.replace("subgroupMatrixMultiplyAccumulate", "multiply_accumulate").replace(shape.sums, f"array<f32, {each}>")
    text = text.replace("bitcast<vec2<f16>>(", "two_halves(")     # which naga types wrongly
    assert "subgroup_matrix" not in text and "subgroupMatrix" not in text
    for array in sorted({array for _, array in used}):
        place = "at + row_at + c / 4u][c % 4u" if wide[array] else "at + row_at + c"
        text += f"fn {array}_at(at: u32, row_at: u32, c: u32) -> f32 {{ return f32({array}[{place}]); }}\n"
    for kind, array in sorted(used):
        target = f"{array}[at + row + c / 4u][c % 4u]" if wide[array] else f"{array}[at + row + c]"
        text += FUNCTIONS[kind].replace("SET", f"{target} = stored[i]").replace("ARRAY", array)
    sizes = {"LEFT": each * quads, "QUADS": quads, "EACH": each, "LANES": lanes, "N": shape.n}
    return re.sub(r"\b(LEFT|QUADS|EACH|LANES|N)(u?)\b", lambda m: f"{sizes[m[1]]}{m[2]}", text + COMMON)


def _calls(opening: re.Pattern[str], text: str, name) -> str:
    """The calls that begin so, under the name that `name` gives, with the lane as one more argument."""
    while found := opening.search(text):
        depth, end = 1, found.end()
        while depth:
            depth += {"(": 1, ")": -1}.get(text[end], 0)
            end += 1
        text = f"{text[:found.start()]}{name(found)}{text[found.end():end - 1]}, lane){text[end:]}"
    return text
