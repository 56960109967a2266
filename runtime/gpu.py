"""An opened GPU: buffers, pipelines, replays and submissions; with `submission` and `native` all that knows wgpu."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import Any, NamedTuple
from weakref import WeakSet

import numpy as np
import wgpu

from . import native
from .adapter import AdapterInfo, DeviceError, webgpu_name
from .native import NULL, ShaderError, ffi, guarded, lib
from .submission import BindGroup, Buffer, Copy, Dispatch, Pipeline, Readback, Replay, Staging, encode

USEFUL = {"shader-f16", "subgroup", "timestamp-query", "timestamp-query-inside-passes", "timestamp-query-inside-encoders"}
PIECE = 4 << 20  # big transfers go in pieces: wgpu keeps a second copy of what is under way, and fresh memory is slow
ACCESS = {"read": wgpu.BufferBindingType.read_only_storage, "write": wgpu.BufferBindingType.storage}

SUBGROUP_PROBE = """
@group(0) @binding(0) var<storage, read_write> size: array<u32>;
@compute @workgroup_size(128)
fn main(@builtin(local_invocation_index) index: u32) {
    let lanes = subgroupAdd(1u);
    if (index == 0u) { size[0] = lanes; }
}
"""


class Shader(NamedTuple):
    """WGSL with entry point `main`; binding i of group 0 is the i-th of `bindings`, "read" or "write" (read_write)."""

    wgsl: str
    bindings: tuple[str, ...]
    label: str = ""
    trusted: bool = False  # no bounds checks, no loop bounding: for indices that are proved in range


class Gpu:
    """A device opened with every useful feature and the adapter's own limits; one thread at a time may use it, and another make pipelines."""

    def __init__(self, info: AdapterInfo) -> None:
        self.info = info
        wanted = sorted(USEFUL & set(info.handle.features))
        try:
            self._opened: Any = info.handle.request_device_sync(label="tilewright", required_features=wanted)
        except (RuntimeError, wgpu.GPUError) as error:
            raise DeviceError(f"{info.name} cannot be opened: {native.sentence(str(error))}") from None
        self.features = frozenset(webgpu_name(feature) for feature in wanted)
        self.limits = {name.replace("-", "_"): int(value) for name, value in self._device.limits.items()}
        self._buffers: WeakSet[Buffer] = WeakSet()
        self._layouts: dict[tuple[str, ...], tuple[Any, Any]] = {}
        self._pipelines: dict[tuple[str, tuple[str, ...], bool], Pipeline] = {}
        self._staged = 0
        self._flushed = self._submitted = 0

    @property
    def _device(self) -> Any:
        if self._opened is None:  # wgpu ends the process when it is given what was released
            raise DeviceError(f"{self.info.name} was closed; open it again")
        return self._opened

    @property
    def _queue(self) -> Any:
        return self._device.queue._internal

    # Memory

    def buffer(self, size: int, label: str = "") -> Buffer:
        """A storage buffer of at least `size` bytes, all zero."""
        usage = wgpu.BufferUsage.STORAGE | wgpu.BufferUsage.COPY_SRC | wgpu.BufferUsage.COPY_DST
        buffer = Buffer(*self._allocate(size, usage, label))
        self._buffers.add(buffer)
        return buffer

    def readback(self, size: int, label: str = "") -> Readback:
        """A buffer that submissions copy into and the host reads."""
        usage = wgpu.BufferUsage.MAP_READ | wgpu.BufferUsage.COPY_DST
        readback = Readback(self.poll, *self._allocate(size, usage, label))
        self._buffers.add(readback)
        return readback

    def staging(self, size: int, label: str = "") -> Staging:
        """A buffer that the host writes and submissions copy from."""
        staging = Staging(self.poll, *self._allocate(size, wgpu.BufferUsage.MAP_WRITE | wgpu.BufferUsage.COPY_SRC, label, mapped=True))
        self._buffers.add(staging)
        return staging

    def _allocate(self, size: int, usage: int, label: str, mapped: bool = False) -> tuple[Any, int, str]:
        size = max(4, -(-size // 4) * 4)  # copies and bindings count in words
        what = f"buffer '{label}'" if label else "a buffer"
        limit = self.limits["max_buffer_size"]
        if size > limit:
            raise DeviceError(f"{what} needs {size:,} bytes but {self.info.name} allows {limit:,} in one buffer; split it")
        try:
            owner = self._device.create_buffer(label=label, size=size, usage=usage, mapped_at_creation=mapped)
        except wgpu.GPUError as error:
            if "memory" not in str(error):  # wgpu-native reports what ran out of memory as a validation error
                raise DeviceError(f"allocating {what}: {native.sentence(str(error))}") from None
            held = sum(buffer.size for buffer in self._buffers if not buffer.destroyed)
            raise DeviceError(
                f"{self.info.name} is out of memory: {what} needs {size:,} bytes beside the {held:,} held already; "
                "use a smaller model, context or batch"
            ) from None
        return owner, size, label

    def write(self, buffer: Buffer, offset: int, data: Any) -> None:
        """Uploads an array or anything with bytes, before the next submission; the last word is filled up with zeros."""
        array = data if isinstance(data, np.ndarray) else np.frombuffer(data, np.uint8)
        octets = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        whole = octets.size & ~3
        with guarded(f"writing {octets.size:,} bytes to {buffer} at {offset:,}"):
            for start in range(0, whole, PIECE):
                self._stage(buffer, offset + start, octets[start : min(start + PIECE, whole)])
            if whole < octets.size:
                self._stage(buffer, offset + whole, np.pad(octets[whole:], (0, 4 - octets.size % 4)))

    def _stage(self, buffer: Buffer, offset: int, octets: np.ndarray) -> None:
        lib.wgpuQueueWriteBuffer(self._queue, buffer.raw, offset, ffi.from_buffer(octets), octets.size)
        self._staged += octets.size
        if self._staged >= PIECE:
            self._submitted = lib.wgpuQueueSubmitForIndex(self._queue, 0, NULL)
            self.poll(self._flushed)  # the flush before this one: the GPU copies one piece while the host stages the next
            self._flushed, self._staged = self._submitted, 0

    def read(self, buffer: Buffer, offset: int = 0, size: int | None = None) -> np.ndarray:
        """The bytes of a buffer after everything submitted so far."""
        size = buffer.size - offset if size is None else size
        octets = np.empty(size, np.uint8)
        readback = self.readback(min(size, PIECE))
        try:
            for start in range(0, size, PIECE):
                part = octets[start : start + PIECE]
                copy = Copy(buffer, offset + start, readback, 0, -(-part.size // 4) * 4)
                part[:] = readback.wait(self.submit([copy]), part.size)
        finally:
            readback.destroy()
        return octets

    # Pipelines

    def pipeline(self, wgsl: str, bindings: tuple[str, ...], label: str = "", trusted: bool = False) -> Pipeline:
        return self.pipelines([Shader(wgsl, tuple(bindings), label, trusted)])[0]

    def pipelines(self, shaders: Sequence[Shader]) -> list[Pipeline]:
        """One pipeline a shader, in order; equal ones are compiled once, in parallel."""
        keys = [(shader.wgsl, shader.bindings, shader.trusted) for shader in shaders]
        missing = {key: shader for key, shader in zip(keys, shaders, strict=True) if key not in self._pipelines}
        for shader in missing.values():
            self._layout(shader.bindings)
        if len(missing) > 1:
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                made = list(pool.map(self._compile, missing.values()))
        else:
            made = [self._compile(shader) for shader in missing.values()]
        self._pipelines.update(zip(missing, made, strict=True))
        return [self._pipelines[key] for key in keys]

    def _compile(self, shader: Shader) -> Pipeline:
        layout, pipeline_layout = self._layouts[shader.bindings]
        try:
            module = native.shader_module(self._device, shader.wgsl, shader.label, shader.trusted)
            stage = {"module": module, "entry_point": "main"}
            owner = self._device.create_compute_pipeline(label=shader.label, layout=pipeline_layout, compute=stage)
        except wgpu.GPUError as error:
            raise ShaderError(native.refusal(shader.label, shader.wgsl, str(error))) from None
        return Pipeline(owner._internal, layout, shader.label, owner)

    def _layout(self, bindings: tuple[str, ...]) -> tuple[Any, Any]:
        """Made from the list of bindings and not from the shader, whose automatic layout drops what it does not use."""
        if bindings not in self._layouts:
            entries = [
                {"binding": i, "visibility": wgpu.ShaderStage.COMPUTE, "buffer": {"type": ACCESS[access]}}
                for i, access in enumerate(bindings)
            ]
            with guarded(f"a layout of {len(bindings)} bindings"):
                group = self._device.create_bind_group_layout(entries=entries)
                self._layouts[bindings] = group, self._device.create_pipeline_layout(bind_group_layouts=[group])
        return self._layouts[bindings]

    def bind(self, pipeline: Pipeline, ranges: Sequence[tuple[Buffer, int, int]]) -> BindGroup:
        """A bind group of (buffer, offset, size) by binding; it fits every pipeline with the same bindings."""
        with guarded(f"binding {len(ranges)} ranges to '{pipeline.label}'"):
            owner = native.bind_group(self._device, pipeline.layout, [(buffer.raw, offset, size) for buffer, offset, size in ranges])
        return BindGroup(owner._internal, owner)

    # Submissions

    def replay(self, dispatches: Iterable[Dispatch]) -> Replay:
        return Replay(dispatches)

    def submit(self, steps: Iterable[Replay | Copy]) -> int:
        """Encodes and submits replays and copies in their order; the index is what `Readback.wait` and `poll` wait for."""
        with guarded("encoding"):
            commands = self._encode(steps)
        # No guard: wgpu-native ends the process when it refuses a submission, so what it would refuse does not get this far.
        self._submitted = lib.wgpuQueueSubmitForIndex(self._queue, 1, ffi.new("WGPUCommandBuffer *", commands))
        lib.wgpuCommandBufferRelease(commands)
        return self._submitted

    def _encode(self, steps: Iterable[Replay | Copy]) -> Any:
        encoder = lib.wgpuDeviceCreateCommandEncoder(self._device._internal, NULL)
        try:
            encode(encoder, steps)
            return lib.wgpuCommandEncoderFinish(encoder, NULL)
        finally:
            lib.wgpuCommandEncoderRelease(encoder)

    def poll(self, index: int) -> None:
        """Waits for one submission, and for none after it."""
        device = self._device._internal
        if index > self._submitted:
            raise DeviceError(f"submission {index} was never made; the last is {self._submitted}")
        if index > 0:
            lib.wgpuDevicePoll(device, True, ffi.new("WGPUSubmissionIndex *", index))

    @cached_property
    def subgroup_size(self) -> int:
        """Measured, because what adapters report is not what shaders get; 0 without subgroups."""
        if "subgroups" not in self.features:
            return 0
        size = self.buffer(4)
        probe = self.pipeline(SUBGROUP_PROBE, ("write",), "subgroup probe")
        self.submit([self.replay([(probe, self.bind(probe, [(size, 0, 4)]), (1, 1, 1))])])
        return int(self.read(size).view(np.uint32)[0])

    def close(self) -> None:
        """Gives all memory back; nothing that this device made may be used afterwards."""
        for buffer in [buffer for buffer in self._buffers if not buffer.destroyed]:
            buffer.owner.destroy()  # at once, though bind groups may hold it: nothing can be submitted after this
            buffer.destroy()
        self._buffers.clear()
        self._pipelines.clear()
        self._layouts.clear()
        if self._opened is not None:
            self._opened._release()  # destroying it would be logged as a lost device
        self._opened = None
