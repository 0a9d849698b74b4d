"""What may be imported and touched where: private parts of other libraries in compat/ only, no file name twice.

import-linter holds the rest (pyproject.toml). Three rules find private parts, each without a doubt in its findings:
1. an import of an underscore name, or of a module with one in its path;
2. `x._name` where `x` is not `self`, `cls` or `super()`, and no code of ours defines `_name`;
3. in a class that inherits from a library's, an underscore name that a class of the library uses.
"""

import ast
import importlib
import inspect
import re
import textwrap
from collections import Counter
from functools import cache
from pathlib import Path

import pytest

from rotary_foundry.models.family import FAMILIES

REPOSITORY = Path(__file__).parents[1]
SOURCE = REPOSITORY / "src"
COMPAT = SOURCE / "rotary_foundry/compat"
LIBRARIES = {"composer", "streaming", "torch", "datatrove", "gguf"}
FILES = sorted(path for folder in ("src", "launch", "data_prep") for path in (REPOSITORY / folder).rglob("*.py"))
OUTSIDE = [path for path in FILES if COMPAT not in path.parents]
# Public in spite of their names: of NamedTuples and of os, as documented.
PUBLIC = re.compile(r"_asdict|_replace|_exit")


def is_private(name: str) -> bool:
    return name.startswith("_") and bool(name.strip("_")) and not name.endswith("__") and not PUBLIC.fullmatch(name)


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def nodes(path: Path, kind: type) -> list:
    return [node for node in ast.walk(parsed(path)) if isinstance(node, kind)]


def names_defined(tree: ast.AST) -> set[str]:
    """Functions, classes and variables, and attributes that are set on `self` or `cls`."""
    names = set()
    for node in ast.walk(tree):
        match node:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                names.add(name)
            case ast.Name(id=name, ctx=ast.Store()):
                names.add(name)
            case ast.Attribute(value=ast.Name(id="self" | "cls"), attr=name, ctx=ast.Store()):
                names.add(name)
    return names


def names_of_a_class(tree: ast.ClassDef) -> set[str]:
    """The underscore names that a class defines, or reads from itself."""
    names = set()
    for node in tree.body:
        match node:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.AnnAssign(target=ast.Name(id=name)):
                names.add(name)
            case ast.Assign(targets=targets):
                names |= {target.id for target in targets if isinstance(target, ast.Name)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and of_the_object_itself(node.value):
            names.add(node.attr)
    return set(filter(is_private, names))


def of_the_object_itself(value: ast.expr) -> bool:
    match value:
        case ast.Name(id="self" | "cls") | ast.Call(func=ast.Name(id="super")):
            return True
    return False


@cache
def ours() -> set[str]:
    return set().union(*(names_defined(parsed(path)) for path in OUTSIDE))


def private_imports(path: Path) -> list[str]:
    found = []
    for node in nodes(path, ast.Import):
        found += [(node.lineno, alias.name) for alias in node.names]
    for node in nodes(path, ast.ImportFrom):
        found += [(node.lineno, f"{node.module}.{alias.name}") for alias in node.names]
    return [
        f"{path.relative_to(REPOSITORY)}:{line}: import of {name}"
        for line, name in found
        if name.split(".")[0] in LIBRARIES and any(map(is_private, name.split(".")))
    ]


def private_attributes(path: Path) -> list[str]:
    found = []
    for node in nodes(path, ast.Attribute):
        if is_private(node.attr) and node.attr not in ours() and not of_the_object_itself(node.value):
            found.append((node.lineno, ast.unparse(node)))
    for node in nodes(path, ast.Call):
        match node:
            case ast.Call(
                func=ast.Name(id="getattr" | "setattr" | "hasattr"), args=[_, ast.Constant(value=str(name)), *_]
            ):
                if is_private(name) and name not in ours():
                    found.append((node.lineno, ast.unparse(node)))
    return [f"{path.relative_to(REPOSITORY)}:{line}: {code}" for line, code in found]


def private_overrides(path: Path) -> list[str]:
    """Of the classes in a file that inherit from a library's: underscore names that both have."""
    found = []
    for node in parsed(path).body:
        if isinstance(node, ast.ClassDef) and (ours := names_of_a_class(node)):
            for base in {base for of in library_bases(module_name(path), node.name) for base in inspect.getmro(of)}:
                if base.__module__.split(".")[0] in LIBRARIES:
                    found += [
                        f"{path.relative_to(REPOSITORY)}:{node.lineno}: {node.name}.{name} is {base.__name__}'s"
                        for name in sorted(ours & names_of_a_library_class(base))
                    ]
    return found


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(SOURCE if SOURCE in path.parents else REPOSITORY).with_suffix("").parts)


