import sys

import pytest

from paramserver.wire.errors import DataError, TaskError
from paramserver.worker.objects import load_object


@pytest.fixture(autouse=True)
def _clean_imports(monkeypatch):
    monkeypatch.setattr(sys, "path", sys.path.copy())
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        del sys.modules[name]


def test_a_file_is_found_relative_to_base_and_may_import_its_neighbour(tmp_path):
    (tmp_path / "neighbour_of_mine.py").write_text("VALUE = 41\n")
    (tmp_path / "mine.py").write_text("import neighbour_of_mine\nAnswer = neighbour_of_mine.VALUE + 1\n")
    assert load_object("mine.py:Answer", tmp_path, TaskError) == 42


def test_two_files_of_one_name_are_two_modules(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "model.py").write_text(f"NAME = {folder!r}\n")
    assert load_object("a/model.py:NAME", tmp_path, TaskError) == "a"
    assert load_object("b/model.py:NAME", tmp_path, TaskError) == "b"


def test_a_module_is_found_on_the_path_and_in_base(tmp_path, monkeypatch):
    (tmp_path / "module_in_cwd.py").write_text("Name = 'found'\n")
    monkeypatch.chdir(tmp_path)
    assert load_object("module_in_cwd:Name", None, TaskError) == "found"
    assert load_object("json:loads", None, TaskError)("1") == 1


def test_the_users_files_never_hide_an_installed_module(tmp_path):
    (tmp_path / "fractions.py").write_text("Fraction = 'fake'\n")
    assert load_object("fractions:Fraction", tmp_path, TaskError) != "fake"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nothing.py:Model", r"no such file: .*nothing\.py"),
        ("no_such_module:Model", "there is no module 'no_such_module'"),
        ("no_such.module:Model", "there is no module 'no_such'"),
        ("broken.py:Model", "ZeroDivisionError: division by zero \\(broken.py, line 1\\)"),
        ("syntax.py:Model", "SyntaxError"),
        ("needs.py:Model", "ModuleNotFoundError: No module named 'not_installed'"),
        ("good.py:Modle", r"has no 'Modle', did you mean 'Model'\?"),
        ("good.py:", "module:Name or file.py:Name is expected"),
    ],
)
def test_what_cannot_be_loaded_is_explained(tmp_path, name, message):
    (tmp_path / "broken.py").write_text("1 / 0\n")
    (tmp_path / "syntax.py").write_text("def\n")
    (tmp_path / "needs.py").write_text("import not_installed\n")
    (tmp_path / "good.py").write_text("class Model: ...\n")
    with pytest.raises(DataError, match=message):
        load_object(name, tmp_path, DataError)


def test_a_file_that_failed_may_be_repaired_and_loaded_again(tmp_path):
    (tmp_path / "model.py").write_text("1 / 0\n")
    with pytest.raises(TaskError):
        load_object("model.py:Name", tmp_path, TaskError)
    (tmp_path / "model.py").write_text("Name = 'repaired'\n")
    assert load_object("model.py:Name", tmp_path, TaskError) == "repaired"
