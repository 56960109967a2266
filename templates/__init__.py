"""Every kernel: a spec NAME.py beside its template NAME.wgsl, found by its file name."""
from __future__ import annotations

import importlib
import pkgutil
from types import ModuleType

from ..compiler.kernel import Kernel


def kernel_of(module: ModuleType) -> Kernel:
    """The kernel that a module defines. Raises TypeError unless there is exactly one."""
    found = [c for c in vars(module).values() if isinstance(c, type) and issubclass(c, Kernel) and c.__module__ == module.__name__]
    if len(found) != 1:
        raise TypeError(f"{module.__name__} must define one Kernel, not {len(found)}")
    return found[0]()


KERNELS: dict[str, Kernel] = {k.name: k for k in (kernel_of(importlib.import_module(f"{__name__}.{m.name}")) for m in pkgutil.iter_modules(__path__))}
