"""Compiled templates are kept beside compiled modules, and hold for the text that they were made of."""
from __future__ import annotations

import sys
from pathlib import Path

import jinja2
import pytest
from tilewright.compiler.template_cache import TemplateCache


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "pycache_prefix", None)
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    (tmp_path / "name.wgsl").write_text("let a = {{ a }};")
    return tmp_path


def rendered(folder: Path, **values) -> tuple[str, bool]:
    """The text, and whether the template was compiled for it."""
    compiled = []

    class Environment(jinja2.Environment):
        def _parse(self, *args):
            compiled.append(args)
            return super()._parse(*args)
    environment = Environment(loader=jinja2.FileSystemLoader(folder), bytecode_cache=TemplateCache())
    return environment.get_template("name.wgsl").render(values), bool(compiled)


def test_a_template_is_compiled_once(folder):
    assert rendered(folder, a=1) == ("let a = 1;", True)
    assert [file.name.split(".")[:2] for file in (folder / "__pycache__").iterdir()] == [["name", "wgsl"]]
    assert rendered(folder, a=2) == ("let a = 2;", False)


def test_another_text_is_compiled_again(folder):
    rendered(folder, a=1)
    (folder / "name.wgsl").write_text("let b = {{ a }};")
    assert rendered(folder, a=1) == ("let b = 1;", True)


@pytest.mark.parametrize("damage", [lambda data: data[:len(data) // 2], lambda data: b"", lambda data: data[:40] + b"\0" * 40 + data[80:]])
def test_a_damaged_file_is_made_anew(folder, damage):
    rendered(folder, a=1)
    file, = (folder / "__pycache__").iterdir()
    file.write_bytes(damage(file.read_bytes()))
    assert rendered(folder, a=1) == ("let a = 1;", True)
    assert rendered(folder, a=1) == ("let a = 1;", False)


def test_nothing_is_written_where_python_writes_nothing(folder, monkeypatch):
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    assert rendered(folder, a=1) == ("let a = 1;", True)
    assert not (folder / "__pycache__").exists()


def test_a_folder_that_cannot_be_written_does(folder):
    (folder / "__pycache__").write_text("")
    assert rendered(folder, a=1) == ("let a = 1;", True)
