"""Who may import whom, what makes a kernel, and that the package ships all of its files."""
from __future__ import annotations

import ast
import tomllib
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
ROOMS = {   # a room, and the modules outside it that it may import
    "compiler": (),
    "templates": ("compiler",),
    "frontends": ("compiler",),
    "frontends/weights": ("compiler", "frontends", "runtime"),
    "runtime": ("compiler.package", "compiler.device"),
}


def imports(file: Path) -> Iterator[str]:
    """Dotted names, from the root of the package, of the modules of this package that a file imports."""
    here = file.relative_to(ROOT).with_suffix("").parts
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (a.name.removeprefix("tilewright.") for a in node.names if a.name.startswith("tilewright."))
        elif isinstance(node, ast.ImportFrom):
            start = here[:len(here) - node.level] if node.level else ()
            base = ".".join([*start, *([node.module] if node.module else [])])
            if node.level or base.split(".")[0] == "tilewright":
                yield from (_module(f"{base.removeprefix('tilewright')}.{a.name}".strip(".")) for a in node.names)


def _module(name: str) -> str:
    """The module that `from module import name` loads: name itself where it is one."""
    path = ROOT.joinpath(*name.split("."))
    return name if path.with_suffix(".py").exists() or path.is_dir() else name.rpartition(".")[0]


def files_of(room: str) -> list[Path]:
    within = [ROOT / other for other in ROOMS if other.startswith(f"{room}/")]
    found = sorted(p for p in (ROOT / room).rglob("*.py") if not any(p.is_relative_to(other) for other in within))
    assert found, f"{room} is empty"
    return found


def test_arrows_point_one_way():
    wrong = [f"{file.relative_to(ROOT)} imports {name or 'the package itself'}; {room} may import {', '.join(allowed) or 'no other room'}"
             for room, allowed in ROOMS.items() for file in files_of(room) for name in imports(file)
             if not any(f"{name}.".startswith(f"{a}.") for a in (room.replace("/", "."), *allowed))]
    assert not wrong, "\n".join(wrong)


def test_passes_do_not_import_passes():
    wrong = [f"{file.relative_to(ROOT)} imports {name}" for file in files_of("compiler/passes") for name in imports(file)
             if name.startswith("compiler.passes")]
    assert not wrong, "\n".join(wrong)


def test_a_kernel_is_two_files_with_one_stem():
    """A template that others include has no spec: an underscore or another template's `import` says so."""
    folder = ROOT / "templates"
    specs = {p.stem for p in folder.glob("*.py")} - {"__init__"}
    bodies = {p.stem for p in folder.glob("*.wgsl")}
    assert not specs - bodies, f"kernels without a template: {specs - bodies}"
    text = "\n".join(p.read_text() for p in folder.glob("*.wgsl"))
    unused = {b for b in bodies - specs if f'"{b}.wgsl"' not in text}
    assert not unused, f"templates that no kernel and no other template uses: {unused}"


def test_every_kernel_is_found():
    from tilewright.templates import KERNELS
    assert KERNELS.keys() == {p.stem for p in (ROOT / "templates").glob("*.py")} - {"__init__"}


def test_the_package_list_is_whole():
    listed = setuptools()["packages"]
    folders = {p.parent.relative_to(ROOT) for p in ROOT.glob("*/**/__init__.py") if _room(p) in (*ROOMS, "bench")}
    assert set(listed) == {"tilewright", *(".".join(("tilewright", *folder.parts)) for folder in folders)}
    loose = [p for p in ROOT.glob("*/**/*.py") if _room(p) in ROOMS and not (p.parent / "__init__.py").exists()]
    assert not loose, f"modules outside any package: {loose}"


def test_package_data_misses_no_file():
    """Whatever the code reads at run time travels with it: templates, device records, the demo, what browsers are given."""
    shipped = {p for package, patterns in setuptools()["package-data"].items() for pattern in patterns
               for p in ROOT.joinpath(*package.split(".")[1:]).glob(pattern)}
    data = {p for p in ROOT.glob("*/**/*") if _room(p) in ROOMS and p.is_file() and p.suffix not in (".py", ".pyc", ".md")}
    assert not data - shipped, f"package-data misses {sorted(str(p.relative_to(ROOT)) for p in data - shipped)}"
    assert ROOT / "py.typed" in shipped


def _room(path: Path) -> str:
    return path.relative_to(ROOT).parts[0]


def setuptools() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
