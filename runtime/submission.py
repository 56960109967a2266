"""What a submission is made of: replays of prebuilt dispatches, copies, and readbacks, through raw calls only."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from .adapter import DeviceError
from .native import NULL, _api, ffi, guarded, lib


class Pipeline(NamedTuple):
    raw: Any
    layout: Any
    label: str
    owner: Any  # the wgpu object that keeps raw alive


class BindGroup(NamedTuple):
    raw: Any
    owner: Any


Dispatch = tuple[Pipeline, BindGroup, tuple[int, int, int]]


class Buffer:
    """A range of GPU memory; it is freed when nothing names it any more, here or in a bind group."""

    def __init__(self, owner: Any, size: int, label: str) -> None:
        self._owner, self.size, self.label = owner, size, label

    def __str__(self) -> str:
        return f"buffer '{self.label}'" if self.label else "a buffer"

    @property
    def destroyed(self) -> bool:
        return self._owner is None

    @property
    def owner(self) -> Any:
        if self.destroyed:
            raise DeviceError(f"{self} was destroyed and cannot be used")
        return self._owner

    @property
    def raw(self) -> Any:
        return self.owner._internal

    def destroy(self) -> None:
        """Gives the memory back as soon as no bind group holds it: wgpu-native ends the process that submits destroyed memory."""
        self._owner = None


@dataclass(frozen=True)
class Copy:
    src: Buffer
    src_offset: int
    dst: Buffer
    dst_offset: int
    size: int


# Answers that wgpu still owes, by the address of the list that they go to: it may answer after the readback is gone.
_owed: dict[int, list[str]] = {}


@ffi.callback("void(WGPUMapAsyncStatus, WGPUStringView, void *, void *)")
def _mapped(status: int, message: Any, key: Any, _: Any) -> None:
    failure = "" if status == lib.WGPUMapAsyncStatus_Success else _api.from_c_string_view(message) or "aborted"
    _owed.pop(int(ffi.cast("uintptr_t", key))).append(failure)


class Mappable(Buffer):
    """A buffer that the host maps after submissions that use it: submit, request, and later wait."""

    mode = lib.WGPUMapMode_None

    def __init__(self, poll: Callable[[int], None], owner: Any, size: int, label: str) -> None:
        super().__init__(owner, size, label)
        self._poll = poll
        self.requested = False
        self._answer: list[str] = []  # empty until wgpu has answered; then what went wrong, or ""
        self._callback = ffi.new("WGPUBufferMapCallbackInfo *", {"mode": lib.WGPUCallbackMode_AllowProcessEvents, "callback": _mapped})
        self._callback.userdata1 = ffi.cast("void *", id(self._answer))

    def request(self) -> None:
        """Asks for the memory after the submissions made so far; no submission may use it again before it is unmapped."""
        self._answer.clear()
        _owed[id(self._answer)] = self._answer
        with guarded(f"mapping {self}"):
            lib.wgpuBufferMapAsync(self.raw, self.mode, 0, self.size, self._callback[0])
        self.requested = True

    def _wait(self, index: int) -> None:
        """Until it is mapped, which is as soon as the submission `index` is done, whatever else is queued behind it."""
        if not self.requested:
            self.request()
        self._poll(index)
        if not self._answer:
            raise DeviceError(f"{self} is used by a later submission than {index}, which was waited for")
        self.requested = False
        if self._answer[0]:
            raise DeviceError(f"mapping {self} failed: {self._answer[0]}")


class Readback(Mappable):
    """A buffer that submissions copy into and the host reads."""

    mode = lib.WGPUMapMode_Read

    def wait(self, index: int, size: int | None = None) -> np.ndarray:
        """The first `size` bytes after the submission `index`."""
        self._wait(index)
        size = self.size if size is None else size
        data = np.frombuffer(ffi.buffer(lib.wgpuBufferGetConstMappedRange(self.raw, 0, self.size), size), np.uint8).copy()
        lib.wgpuBufferUnmap(self.raw)
        return data


class Staging(Mappable):
    """A buffer that the host writes and submissions copy from; it begins mapped."""

    mode = lib.WGPUMapMode_Write
    _begins = True

    def map(self, index: int) -> np.ndarray:
        """Its bytes, to be written before `unmap`, as soon as the submission `index` is done."""
        if not self._begins:
            self._wait(index)
        self._begins = False
        return np.frombuffer(ffi.buffer(lib.wgpuBufferGetMappedRange(self.raw, 0, self.size), self.size), np.uint8)

    def unmap(self) -> None:
        lib.wgpuBufferUnmap(self.raw)


class Replay:
    """Dispatches as raw pointers, ready to be encoded again and again."""

    def __init__(self, dispatches: Iterable[Dispatch]) -> None:
        self._owners = tuple(dispatches)
        self._calls: list[tuple[Any, Any, int, int, int]] = []
        bound = None
        for pipeline, group, (x, y, z) in self._owners:
            self._calls.append((None if pipeline.raw == bound else pipeline.raw, group.raw, x, y, z))
            bound = pipeline.raw

    def encode(self, compute_pass: Any) -> None:
        # A thousand iterations a token: locals, no attributes, and the raw functions, which cost a third of wgpu-py's methods.
        set_pipeline = lib.wgpuComputePassEncoderSetPipeline
        set_group = lib.wgpuComputePassEncoderSetBindGroup
        dispatch = lib.wgpuComputePassEncoderDispatchWorkgroups
        null = NULL
        for pipeline, group, x, y, z in self._calls:
            if pipeline is not None:
                set_pipeline(compute_pass, pipeline)
            set_group(compute_pass, 0, group, 0, null)
            dispatch(compute_pass, x, y, z)


def encode(encoder: Any, steps: Iterable[Replay | Copy], descriptor: Callable[[], Any] = lambda: NULL) -> None:
    """Writes the steps in their order; replays next to each other share a compute pass, and every pass gets a descriptor of its own."""
    compute_pass = NULL
    try:
        for step in steps:
            if isinstance(step, Replay):
                if not compute_pass:
                    compute_pass = lib.wgpuCommandEncoderBeginComputePass(encoder, descriptor())
                step.encode(compute_pass)
            else:
                compute_pass = _end(compute_pass)
                _encode_copy(encoder, step)
    finally:
        _end(compute_pass)


def _encode_copy(encoder: Any, copy: Copy) -> None:
    if isinstance(copy.dst, Mappable) and copy.dst.requested:  # wgpu-native would end the process
        raise DeviceError(f"{copy.dst} is being read and cannot be copied into; wait for it first")
    lib.wgpuCommandEncoderCopyBufferToBuffer(encoder, copy.src.raw, copy.src_offset, copy.dst.raw, copy.dst_offset, copy.size)


def _end(compute_pass: Any) -> Any:
    if compute_pass:
        lib.wgpuComputePassEncoderEnd(compute_pass)
        lib.wgpuComputePassEncoderRelease(compute_pass)
    return NULL
