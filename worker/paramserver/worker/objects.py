"""Imports the user's own code by name, from the worker's own path: a job names code, it never carries it."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
import sysconfig
import traceback
from pathlib import Path
from types import ModuleType
from typing import Any

from paramserver.wire.errors import RequestError, nearest


def load_object(name: str, base: Path | None, error: type[RequestError]) -> Any:
    """Return the object that `module:Name` or `file.py:Name` names.

    Modules are found as Python finds them and in `base` (default: the working directory), files relative to
    `base`. A file may import its neighbours.

    Raises:
        RequestError: of the given kind, if module, file or attribute do not exist, or importing fails.
    """
    origin, _, attribute = name.rpartition(":")
    folder = (base or Path.cwd()).resolve()
    if not origin or not attribute:
        raise error(f"{name!r} names no object: module:Name or file.py:Name is expected")
    if origin.endswith(".py"):
        module = _load_file(name, folder / origin, error)
    else:
        module = _load_module(name, origin, folder, error)
    try:
        return getattr(module, attribute)
    except AttributeError:
        hint = nearest(attribute, (known for known in vars(module) if not known.startswith("_")))
        raise error(f"{name!r}: {origin} has no {attribute!r}{hint}") from None


def line_of(error: Exception) -> str:
    """Return where in the user's code an error was raised, such as " (own.py, line 7)", to stand behind its message.

    That is the innermost line, behind whoever caught the error, which is not in an installed library; empty if there is
    none.
    """
    libraries = tuple({sysconfig.get_path(kind) for kind in ("stdlib", "platstdlib", "purelib", "platlib")})
    frames = traceback.extract_tb(error.__traceback__)[1:]
    for frame in reversed(frames):
        if not frame.filename.startswith(("<", *libraries)):
            return f" ({Path(frame.filename).name}, line {frame.lineno})"
    return ""


def _load_file(name: str, path: Path, error: type[RequestError]) -> ModuleType:
    if not path.is_file():
        raise error(f"{name!r}: no such file: {path}")
    # The name must differ from every installed module, yet be the same in every process.
    module_name = f"{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:12]}"
    if module_name in sys.modules:
        return sys.modules[module_name]
    spec = importlib.util.spec_from_file_location(module_name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    _make_importable(path.parent)
    sys.modules[module_name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as cause:
        del sys.modules[module_name]
        raise error(f"{name!r}: importing {path} failed: {type(cause).__name__}: {cause}{line_of(cause)}") from cause
    return module


def _load_module(name: str, module: str, folder: Path, error: type[RequestError]) -> ModuleType:
    _make_importable(folder)
    try:
        return importlib.import_module(module)
    except Exception as cause:
        if isinstance(cause, ModuleNotFoundError) and cause.name and f"{module}.".startswith(f"{cause.name}."):
            raise error(f"{name!r}: there is no module {cause.name!r} on this worker's path") from None
        raise error(f"{name!r}: importing {module} failed: {type(cause).__name__}: {cause}{line_of(cause)}") from cause


def _make_importable(folder: Path) -> None:
    # Last on the path, so that the user's files never hide an installed module.
    if str(folder) not in sys.path:
        sys.path.append(str(folder))
