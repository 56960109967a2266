"""The corners of wgpu-native that wgpu-py wraps slowly, awkwardly or not at all: errors, and shaders without bounds checks."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import wgpu
from wgpu.backends.wgpu_native import _api, ffi, lib

from .adapter import DeviceError

NULL = ffi.NULL


def _know_types() -> None:
    """cffi parses all of wgpu's declarations again for every type that it is asked for by name: 12 ms each, a few tenths of a second until a
    model is loaded. Pointers to and arrays of declared types need no parser, and others need the declarations that they name. Without
    cffi's own parser there is nothing to help."""
    parser: Any = getattr(ffi, "_parser", None)
    declared = getattr(parser, "_declarations", None)
    if not declared:
        return
    from cffi import model

    def parse_type(text: str) -> Any:
        named = re.fullmatch(r"(WGPU\w+) ?(\*|\[\]) ?", text)
        if named and (found := declared.get(f"typedef {named[1]}")):
            return model.PointerType(*found) if named[2] == "*" else model.ArrayType(found[0], None)
        small = type(parser)()
        keys = [f"{kind} {name}" for name in re.findall(r"\w+", text) for kind in ("typedef", "struct", "enum", "union")]
        small._declarations.update({key: declared[key] for key in keys if key in declared})
        return small.parse_type(text)

    parser.parse_type = parse_type


_know_types()


class ShaderError(DeviceError):
    """A refused shader: the compiler's words and the lines around the place."""


class guarded:
    """Turns what wgpu reports inside the block into a DeviceError that starts with `what`.

    wgpu reports an error before the call that made it returns and on the same thread, so one guard may hold many raw calls.
    """

    def __init__(self, what: str) -> None:
        self.what = what

    def __enter__(self) -> None:
        _api.error_handler.capture(self.what)

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        reported = _api.error_handler.release(self.what)
        if error is None and reported is not None:
            raise DeviceError(f"{self.what}: {sentence(reported[1])}")
        if isinstance(error, wgpu.GPUError):
            raise DeviceError(f"{self.what}: {sentence(str(error))}") from None


def sentence(message: str) -> str:
    """wgpu's report in one line: without its headings, the names of its functions and its drawing of the source."""
    if "device is lost" in message:
        return "the GPU was lost (reset by its driver, or removed); open it again"
    noise = re.compile(r"(Validation Error|Internal Error|Out of Memory|Caused by:|In wgpu\w+.*|┌─.*|\d* *│.*|= (?!note).*|)$")
    lines = (re.sub(r"^Shader '.*' parsing error: |^= note: ", "", line.strip()) for line in message.splitlines())
    return ": ".join(line for line in lines if not noise.match(line)) or message


def refusal(label: str, wgsl: str, message: str) -> str:
    """The text of a ShaderError; the place is the last that the compiler names, which is its innermost cause."""
    places = re.findall(r"┌─ .*:(\d+):\d+", message)
    text = f"the shader '{label}' was refused: {sentence(message)}"
    if not places:
        return text
    at = int(places[-1])
    marks = re.findall(r"^ *│(.*\^.*)$", message, re.MULTILINE)
    lines = wgsl.splitlines()
    shown = [f"{'>' if i == at else ' '}{i:4} | {lines[i - 1]}" for i in range(max(1, at - 3), min(len(lines), at + 3) + 1)]
    shown.insert(at - max(1, at - 3) + 1, f"      |{marks[-1] if marks else ''}")
    return "\n".join([text, *shown])


def shader_module(device: Any, wgsl: str, label: str, trusted: bool) -> Any:
    """Compiles WGSL; a trusted module has neither bounds checks nor bounded loops, which wgpu-py has no way to ask for."""
    if not trusted:
        return device.create_shader_module(label=label, code=wgsl)
    source = _api.new_struct_p("WGPUShaderSourceWGSL *", code=_api.to_c_string_view(wgsl))
    source.chain.sType = lib.WGPUSType_ShaderSourceWGSL
    descriptor = _api.new_struct_p(
        "WGPUShaderModuleDescriptor *",
        nextInChain=ffi.cast("WGPUChainedStruct *", source),
        label=_api.to_c_string_view(label),
    )
    raw = _api.libf.wgpuDeviceCreateShaderModuleTrusted(device._internal, descriptor, lib.WGPUShaderRuntimeChecks_None)
    return _api.GPUShaderModule(label, raw, device)


def bind_group(device: Any, layout: Any, ranges: Sequence[tuple[Any, int, int]]) -> Any:
    """Binds (raw buffer, offset, size) to 0, 1, …; a model has a thousand of them, and wgpu-py takes ten times as long."""
    entries = ffi.new("WGPUBindGroupEntry[]", len(ranges))
    for i, (buffer, offset, size) in enumerate(ranges):
        entry = entries[i]
        entry.binding, entry.buffer, entry.offset, entry.size = i, buffer, offset, size
    descriptor = ffi.new("WGPUBindGroupDescriptor *")
    descriptor.layout, descriptor.entryCount, descriptor.entries = layout._internal, len(ranges), entries
    return _api.GPUBindGroup("", lib.wgpuDeviceCreateBindGroup(device._internal, descriptor), device)
