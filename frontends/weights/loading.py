"""Fill the weight buffers of a package that was just compiled: blocks and numbers go up as the checkpoint has them, and the GPU takes them
apart, puts rows in their places and quantizes; the host does what is left."""
from __future__ import annotations

import os
import sys
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from threading import Thread

import numpy as np

from ...compiler.layouts import LAYOUTS
from ...compiler.package import Package
from ...runtime.generate import Model
from ...runtime.submission import Buffer
from ...runtime.upload import Upload
from ..gguf import SPLIT_NAME
from .requantization import encode, encodes
from .unpacking import unpack, unpacks

AHEAD = 2       # weights that the host packs while others travel
READERS = 4     # that read files ahead: disks are faster so than with one
READ = 64 << 20     # bytes that one reads without needing Python


class Stages:
    """How long the stages of loading take.

    with stages("open"): ...
    """

    def __init__(self) -> None:
        self.start, self.seconds = time.perf_counter(), dict[str, float]()

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - start

    def end(self, model: Model) -> Model:
        """The model, which is told."""
        model.load_seconds = {**self.seconds, **model.player.seconds, "total": time.perf_counter() - self.start}
        return model


def read_ahead(path: Path) -> list[Thread]:
    """Have Linux read a model's files while it is compiled, where the memory holds them twice over. Returns who is at it.

    They are sent to nowhere, since the kernel reads some megabytes at most ahead, whatever posix_fadvise asks for; what is in memory already
    costs next to nothing."""
    split = SPLIT_NAME.fullmatch(path.name)
    files = sorted(path.glob("*.safetensors") if path.is_dir() else path.parent.glob(f"{split[1]}-*-of-{split[3]}.gguf") if split else [path])
    readers = [Thread(target=_read, args=(files, first), daemon=True) for first in range(READERS)]
    with suppress(OSError):     # whoever opens them in earnest says what is wrong
        if sys.platform == "linux" and 2 * sum(file.stat().st_size for file in files) < os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"):
            for reader in readers:
                reader.start()
            return readers
    return []


def _read(files: list[Path], first: int) -> None:
    """Every so many-th piece of files."""
    with suppress(OSError), open(os.devnull, "wb") as nowhere:
        for path in files:
            with open(path, "rb") as file:
                size = path.stat().st_size
                for at in range(first * READ, size, READERS * READ):
                    end = min(at + READ, size)
                    while at < end and (sent := os.sendfile(nowhere.fileno(), file.fileno(), at, end - at)):
                        at += sent


def fill(package: Package, upload: Upload, blob: str, buffer: Buffer) -> None:
    """Fill the weight buffer of a package that was just compiled."""
    assert package.array and package.pieces
    left = []
    for name, entry in package.manifest["weights"].items():
        if entry["planes"][0][0] == blob:
            shape, layout = tuple(entry["shape"]), entry["layout"]
            pieces = package.pieces(name)
            if len(shape) > 1 and entry["dtype"] == "f32" and unpacks(layout, pieces, shape[-1]):
                unpack(upload, pieces, layout, shape, [(buffer, at, size) for _, at, size in entry["planes"]])
            else:
                left.append(name)
    for name, ready in _prepared(package, left):
        entry = package.manifest["weights"][name]
        if isinstance(ready, np.ndarray):
            encode(upload, ready, entry["layout"], [(buffer, at, size) for _, at, size in entry["planes"]])
        else:
            for (_, at, _), plane in zip(entry["planes"], ready, strict=True):
                upload.write(buffer, at, plane)


def _prepared(package: Package, names: list[str]) -> Iterator[tuple[str, np.ndarray | tuple[np.ndarray, ...]]]:
    """For every weight the numbers for the GPU to encode, or its planes: made while those before travel."""
    def prepare(name: str) -> np.ndarray | tuple[np.ndarray, ...]:
        assert package.array
        array, layout = package.array(name), package.manifest["weights"][name]["layout"]
        return array if encodes(array, layout) else LAYOUTS[layout].pack(array)
    with ThreadPoolExecutor(1) as ahead:
        following = iter(names)
        waiting = deque((name, ahead.submit(prepare, name)) for name in islice(following, AHEAD))
        while waiting:
            name, ready = waiting.popleft()
            yield name, ready.result()
            waiting.extend((name, ahead.submit(prepare, name)) for name in islice(following, 1))
