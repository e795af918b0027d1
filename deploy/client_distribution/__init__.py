"""The wheel of the thin client: distribution ``sploot-cluster-client``, package ``sploot_cluster_client``.

In this repository the client is ``tasks.client``, but many services have a ``tasks`` package of their own. The wheel
contains copies of ``broker/`` and of the modules that the client imports, in one package, with their imports rewritten.
It needs only Dramatiq and redis-py.
"""

from __future__ import annotations

import ast
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from deploy.wheels import build_wheel

ROOT: Final = Path(__file__).parents[2]
PACKAGE: Final = "sploot_cluster_client"
ENTRY: Final = "tasks.client"
COPIED: Final = ("tasks", "sploot_cluster")  # only the modules that the client imports; broker/ is copied completely
# Modules that only workers need, because they plan corrections. The request classes import them when a worker plans.
LEFT_OUT: Final = frozenset(
    f"sploot_cluster.decide.{module}" for module in ("assignment", "corrections.planning", "resolving", "restoring")
)


def build(directory: Path) -> Path:
    """Build the wheel into ``directory`` without using a package index, and return its path.

    Raises:
        subprocess.CalledProcessError: setuptools could not build the wheel; its output contains the reason.
    """
    with tempfile.TemporaryDirectory(prefix="client-wheel-") as temporary:
        write_sources(Path(temporary))
        return build_wheel(Path(temporary), directory, package=PACKAGE)


def write_sources(source: Path) -> None:
    """Write the project, from which the distribution is built, into the folder ``source``."""
    here, package = Path(__file__).parent, source / PACKAGE
    shutil.copytree(ROOT / "broker", package / "broker", ignore=shutil.ignore_patterns("__pycache__"))
    for module in modules():
        _copy(module, package)
    (package / "__init__.py").write_text(renamed((here / "package.py").read_text(encoding="utf-8")), encoding="utf-8")
    (package / "py.typed").touch()
    # the event's schema and golden vectors, so that producers in Python can test against them
    (package / "wire").mkdir()
    (package / "wire" / "__init__.py").touch()
    for path in (ROOT / "docs" / "wire").glob("*.json"):
        shutil.copy(path, package / "wire")
    for path in (ROOT / "LICENSE", ROOT / "CHANGELOG.md", here / "README.md", here / "pyproject.toml"):
        shutil.copy(path, source)
    (source / "MANIFEST.in").write_text("include CHANGELOG.md\n")


def modules() -> list[str]:
    """Return the names of the modules that the client imports, directly or indirectly, including imports in functions.

    Imports for type checkers and imports of ``LEFT_OUT`` do not count.
    """
    found: set[str] = set()
    waiting = [ENTRY]
    while waiting:
        module = waiting.pop()
        if module not in found:
            found.add(module)
            waiting += _imported(module)
    return sorted(found)


def renamed(text: str) -> str:
    """Return the text with imports of our packages renamed to their copies."""
    return re.sub(r"\bfrom (tasks|sploot_cluster|broker)\b(?=[\w.]* import)", rf"from {PACKAGE}.\1", text)


def _imported(module: str) -> list[str]:
    """Return the modules of ``COPIED`` that a module imports.

    Raises:
        ValueError: an import has a form that cannot be copied.
    """
    found = []
    for node in _running(ast.parse(_path(module).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.partition(".")[0] in (*COPIED, "broker"):
                    raise ValueError(f"{module}: expected `from … import …`, found `import {alias.name}`")
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.partition(".")[0] in COPIED:
            inside = [f"{node.module}.{alias.name}" for alias in node.names]
            submodules = [name for name in inside if _path(name).exists()]
            if node.module in COPIED and len(submodules) < len(inside):
                raise ValueError(f"{module}: expected an import from a module, found one from {node.module} itself")
            found += submodules if node.module in COPIED else [*submodules, node.module]
    return [name for name in found if name not in LEFT_OUT]


def _running(tree: ast.AST) -> Iterator[ast.AST]:
    """Yield all syntax nodes of a module except those under ``if TYPE_CHECKING``."""
    yield tree
    for node in ast.iter_child_nodes(tree):
        if not (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"):
            yield from _running(node)


def _copy(module: str, package: Path) -> None:
    target = package / _path(module).relative_to(ROOT)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(renamed(_path(module).read_text(encoding="utf-8")), encoding="utf-8")
    # the __init__.py of each folder is empty, because ours import more than the client needs
    for folder in target.relative_to(package).parents[:-1]:
        (package / folder / "__init__.py").touch()


def _path(module: str) -> Path:
    """Return the path of a module's or package's file, even if the file does not exist."""
    base = ROOT.joinpath(*module.split("."))
    return base / "__init__.py" if base.is_dir() else base.with_suffix(".py")
