"""Packages import downwards only, and the few private names of libraries are each in one marked file."""

from __future__ import annotations

import ast
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import optuna
import pytest
from optuna.storages.journal._storage import JournalOperation

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "digit_study"
#: File, and the private names it alone may use.
PRIVATE = {
    "config/_hydra.py": ["hydra._internal.utils.get_args_parser"],
    "tracking/_mlflow.py": ["mlflow.store.db.utils._initialize_tables"],
    "study/_optuna.py": [
        "optuna.storages.journal._storage.JournalOperation",
        "optuna.storages.RDBStorage",
    ],
}
MOVED = "an upgrade has moved a private name that {} uses: look for a public one first"


def test_the_package_holds_rooms_and_nothing_else() -> None:
    held = [path for path in PACKAGE.iterdir() if path.name not in ("__pycache__", "__init__.py")]
    assert all(path.is_dir() and (path / "__init__.py").is_file() for path in held)
    for package in held:
        said = ast.get_docstring(ast.parse((package / "__init__.py").read_text()))
        assert said and "import" in said.lower(), (
            f"{package.name}/__init__.py says what the package answers and imports"
        )
        assert len((package / "__init__.py").read_text().splitlines()) <= 8


@pytest.mark.slow
def test_no_arrow_points_upwards_and_stages_do_not_know_each_other() -> None:
    """The table of who may import whom stands in pyproject.toml."""
    command = [
        sys.executable,
        "-c",
        "from importlinter.cli import lint_imports_command; lint_imports_command()",
    ]
    environment = {"PYTHONPATH": str(ROOT / "src"), "PATH": "/usr/bin:/bin"}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    "module",
    ["digit_study.study.study_plan", "digit_study.study.journal", "digit_study.study.run_plan"],
)
def test_a_plan_waits_for_no_slow_import(module: str) -> None:
    """They and TensorFlow cost seconds, and a wrong key is told by a plan alone."""
    slow = {"mlflow", "optuna", "pandas", "sqlalchemy", "tensorflow"}
    code = f"import sys, {module}; print(*{slow} & sys.modules.keys())"
    environment = {"PYTHONPATH": str(ROOT / "src"), "PATH": "/usr/bin:/bin"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout == "\n"


def private_uses(path: Path) -> list[str]:
    """Private names that a file imports from a library, or reads from what is not its own."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and not str(node.module).startswith(
            ("digit_study", "__future__")
        ):
            names = [*str(node.module).split("."), *(one.name for one in node.names)]
            found += [f"{node.module}: {name}" for name in names if name.startswith("_")]
        elif (
            isinstance(node, ast.Attribute)
            and node.attr.startswith("_")
            and not node.attr.endswith("__")
        ):
            owner = node.value
            is_own = isinstance(owner, ast.Name) and owner.id in ("self", "cls", "os")
            if not is_own and not isinstance(owner, ast.Call):  # super()
                found.append(ast.unparse(node))
    return found


@pytest.mark.slow
def test_private_names_of_libraries_stand_in_one_marked_file_each() -> None:
    for path in [*PACKAGE.rglob("*.py"), *ROOT.glob("sweeps/*.py"), *ROOT.glob("src/*.py")]:
        if str(path.relative_to(PACKAGE) if PACKAGE in path.parents else path.name) not in PRIVATE:
            assert private_uses(path) == [], f"{path.name} reaches into a private API"


@pytest.mark.parametrize("file", PRIVATE)
def test_a_private_name_that_is_used_is_still_there(file: str) -> None:
    for name in PRIVATE[file]:
        module, _, attribute = name.rpartition(".")
        try:
            is_there = hasattr(import_module(module), attribute)
        except ImportError:
            is_there = False
        assert is_there, MOVED.format(file)


@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (optuna.pruners.HyperbandPruner, "_get_bracket_id"),
        (optuna.samplers.TPESampler, "_get_internal_repr"),
        (optuna.samplers.TPESampler, "_get_params"),
        (optuna.storages.RDBStorage, "_get_stale_trial_ids"),
        (JournalOperation, "SET_TRIAL_STATE_VALUES"),
    ],
)
def test_what_is_changed_of_optuna_is_still_there(owner: type, name: str) -> None:
    assert hasattr(owner, name), MOVED.format("study/_optuna.py")
