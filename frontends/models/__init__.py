"""One file a model family, named like config.json's `model_type`; `family` finds it."""
from __future__ import annotations

import importlib
import importlib.util
import pkgutil
from collections.abc import Iterable
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType

from ..checkpoint import CheckpointError

GROUP = "tilewright.models"     # of entry points by which installed packages add families
PARTS = ("read", "tensors", "embedding", "decoder", "head")

_registered: dict[str, ModuleType] = {}


def known() -> list[str]:
    return sorted({*_registered, *_built_in(), *_installed()})


def family(model_type: str) -> ModuleType:
    """The module of a model type, or of a GGUF architecture, which may write `-` or nothing for the `_` of the former: what was registered
    comes first, then what is built in, then what other packages bring. Raises CheckpointError listing the known ones."""
    asked = _plain(model_type.removesuffix("_text"))

    def match(names: Iterable[str]) -> str:
        return next((name for name in names if _plain(name) == asked), "")
    if name := match(_registered):
        return _registered[name]
    if name := match(_built_in()):
        return importlib.import_module(f"{__name__}.{name}")
    if name := match(points := _installed()):
        return _complete(points[name].load(), f"the entry point {name} of {GROUP}")
    raise CheckpointError(f"no model family '{model_type}'; known: {', '.join(known())} (register_model adds one from a file)")


def register_model(path: str | Path) -> str:
    """Add a model family from a Python file outside the package, or replace one; its stem is its model_type. Returns the name.

    The file holds what those of frontends/models hold: `read` makes a config from the entries of config.json, `tensors` names the
    checkpoint's tensors, `embedding`, `decoder` and `head` write the graph, and `gguf`, if there, reads what a GGUF file says otherwise.
    An installed package adds families without a call, by entry points of the group "tilewright.models": `granite = "my_package.granite"`
    names a module under its model_type. Raises CheckpointError if the file is none or lacks a part; what goes wrong inside it is not
    hidden."""
    path = Path(path)
    spec = importlib.util.spec_from_file_location(f"{__name__}.{path.stem}", path)
    if spec is None or spec.loader is None or not path.is_file():
        raise CheckpointError(f"{path} is no Python file of a model family")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    _registered[path.stem] = _complete(module, str(path))
    return path.stem


def _built_in() -> list[str]:
    return [module.name for module in pkgutil.iter_modules(__path__)]


def _installed() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=GROUP)}


def _complete(module: ModuleType, where: str) -> ModuleType:
    if missing := [part for part in PARTS if not callable(getattr(module, part, None))]:
        raise CheckpointError(f"{where} is no model family: it defines no {', '.join(missing)}")
    return module


def _plain(name: str) -> str:
    return name.replace("-", "").replace("_", "")
