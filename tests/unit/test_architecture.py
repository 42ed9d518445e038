"""Imports point down one list, files stay short, core stays bare, and `import subnetune` stays light."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import subnetune

ROOT = Path(subnetune.__file__).parent
# From the top down; a part imports from itself and from what is below it. Parts of one row stand side by side.
ORDER = (
    ("cli",),
    ("integrations",),
    ("experiment",),
    ("tasks",),
    ("methods",),
    ("delta",),
    ("tuning",),
    ("engine",),
    ("prepare", "forward", "update", "select", "score"),
    ("core",),
)
LEVEL = {part: level for level, parts in enumerate(reversed(ORDER)) for part in parts}
CORE_MAY_IMPORT = {"torch", "numba", "subnetune", *sys.stdlib_module_names}
FILES = sorted(ROOT.rglob("*.py"))


def part_of(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def imports_of(tree: ast.AST, file: Path, *, typing_too: bool) -> list[str]:
    """Every module that the file imports, at its top or inside functions; `if TYPE_CHECKING` blocks only if asked."""
    if not typing_too:
        for node in ast.walk(tree):
            if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
                node.body = [ast.Pass()]
    found: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: imports are absolute"
            module = node.module or ""
            found += [f"{module}.{alias.name}" for alias in node.names] if module == "subnetune" else [module]
    return found


def test_imports_point_down() -> None:
    for file in FILES:
        check_imports(file)


def check_imports(file: Path) -> None:
    inside = file.relative_to(ROOT)
    part = inside.parts[0].removesuffix(".py")
    if part == "__init__":
        return  # the package's own list of names, checked below
    assert part in LEVEL, f"{inside} belongs to no part of the list"
    for module in imports_of(ast.parse(file.read_text()), file, typing_too=False):
        if module.split(".")[0] == "subnetune":
            target = part_of(module)
            assert target in LEVEL, f"{inside} imports {module}; import from the module that defines it"
            assert target == part or LEVEL[target] < LEVEL[part], (
                f"{inside} imports {module}, which is not below {part}"
            )
        elif part == "core":
            assert module.split(".")[0] in CORE_MAY_IMPORT, f"{inside} imports {module}; core needs torch only"


def test_files_are_short_and_say_what_they_are() -> None:
    for file in FILES:
        text, inside = file.read_text(), file.relative_to(ROOT)
        limit = 80 if inside.parts[0] in ("prepare", "forward", "update", "select", "score") else 299
        if inside.parts[0] == "methods" and file.name not in ("card.py", "measured.py"):
            limit = 120
        assert len(text.splitlines()) <= limit, inside
        assert ast.get_docstring(ast.parse(text)), f"{inside}: a module starts with one sentence about itself"


def test_no_private_name_of_torch_or_transformers() -> None:
    for file in FILES:
        for node in ast.walk(ast.parse(file.read_text())):
            names = []
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in ("torch", "transformers"):
                names = [*(node.module or "").split("."), *(alias.name for alias in node.names)]
            elif isinstance(node, ast.Import):
                names = [
                    part
                    for a in node.names
                    if a.name.split(".")[0] in ("torch", "transformers")
                    for part in a.name.split(".")
                ]
            private = [name for name in names if name.startswith("_")]
            assert not private, f"{file.relative_to(ROOT)} uses {private}"


def python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120).stdout


def test_importing_subnetune_imports_nothing_heavy() -> None:
    heavy = (
        "torch",
        "transformers",
        "numpy",
        "pydantic",
        "typer",
        "matplotlib",
        "sklearn",
        "scipy",
        "datasets",
        "numba",
    )
    code = f"import subnetune, sys; print([name for name in {heavy} if name in sys.modules])"
    assert python(code).strip() == "[]"


def test_no_module_but_the_integrations_needs_transformers_to_be_imported() -> None:
    modules = [
        ".".join(("subnetune", *file.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__")
        for file in FILES
        if file.relative_to(ROOT).parts[0] not in ("integrations",)
        and file.name != "__main__.py"
        and not (file.parent.name == "kernels" and file.name.startswith(("cpu", "gpu")))  # compiled code
    ]
    heavy = ("transformers", "accelerate", "datasets", "sklearn", "scipy", "matplotlib", "peft", "numba", "triton")
    load_all = f"import importlib, sys\nfor name in {modules}: importlib.import_module(name)\n"
    assert python(f"{load_all}print([name for name in {heavy} if name in sys.modules])").strip() == "[]"


@pytest.mark.parametrize("name", subnetune.__all__)
def test_every_public_name_is_there_once_asked_for(name: str) -> None:
    value = getattr(subnetune, name)
    assert name in dir(subnetune)
    if name == "methods":
        assert value is importlib.import_module("subnetune.methods")
    else:
        assert value is getattr(importlib.import_module(subnetune._HOME[name]), name)


def test_type_checkers_and_the_interpreter_see_the_same_names() -> None:
    tree = ast.parse((ROOT / "__init__.py").read_text())
    block = next(node for node in tree.body if isinstance(node, ast.If))
    typed = {alias.name: node.module for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert typed.pop("methods") == "subnetune"
    assert typed == subnetune._HOME


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="Tunning"):
        subnetune.Tunning  # noqa: B018
