"""Play a package of one program with tensors in and out: feeds into state buffers, one replay, one readback."""
from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..compiler.package import Package
from .gpu import Copy, Gpu, Shader
from .player import _enable
from .requirements import check_requirements

PROGRAM = "main"
ALIGN = 256     # between the results in the buffer that is read


class TensorError(ValueError):
    """What was fed does not fit the graph; the message is one clear sentence."""


class TensorPlayer:
    """A loaded package whose manifest's model names the states that hold its inputs and outputs."""

    def __init__(self, package: Package, gpu: Gpu):
        """Raises DeviceError when the device lacks what the package needs."""
        manifest = package.manifest
        check_requirements(manifest["device"], gpu)
        self.package, self.gpu = package, gpu
        self.buffers = {name: gpu.buffer(size, name) for name, size in manifest["buffers"].items()}
        for name in manifest["blobs"]:
            if name in self.buffers:
                gpu.write(self.buffers[name], 0, package.blob(name))
        made = gpu.pipelines([Shader(_enable(s), tuple(s["bindings"]), s["kernel"]) for s in manifest["shaders"]])
        self._replay = gpu.replay([(made[d["shader"]], gpu.bind(made[d["shader"]], [(self.buffers[b], at, size) for b, at, size in d["bindings"]]),
                                    tuple(d["grid"])) for d in manifest["programs"][PROGRAM]["dispatches"]])
        self._places, size = {}, 0
        for state in {entry["state"]: None for entry in manifest["model"]["outputs"].values() if entry["state"]}:
            self._places[state] = size
            size += -(-self.buffers[f"state.{state}"].size // ALIGN) * ALIGN
        self._readback = gpu.readback(size, "results") if size else None

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The outputs by name for these inputs, which have the shapes and dtypes of the graph.

        Raises TensorError for integers out of range."""
        model = self.package.manifest["model"]
        for name, entry in model["inputs"].items():
            if entry["state"] and f"state.{entry['state']}" in self.buffers:
                self.gpu.write(self.buffers[f"state.{entry['state']}"], 0, stored(name, feeds[name]))
        octets = np.empty(0, np.uint8)
        if self._readback:
            copies = [Copy(b, 0, self._readback, at, b.size) for s, at in self._places.items() for b in [self.buffers[f"state.{s}"]]]
            octets = self._readback.wait(self.gpu.submit([self._replay, *copies]))
        return {name: _returned(entry, octets[self._places.get(entry["state"], 0):]) for name, entry in model["outputs"].items()}

    def close(self) -> None:
        """Free the memory; the device stays open."""
        self._replay = self.gpu.replay([])      # whose bind groups hold the buffers
        for buffer in (*self.buffers.values(), *([self._readback] if self._readback else [])):
            buffer.destroy()


class ReferenceTensors:
    """The same interface in numpy: evaluates the graph that the package carries."""

    def __init__(self, package: Package):
        self.package, self._states = package, package.new_states()

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        model = self.package.manifest["model"]
        for name, entry in model["inputs"].items():
            if entry["state"] in self._states:
                self._states[entry["state"]] = stored(name, feeds[name]).reshape(entry["shape"])
        self.package.evaluate(PROGRAM, self._states, {})
        return {name: _returned(entry, self._states[entry["state"]].reshape(-1).view(np.uint8) if entry["state"] else np.empty(0, np.uint8))
                for name, entry in model["outputs"].items()}

    def close(self) -> None:
        self._states.clear()


def stored(name: str, array: np.ndarray) -> np.ndarray:
    """An input as the GPU holds it: float32, or int32. Raises TensorError for an integer that does not fit."""
    if "float" in array.dtype.name:
        return array.astype(np.float32, copy=False)
    if array.dtype.itemsize > 4 or array.dtype == np.uint32:
        least, most = (int(array.min()), int(array.max())) if array.size else (0, 0)
        if least < -2**31 or most >= 2**31:
            raise TensorError(f"the input {name} holds {most if most >= 2**31 else least:,}, which does not fit 32 bits, "
                              "in which integers are computed")
    return array.astype(np.int32, copy=False)


def _returned(entry: Mapping[str, Any], octets: np.ndarray) -> np.ndarray:
    """The bytes of an output in the dtype that the model gives it."""
    dtype, shape = named_dtype(entry["dtype"]), tuple(entry["shape"])
    size = int(np.prod(shape, dtype=np.int64))
    numbers = octets[:4 * size].view(np.float32 if "float" in entry["dtype"] else np.int32)
    with np.errstate(over="ignore"):
        return numbers.reshape(shape).astype(dtype)


def named_dtype(name: str) -> np.dtype:
    """A dtype by its name, those of ml_dtypes too."""
    import ml_dtypes
    return np.dtype(getattr(ml_dtypes, name) if hasattr(ml_dtypes, name) else name)


__all__ = ["PROGRAM", "ReferenceTensors", "TensorError", "TensorPlayer", "named_dtype"]