MODULES = {module_name(path).removesuffix(".__init__"): path for path in FILES}


@cache
def library_bases(module: str, name: str) -> set[type]:
    """The nearest classes of the libraries that a class of ours inherits from, directly or by other classes of ours."""
    path = MODULES[module]
    imported = {}  # by local name, where it comes from
    for node in nodes(path, ast.Import):
        imported |= {alias.asname or alias.name.split(".")[0]: alias.asname and alias.name for alias in node.names}
    for node in nodes(path, ast.ImportFrom):
        imported |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    classes = {node.name: node for node in parsed(path).body if isinstance(node, ast.ClassDef)}
    if name not in classes:  # imported from elsewhere
        return library_bases(*imported[name].rsplit(".", 1)) if name in imported else set()
    found = set()
    for base in classes[name].bases:
        first, *rest = ast.unparse(base).split("[")[0].split(".")
        dotted = ".".join([imported.get(first) or (first if first in imported else f"{module}.{first}"), *rest])
        where, _, its_name = dotted.rpartition(".")
        if where in MODULES:
            found |= library_bases(where, its_name)
        elif where.split(".")[0] in LIBRARIES:
            found.add(getattr(importlib.import_module(where), its_name))
    return found


@cache
def names_of_a_library_class(base: type) -> set[str]:
    try:
        return names_of_a_class(ast.parse(textwrap.dedent(inspect.getsource(base))).body[0])
    except OSError:  # written in C
        return {name for name in vars(base) if is_private(name)}


@pytest.mark.parametrize("find", [private_imports, private_attributes, private_overrides])
def test_private_parts_of_other_libraries_are_touched_in_compat_only(find):
    found = [line for path in OUTSIDE for line in find(path)]
    assert not found, "\n".join(["move these to src/rotary_foundry/compat/:", *found])


def test_compat_has_a_file_for_each_library_and_imports_private_parts_of_that_one_only():
    files = [path for path in sorted(COMPAT.glob("*.py")) if path.stem != "__init__"]
    assert {path.stem for path in files} == LIBRARIES
    for path in files:
        assert all(f": import of {path.stem}." in line for line in private_imports(path))


def test_the_rules_see_what_compat_holds():
    """Else a rule that finds nothing anywhere would pass."""
    assert any("_ShardState" in line for line in private_imports(COMPAT / "streaming.py"))
    assert any("engine._close" in line for line in private_attributes(COMPAT / "composer.py"))
    assert any("_decompress_shard_part is Stream's" in line for line in private_overrides(COMPAT / "streaming.py"))
    assert any("_enabled is WandBLogger's" in line for line in private_overrides(COMPAT / "composer.py"))


def test_a_file_name_in_a_traceback_says_which_file_it_is():
    """But for the folders of families, which have the same parts: there the folder says it."""
    paths = [path for path in SOURCE.rglob("*.py") if path.name != "__init__.py"]
    names = Counter(path.name for path in paths if path.parent.name not in FAMILIES)
    assert [name for name, count in names.items() if count > 1] == []
    assert not names.keys() & {path.name for path in paths if path.parent.name in FAMILIES}
