"""The house: which way imports point, what stays pure, and what the wheel holds."""

from __future__ import annotations

import ast
import re
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

HOUSE = Path(__file__).parent.parent
ROOTS = {"wire": "protos", "server": "server", "worker": "worker", "client": "client"}

#: What each part may import of the others.
ALLOWED = {"wire": set(), "server": {"wire"}, "worker": {"wire"}, "client": {"wire", "server", "worker"}}

#: Modules of the server that decide and do nothing else.
CORE = ("engine", "enginestate", "leases", "pace", "policies", "waits", "events")


def sources(part: str) -> list[Path]:
    found = sorted((HOUSE / ROOTS[part] / "paramserver").rglob("*.py"))
    assert found, f"{part} has no sources"
    return found


def imports(path: Path) -> Iterator[str]:
    """Yield every module that a file imports, wherever in the file."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import hides which part it names"
            yield str(node.module)
            # `from paramserver import server` imports a part by its name.
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("part", ROOTS)
def test_imports_point_one_way(part: str) -> None:
    for path in sources(part):
        for module in imports(path):
            names = module.split(".")
            if names[0] == "paramserver" and len(names) > 1:
                assert names[1] == part or names[1] in ALLOWED[part], f"{path.relative_to(HOUSE)} imports {module}"


@pytest.mark.parametrize("name", CORE)
def test_the_core_touches_no_clock_no_thread_and_no_network(name: str) -> None:
    path = HOUSE / "server/paramserver/server" / f"{name}.py"
    outside = {"grpc", "threading", "time", "random", "asyncio", "socket", "os", "datetime", "numpy", "concurrent"}
    found = {module.split(".")[0] for module in imports(path)}
    assert not found & outside
    # What the core imports of our own must be as pure; the job brings its checks, and nothing that runs.
    ours = {m for m in imports(path) if m.startswith("paramserver.") and (HOUSE / "server" / _file(m)).exists()}
    assert ours <= {f"paramserver.server.{pure}" for pure in CORE}


def _file(module: str) -> str:
    return module.replace(".", "/") + ".py"


def test_nothing_hides_the_other_parts_of_the_namespace() -> None:
    for part, root in ROOTS.items():
        assert not (HOUSE / root / "paramserver/__init__.py").exists()
        parts = [p.name for p in (HOUSE / root / "paramserver").iterdir() if p.name != "__pycache__"]
        assert parts == [part]
        assert (HOUSE / root / "paramserver" / part / "py.typed").exists()


def test_nothing_unpickles() -> None:
    for part in ROOTS:
        for path in sources(part):
            modules = {module.split(".")[0] for module in imports(path)}
            assert not modules & {"pickle", "cloudpickle", "dill", "marshal", "shelve"}, path
            assert not re.search(r"allow_pickle\s*=\s*True", path.read_text(encoding="utf-8")), path


def test_the_wheel_holds_all_four_parts_and_nothing_else(tmp_path: Path) -> None:
    builders = pytest.importorskip("hatchling.builders.wheel", reason="hatchling builds the wheel")
    builder = builders.WheelBuilder(str(HOUSE))
    (wheel,) = builder.build(directory=str(tmp_path), versions=["standard"])
    names = set(zipfile.ZipFile(wheel).namelist())
    for part, root in ROOTS.items():
        files = [p for p in (HOUSE / root).rglob("*") if p.is_file() and "__pycache__" not in p.parts]
        expected = {str(p.relative_to(HOUSE / root)) for p in files}
        assert expected <= names, f"of {part} is missing: {sorted(expected - names)}"
        names -= expected
    assert {name.split("/")[0].rsplit(".", 1)[-1] for name in names} == {"dist-info"}, names
    assert "paramserver/__init__.py" not in zipfile.ZipFile(wheel).namelist()


def test_the_core_and_the_wire_load_without_what_is_optional() -> None:
    """Importing the engine must not pull in extras, which a server does not need."""
    extras = {"scipy", "sklearn", "pyarrow", "matplotlib", "numba"}
    for part in ("wire", "server", "worker"):
        for path in sources(part):
            tree = ast.parse(path.read_text(encoding="utf-8"))
            for node in tree.body:
                if isinstance(node, ast.Import | ast.ImportFrom):
                    module = node.names[0].name if isinstance(node, ast.Import) else str(node.module)
                    assert module.split(".")[0] not in extras, f"{path.relative_to(HOUSE)}:{node.lineno}"


def test_names_of_test_files_are_unique() -> None:
    names = [path.name for path in (HOUSE / "tests").rglob("test_*.py")]
    assert len(names) == len(set(names)), sorted(name for name in names if names.count(name) > 1)
    assert sys.version_info >= (3, 11)
