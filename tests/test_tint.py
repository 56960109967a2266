"""Tint, the browsers' front end, accepts every shader: of all kernels and schedules, and of compiled models. Runs without a GPU."""
from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
import tilewright
import tint
from cases import Case, cases
from tilewright.api import compile_for
from tilewright.compiler.codegen import Shader, enables, module_text, render
from tilewright.compiler.device import Device, shipped_devices
from tilewright.compiler.ir import Choice
from tilewright.compiler.kernel import Site
from tilewright.frontends.checkpoint import open_checkpoint
from tilewright.frontends.weights import requantization
from tilewright.templates import KERNELS
from tilewright.testing import schedules

DEMO = Path(tilewright.__file__).parent / "frontends" / "demo" / "tales-llama4"
TRUTH = Path(__file__).parent / "data" / "truth"
browser = pytest.mark.skipif(not tint.find_chromium(), reason=f"needs one of {', '.join(tint.BROWSERS)} on PATH")
VECTORS = {"": (4, 4), "vec2": (8, 8), "vec3": (12, 16), "vec4": (16, 16)}     # bytes and alignment


def forms(device: Device) -> list[Device]:
    return [device, device.without("subgroups")] if device.subgroups else [device]


def shaders_of(case: Case) -> dict[Choice, Shader]:
    """The shaders of all schedules that the kernel offers for the case on all known devices. Equal choices are taken to give equal ones.

    Those with products of matrices, which no browser has for a software adapter, are test_matrices.py's."""
    kernel, found = KERNELS[case.kernel], {}
    for device in (form for shipped in shipped_devices() if not shipped.matrices for form in forms(shipped)):
        for schedule in schedules(case.graph, kernel, device):
            choice = Choice(kernel.name, tuple(schedule.items()))
            if choice not in found:
                found[choice] = render(Site(case.graph, replace(case.graph.ops[0], choice=choice), device), kernel, choice)
    return found


@pytest.fixture(scope="module")
def rendered() -> dict[str, tuple[str, Shader]]:
    """All shaders of all cases, distinct as Tint gets them: kernel and shader by a name."""
    found: dict[str, tuple[str, str, Shader]] = {}
    for case in cases():
        for choice, shader in shaders_of(case).items():
            found.setdefault(tint_text(shader).replace(str(choice), ""), (f"{choice} of {case.label}", case.kernel, shader))
    return {name: (kernel, shader) for name, kernel, shader in found.values()}


def tint_text(shader: Shader) -> str:
    return tint.as_f32(module_text(shader, "tint"))


def assert_accepted(modules: dict[str, str], pipelines: tuple[str, ...] = ()) -> None:
    refused = {name: error for name, error in tint.check(modules, pipelines).items() if error}
    said = "\n".join(f"{name}: {error[:300]}" for name, error in refused.items())
    assert not refused, f"Tint refuses {len(refused)} of {len(modules)} modules:\n{said}"


def test_every_kernel_has_a_case():
    assert {case.kernel for case in cases()} == KERNELS.keys()


@browser
def test_encoders():
    assert_accepted({f"{layout} from {source}": requantization.shader(layout, source)
                     for layout in requantization.ENCODERS for source in requantization.SOURCES.values()})


def test_workgroup_memory_is_what_kernels_say(rendered):
    """Front ends differ in whether they hold a shader to the device's limit, so the compiler must know the size."""
    wrong = [f"{name}: declares {memory(shader.wgsl)}, says {shader.workgroup_bytes}"
             for name, (_, shader) in rendered.items() if memory(shader.wgsl) > shader.workgroup_bytes]
    assert not wrong, "\n".join(wrong)


@browser
def test_every_schedule_of_every_kernel(rendered):
    modules = {name: tint_text(shader) for name, (_, shader) in rendered.items()}
    shortest = {kernel: name for name, (kernel, _) in sorted(rendered.items(), key=lambda item: -len(item[1][1].wgsl))}
    assert_accepted(modules, tuple(shortest.values()))


@browser
@pytest.mark.parametrize("dtype", ["f32", "f16"])
def test_every_shader_of_the_demo(dtype):
    checkpoint = open_checkpoint(DEMO)
    modules = {}
    for device in (form for shipped in shipped_devices() if not shipped.matrices for form in forms(shipped)):
        if dtype == "f32" or "shader-f16" in device.features:
            shaders = compile_for(checkpoint, device, dtype=dtype).manifest["shaders"]
            assert shaders
            modules |= {f"{s['kernel']}, shader {i} for {device.name}, subgroups of {device.subgroup_size}":
                        tint.as_f32(enables(s["needs"], "tint") + s["wgsl"]) for i, s in enumerate(shaders)}
    assert_accepted(modules)


@browser
def test_every_shader_of_every_family():
    """For the least that every browser has."""
    device = next(d for d in shipped_devices() if d.name == "web-default")
    found = {}
    for path in sorted(TRUTH.iterdir()):
        for i, s in enumerate(compile_for(open_checkpoint(path), device).manifest["shaders"]):
            found.setdefault(enables(s["needs"], "tint") + s["wgsl"], f"{s['kernel']}, shader {i} of {path.name}")
    assert_accepted({name: text for text, name in found.items()})


def memory(wgsl: str, whole: int = 16) -> int:
    """Bytes of a module's workgroup variables, each rounded up to `whole` of them."""
    structs = {name: layout([size_of(t, {}) for t in re.findall(r"\w+: ([\w<>]+)", fields)])
               for name, fields in re.findall(r"struct (\w+) \{(.*?)\}", wgsl, re.S)}
    constants = dict(re.findall(r"const (\w+) = (\d+)u;", wgsl))
    total = 0
    for declared in re.findall(r"var<workgroup> \w+: ([^;]+);", wgsl):
        element, count = m.groups() if (m := re.fullmatch(r"array<([\w<>]+), (\w+)>", declared)) else (declared, "1")
        size, align = size_of(element, structs)
        total += -(-size // align) * align * int(constants.get(count, count).rstrip("u"))
        total += -total % whole
    return total


def size_of(element: str, structs: dict[str, tuple[int, int]]) -> tuple[int, int]:
    """Bytes and alignment of a type that is no array."""
    if element in structs:
        return structs[element]
    m = re.fullmatch(r"(?:(vec[234])<)?(f16|f32|u32|i32|atomic<[ui]32>)>?", element)
    assert m, f"{element} has a size unknown here"
    size, align = VECTORS[m[1] or ""]
    return (size // 2, align // 2) if m[2] == "f16" else (size, align)


def layout(fields: list[tuple[int, int]]) -> tuple[int, int]:
    """Size and alignment of a struct."""
    at, most = 0, max(align for _, align in fields)
    for size, align in fields:
        at = -(-at // align) * align + size
    return -(-at // most) * most, most


@pytest.mark.parametrize("text, wanted", [
    ("enable f16;\nenable subgroups;\n", "enable subgroups;\n"),
    ("array<vec4<f16>>", "array<vec4<f32>>"),
    ("fn f(x: f16) -> vec4h { return vec4h(f16(x) + 1.5h); }", "fn f(x: f32) -> vec4f { return vec4f(f32(x) + 1.5f); }"),
    ("let f16x = unpack2x16float(0x1fu);", "let f16x = unpack2x16float(0x1fu);"),
])
def test_as_f32(text, wanted):
    assert tint.as_f32(text) == wanted
