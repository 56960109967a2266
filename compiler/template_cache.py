"""Compiled templates, kept where Python keeps compiled modules: only the first process of an installation compiles them."""
from __future__ import annotations

import os
import sys
from contextlib import suppress
from hashlib import sha1
from importlib.util import cache_from_source
from pathlib import Path

import jinja2
from jinja2.bccache import Bucket, BytecodeCache


class TemplateCache(BytecodeCache):
    """templates/NAME.wgsl has templates/__pycache__/NAME.wgsl.cpython-VERSION.pyc, which holds for its text and the installed Jinja."""

    def get_cache_key(self, name: str, filename: str | None = None) -> str:
        return cache_from_source(f"{filename}.py") if filename else ""

    def get_source_checksum(self, source: str) -> str:
        installed = Path(jinja2.__file__).with_name("compiler.py")
        written = installed.stat().st_mtime_ns if installed.exists() else 0
        return sha1(f"{written} {source}".encode()).hexdigest()

    def load_bytecode(self, bucket: Bucket) -> None:
        try:
            with open(bucket.key, "rb") as file:
                bucket.load_bytecode(file)
        except Exception:       # whatever a damaged file raises as it is unpickled: the template is compiled again
            bucket.reset()

    def dump_bytecode(self, bucket: Bucket) -> None:
        if sys.dont_write_bytecode or not bucket.key:
            return
        partial = f"{bucket.key}.{os.getpid()}"
        with suppress(OSError):         # where nobody may write, every process compiles
            os.makedirs(os.path.dirname(partial), exist_ok=True)
            with open(partial, "wb") as file:
                bucket.write_bytecode(file)
            os.replace(partial, bucket.key)
