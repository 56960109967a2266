"""One file a model family, named like config.json's `model_type`; `family` finds it."""
from __future__ import annotations

import importlib
import importlib.util
import pkgutil
from pathlib import Path
from types import ModuleType

from ..checkpoint import CheckpointError

_registered: dict[str, ModuleType] = {}


def known() -> list[str]:
    return sorted({m.name for m in pkgutil.iter_modules(__path__)} | _registered.keys())


def family(model_type: str) -> ModuleType:
    """The module of a model type. Raises CheckpointError listing the known ones."""
    name = model_type.removesuffix("_text")
    if name in _registered:
        return _registered[name]
    if name not in known():
        raise CheckpointError(f"no model family '{model_type}'; known: {', '.join(known())} (register_model adds one from a file)")
    return importlib.import_module(f"{__name__}.{name}")


def register_model(path: str | Path) -> str:
    """Add a model family from a Python file outside the package; its stem is its model_type. Returns the name."""
    path = Path(path)
    spec = importlib.util.spec_from_file_location(f"{__name__}.{path.stem}", path)
    if spec is None or spec.loader is None or not path.exists():
        raise CheckpointError(f"{path} is no Python file of a model family")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    _registered[path.stem] = module
    return path.stem
