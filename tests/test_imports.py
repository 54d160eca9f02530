"""Imports point down: the rooms of the package in their order, no circles, nothing in functions."""

from __future__ import annotations

import ast
import dataclasses
import graphlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "omnizip_jax"

# Lowest first; a file imports from its own room and from lines above its own in this table. Rooms
# on one line know nothing of each other. The longest name counts: `models` is what families share.
ROOMS = (
    ("window_spec",),
    ("types",),
    ("compression", "media"),
    ("models",),
    ("models.qwen2_5_omni",),
    ("models.registry",),
    ("models.loaded_model",),
    ("checkpoint", "testbed"),
    ("inference",),
    ("visualize", "evaluation"),
    ("",),  # the names of the package itself
    ("serve",),
    ("cli",),
    ("__main__",),
)
LINES = {room: line for line, rooms in enumerate(ROOMS) for room in rooms}

# Here imports for the type checker alone may point anywhere: at run time they come later.
LAZY = ("",)

# What may be imported inside functions, and why.
INSIDE_FUNCTIONS = {
    ("cli.main", "termios"): "not on every system",
    ("cli.stream_command", "termios"): "not on every system",
    ("cli.stream_command", "tty"): "not on every system",
    ("evaluation.dataset_runner", "ray"): "slow, an extra, and most runs need no cluster",
    ("checkpoint.folder", "transformers"): "slow, and most callers need no tokenizer",
}


@dataclasses.dataclass(frozen=True)
class Import:
    """One import of a file; modules of the package without its name, others with theirs."""

    file: str
    target: str
    line: int
    ours: bool
    in_function: bool
    for_types: bool

    def __str__(self) -> str:
        return f"{self.file or '__init__'}, line {self.line}: {self.target or 'omnizip_jax'}"


def imports(package: Path) -> list[Import]:
    """All imports of all files below a folder."""
    found = []
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package).with_suffix("").parts
        file = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        for node, in_function, for_types in _walk(ast.parse(path.read_text()), False, False):
            for name in _targets(node, package):
                top, _, rest = name.partition(".")
                ours = top == package.name
                target = rest if ours else top
                found.append(Import(file, target, node.lineno, ours, in_function, for_types))
    return found


def _walk(
    node: ast.AST, in_function: bool, for_types: bool
) -> Iterator[tuple[ast.Import | ast.ImportFrom, bool, bool]]:
    if isinstance(node, ast.Import | ast.ImportFrom):
        yield node, in_function, for_types
    in_function |= isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
    for_types |= isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    for child in ast.iter_child_nodes(node):
        yield from _walk(child, in_function, for_types)


def _targets(node: ast.Import | ast.ImportFrom, package: Path) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
        return
    assert node.level == 0 and node.module, f"write imports in full: {ast.unparse(node)}"
    for alias in node.names:
        name = f"{node.module}.{alias.name}"
        path = package.parent.joinpath(*name.split("."))
        is_module = path.is_dir() or path.with_suffix(".py").is_file()
        yield name if is_module else node.module


def room(module: str) -> str:
    """The longest room that a module lies in."""
    names = [module.rsplit(".", cut)[0] for cut in range(module.count(".") + 1)]
    home = next((name for name in names if name in LINES), None)
    assert home is not None, f"{module} has no room: give it a line in tests/test_imports.py"
    return home


def upward(found: list[Import]) -> list[str]:
    """Imports that do not point down."""
    wrong = []
    for each in found:
        if not each.ours or (each.for_types and each.file in LAZY):
            continue
        here, there = room(each.file), room(each.target)
        if here != there and LINES[there] >= LINES[here]:
            wrong.append(str(each))
    return wrong


def circle(found: list[Import]) -> list[str]:
    """Files that import each other, in order; none if there are no circles."""
    graph: dict[str, set[str]] = {}
    for each in found:
        if each.ours and not (each.for_types and each.file in LAZY):
            graph.setdefault(each.file, set()).add(each.target)
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return error.args[1]
    return []


def inside_functions(found: list[Import]) -> dict[tuple[str, str], str]:
    """What is imported inside functions, by file and library, and where."""
    return {
        (each.file, PACKAGE.name if each.ours else each.target): str(each)
        for each in found
        if each.in_function
    }


@pytest.fixture(scope="module")
def found() -> list[Import]:
    return imports(PACKAGE)


def test_every_room_is_there(found):
    files = {each.file for each in found} | {each.target for each in found if each.ours}
    assert {room(file) for file in files} == set(LINES)


def test_contributing_names_every_room():
    table = (PACKAGE.parent / "CONTRIBUTING.md").read_text()
    rooms = {name.partition(".")[0] for name in LINES} - {"", "__main__"}
    assert not {name for name in rooms if f"`{name}" not in table}


def test_imports_point_down(found):
    assert not upward(found)


def test_no_circles(found):
    assert not circle(found)


def test_no_imports_in_functions(found):
    inside = inside_functions(found)
    assert inside.keys() == INSIDE_FUNCTIONS.keys(), inside


@pytest.fixture
def files(tmp_path):
    """A package of files with given text, as the reader of imports sees it."""

    def write(**texts: str) -> list[Import]:
        package = tmp_path / PACKAGE.name
        for name, text in texts.items():
            path = package.joinpath(*name.split("__")).with_suffix(".py")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return imports(package)

    return write


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("media__clip", "from omnizip_jax.models.decoder import Decoder"),
        ("media__clip", "import omnizip_jax.compression.counts"),
        ("models__rope", "from omnizip_jax.models.qwen2_5_omni import config"),
        ("inference__context", "def f():\n    from omnizip_jax import generate"),
        (
            "models__decoder",
            "if TYPE_CHECKING:\n    from omnizip_jax.inference.generation import ask",
        ),
    ],
)
def test_an_upward_import_is_found(files, name, text):
    assert len(upward(files(compression__counts="", **{name: text}))) == 1


def test_a_circle_is_found(files):
    found = files(
        media__clip="from omnizip_jax.media.live import windows",
        media__live="from omnizip_jax.media import push",
        media__push="if TYPE_CHECKING:\n    from omnizip_jax.media.clip import Clip",
    )
    assert not upward(found)
    assert set(circle(found)) == {"media.clip", "media.live", "media.push"}


def test_an_import_in_a_function_is_found(files):
    found = files(window_spec="class A:\n    def f(self):\n        import torch.nn")
    assert inside_functions(found).keys() == {("window_spec", "torch")}


def test_importing_everything_touches_no_device():
    script = (
        "import pkgutil, importlib, omnizip_jax\n"
        "from jax._src import xla_bridge\n"
        "skipped = ('__main__', 'lmms.manifest', 'lmms.model')\n"
        "for module in pkgutil.walk_packages(omnizip_jax.__path__, 'omnizip_jax.'):\n"
        "    if not module.name.endswith(skipped):\n"
        "        importlib.import_module(module.name)\n"
        "assert not xla_bridge.backends_are_initialized()"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
