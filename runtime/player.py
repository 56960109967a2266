"""Play a package on a GPU: buffers and pipelines at load, then replays of its programs."""
from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from ..compiler.package import Package
from .gpu import Copy, Dispatch, Gpu, Shader
from .requirements import check_requirements
from .submission import Buffer, Pipeline, Replay
from .upload import Upload

FRAMES = 2      # while the GPU plays one, the host prepares the next
STEPS = 8       # that a frame may hold: between submissions the GPU waits longer than between the passes of one

Call = tuple[str, Mapping[str, np.ndarray]]     # a program and its inputs, int32 of the shapes that its graph says
DTYPES = {"f32": np.float32, "f16": np.float16, "i32": np.int32, "u32": np.uint32}


class GpuPlayer:
    """A loaded package. A submission plays programs in order; a frame is one of several steps that brings their sampled tokens back."""

    def __init__(self, package: Package, gpu: Gpu, progress: Callable[[int, int], None] = lambda done, total: None,
                 owns_gpu: bool = False, fill: Callable[[Upload, str, Buffer], None] | None = None, trusted: Callable[[], Collection[int]] = tuple):
        """progress: bytes of weights uploaded, bytes in all. owns_gpu: `close` closes the device too. fill(upload, name, buffer): writes a
        weight buffer, by default the package's blob of that name. trusted(): the numbers of shaders that need no checks of their indices;
        asked for while memory is made.

        Raises DeviceError when the device lacks what the package needs."""
        self.package, self.gpu, self._owns_gpu, manifest = package, gpu, owns_gpu, package.manifest
        check_requirements(manifest["device"], gpu)
        self.seconds: dict[str, float] = {}      # of loading
        with ThreadPoolExecutor(1) as beside:       # shaders are compiled while memory is made and weights travel
            compiling = beside.submit(self._compile, manifest["shaders"], trusted)
            start = time.perf_counter()
            self.buffers = {name: gpu.buffer(size, name) for name, size in manifest["buffers"].items()}
            self.seconds["buffers"] = time.perf_counter() - start
            self._upload(manifest, progress, fill or (lambda upload, name, buffer: upload.write(buffer, 0, package.blob(name))))
            made = compiling.result()
        start = time.perf_counter()
        self._dispatches = {name: [(made[d["shader"]], gpu.bind(made[d["shader"]], [(self.buffers[b], at, size) for b, at, size in d["bindings"]]),
                                    tuple(d["grid"])) for d in program["dispatches"]] for name, program in manifest["programs"].items()}
        self._replays = {name: gpu.replay(dispatches) for name, dispatches in self._dispatches.items()}
        self._steps = {name: np.zeros(p["region"][1] // 4, np.int32) for name, p in manifest["programs"].items()}
        self._later = gpu.buffer((STEPS - 1) * manifest["buffers"]["step"], "inputs of a frame's later steps")
        self._tokens = [gpu.readback(STEPS * manifest["buffers"]["state.token"], "tokens") for _ in range(FRAMES)]
        self._submitted = [(0, 0)] * FRAMES     # which submission, and its steps
        self.seconds["bindings"] = time.perf_counter() - start

    def _compile(self, described: Sequence[Mapping[str, Any]], trusted: Callable[[], Collection[int]]) -> list[Pipeline]:
        start = time.perf_counter()
        proved = trusted()
        shaders = [Shader(_enable(s), tuple(s["bindings"]), s["kernel"], i in proved) for i, s in enumerate(described)]
        made = self.gpu.pipelines(shaders)
        self.seconds["shaders"] = time.perf_counter() - start
        return made

    def _upload(self, manifest: Mapping[str, Any], progress: Callable[[int, int], None], fill: Callable[[Upload, str, Buffer], None]) -> None:
        names = [n for n in manifest["blobs"] if n in self.buffers]
        total, done, start = sum(manifest["blobs"][n]["size"] for n in names), 0, time.perf_counter()
        with Upload(self.gpu) as upload:
            for name in names:
                fill(upload, name, self.buffers[name])
                done += manifest["blobs"][name]["size"]
                progress(done, total)
        self.seconds["weights"] = time.perf_counter() - start

    def play(self, calls: Sequence[Call]) -> None:
        """Submit programs."""
        for program, feeds in calls:
            self.feed(program, feeds)
        self.gpu.submit([self._replays[program] for program, _ in calls])

    def play_frame(self, frame: int, steps: Sequence[Sequence[Call]]) -> None:
        """Submit steps, each of a few programs; `tokens` gives what they sampled later."""
        readback, token, work, later, at = self._tokens[frame % FRAMES], self.buffers["state.token"], list[Replay | Copy](), [], 0
        for step, calls in enumerate(steps):
            for program, feeds in calls:
                if step == 0:
                    self.feed(program, feeds)
                    continue
                start, size = self.package.manifest["programs"][program]["region"]
                later.append(self._fed(program, feeds).copy())
                work.append(Copy(self._later, at, self.buffers["step"], start, size))
                at += size
            work += [self._replays[program] for program, _ in calls]
            work.append(Copy(token, 0, readback, step * token.size, token.size))
        if later:
            self.gpu.write(self._later, 0, np.concatenate(later))
        self._submitted[frame % FRAMES] = self.gpu.submit(work), len(steps)
        readback.request()

    def feed(self, program: str, feeds: Mapping[str, np.ndarray]) -> None:
        """Write the inputs of a program before what is submitted next."""
        self.gpu.write(self.buffers["step"], self.package.manifest["programs"][program]["region"][0], self._fed(program, feeds))

    def _fed(self, program: str, feeds: Mapping[str, np.ndarray]) -> np.ndarray:
        """A program's part of the step buffer with these inputs; the next call writes over it."""
        entry, words = self.package.manifest["programs"][program], self._steps[program]
        for name, array in feeds.items():
            at = entry["step"][name][0]
            words[at:at + array.size] = array.ravel()
        return words

    def tokens(self, frame: int) -> np.ndarray:
        """The tokens that a frame sampled, int32 [steps, rows]; waits for that frame alone."""
        index, steps = self._submitted[frame % FRAMES]
        size = steps * self.buffers["state.token"].size
        return self._tokens[frame % FRAMES].wait(index, size).view(np.int32).reshape(steps, -1)

    def dispatches(self, program: str) -> list[Dispatch]:
        """The dispatches of a program, for measuring."""
        return self._dispatches[program]

    def drain(self) -> None:
        """Let go of frames whose tokens nobody took."""
        for frame, readback in enumerate(self._tokens):
            if readback.requested:
                readback.wait(self._submitted[frame][0])

    def read(self, state: str, rows: int) -> np.ndarray:
        """The first rows of a state of plain elements, after everything submitted so far."""
        entry = self.package.manifest["states"][state]
        assert entry["layout"] == "row", f"{state} is stored as {entry['layout']}"
        dtype, shape = np.dtype(DTYPES[entry["dtype"]]), (rows, *entry["shape"][1:])
        return self.gpu.read(self.buffers[f"state.{state}"], 0, int(np.prod(shape)) * dtype.itemsize).view(dtype).reshape(shape)

    def write(self, state: str, array: np.ndarray, at: int = 0) -> None:
        """Set a state of plain elements from its element `at` on."""
        assert self.package.manifest["states"][state]["layout"] == "row"
        self.gpu.write(self.buffers[f"state.{state}"], at * array.itemsize, array)

    def close(self, keep_gpu: bool = False) -> None:
        """Free the memory, and close the device if it is the player's own and shall not be kept."""
        self._replays.clear()       # whose bind groups hold the buffers
        self._dispatches.clear()
        for buffer in (*self.buffers.values(), *self._tokens, self._later):
            buffer.destroy()
        if self._owns_gpu and not keep_gpu:
            self.gpu.close()


class ReferencePlayer:
    """The same interface in numpy: evaluates the graphs that the package carries."""

    def __init__(self, package: Package):
        self.package, self._states = package, package.new_states()
        self.seconds: dict[str, float] = {}
        self._frames: dict[int, np.ndarray] = {}

    def play(self, calls: Sequence[Call]) -> None:
        for program, feeds in calls:
            shapes = {n: shape for n, (_, shape) in self.package.manifest["programs"][program]["step"].items()}
            self.package.evaluate(program, self._states, {n: np.asarray(a, np.int32).reshape(shapes[n]) for n, a in feeds.items()})

    def play_frame(self, frame: int, steps: Sequence[Sequence[Call]]) -> None:
        tokens = []
        for calls in steps:
            self.play(calls)
            tokens.append(self._states["token"].copy())
        self._frames[frame % FRAMES] = np.stack(tokens)

    def tokens(self, frame: int) -> np.ndarray:
        return self._frames[frame % FRAMES]

    def drain(self) -> None:
        self._frames.clear()

    def read(self, state: str, rows: int) -> np.ndarray:
        return self._states[state][:rows].copy()

    def write(self, state: str, array: np.ndarray, at: int = 0) -> None:
        self._states[state].reshape(-1)[at:at + array.size] = array.ravel()

    def close(self, keep_gpu: bool = False) -> None:
        self._states.clear()


def _enable(shader: Mapping[str, Any]) -> str:
    """The WGSL with the `enable` lines that naga wants (it refuses `enable subgroups;`)."""
    return ("enable f16;\n" if "shader-f16" in shader["needs"] else "") + shader["wgsl"]
