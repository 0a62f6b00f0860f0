"""A store that follows its project: MLflow keeps absolute paths, and folders get moved and renamed.

It needs sqlite alone, so that ``make ui`` starts quickly.
"""

import json
import sqlite3
import urllib.parse
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path

from digit_study.support.console import print_error
from digit_study.support.files import write_whole
from digit_study.support.sqlite import SQLITE, connect, sqlite_path, sqlite_uri
from digit_study.support.workspace import Workspace

#: Columns of MLflow's tables that hold the address of artifacts.
COLUMNS = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
)
#: What stands between the folder of a project and that of an experiment.
FOLDER = "/mlruns/"
#: Id of MLflow's own experiment, whose location is the folder that a command was started in.
DEFAULT = "0"
#: Seconds in which another process must have ended its transaction.
LOCKED_FOR_S = 30.0


@dataclass(frozen=True)
class Move:
    """The artifacts of an experiment that lie elsewhere now."""

    #: Where the store says they are.
    old: str
    #: Where they are.
    new: str

    @property
    def old_root(self) -> Path:
        """Folder that the project had then."""
        return _path_of(self.old).parents[1]


def follow_project(uri: str, workspace: Workspace) -> None:
    """Make the artifact locations of a sqlite store those of the folder that the project has now.

    It does nothing where the project has not moved. What people placed elsewhere stays there.

    Args:
        uri: URI of a store; others than those of sqlite files that exist are ignored.
        workspace: Where the project is now.
    """
    path = sqlite_path(uri).absolute()
    if not uri.startswith(SQLITE) or not path.is_file():
        return
    # a database that is locked or of another version: MLflow says later what is wrong
    with suppress(sqlite3.DatabaseError):
        if not _moves(path, workspace):
            return
        with workspace.lock(".store.lock"):
            moves = _moves(path, workspace)  # another process may have been faster
            _rewrite(path, moves)
        roots = {move.old_root for move in moves}
        for root in sorted(roots):
            _move_spooled(root, workspace)
            print_error(f"The project has moved from {root}: its store follows.", "yellow")


def _moves(path: Path, workspace: Workspace) -> list[Move]:
    """Return which experiments of a store lay in another folder of the project."""
    with closing(connect(path, LOCKED_FOR_S)) as connection:
        rows = connection.execute("SELECT experiment_id, artifact_location FROM experiments")
        locations = {str(number): str(location) for number, location in rows}
    is_own_store = path.is_relative_to(workspace.root)
    artifacts = f"{workspace.artifacts.as_uri()}/"
    moves = []
    for location in locations.values():
        start, folder, name = location.rpartition(FOLDER)
        is_local = start.startswith(("file://", "/"))
        is_experiments_folder = bool(folder) and is_local and "/" not in name
        has_stayed = f"{start}{folder}" == artifacts
        if not is_experiments_folder or has_stayed:
            continue
        move = Move(location, f"{artifacts}{name}")
        is_here = _path_of(move.new).exists()
        is_there = _path_of(move.old).exists()
        follows = is_here and not is_there
        if is_own_store:
            # a copy of a project leaves its old folder where it was
            follows = is_here or not is_there
        if follows:
            moves.append(move)
    default_location = locations.get(DEFAULT)
    roots = {move.old_root for move in moves if move.old != default_location}
    return [move for move in moves if move.old_root in roots]


def _rewrite(path: Path, moves: list[Move]) -> None:
    """Write the new locations in one transaction."""
    with closing(connect(path, LOCKED_FOR_S)) as connection, connection:
        connection.execute("BEGIN IMMEDIATE")
        for move in moves:
            addresses = {"old": move.old, "new": move.new}
            for table, column in COLUMNS:
                connection.execute(
                    f"UPDATE {table} SET {column} = :new || substr({column}, length(:old) + 1) "
                    f"WHERE {column} = :old OR substr({column}, 1, length(:old) + 1) = :old || '/'",
                    addresses,
                )


def _move_spooled(old_root: Path, workspace: Workspace) -> None:
    """Let what runs still have to upload belong to the store in the new folder."""
    store = sqlite_uri(old_root / "x").removesuffix("x")
    new_store = sqlite_uri(workspace.root / "x").removesuffix("x")
    root = f"{old_root.as_uri()}/"
    new_root = f"{workspace.root.as_uri()}/"
    for folder in workspace.spool.glob("*/"):
        _replace(folder / "about.json", "uri", store, new_store)
        _replace(folder / "sent.json", "model_place", root, new_root)


def _replace(path: Path, key: str, old: str, new: str) -> None:
    """Replace how a text in a JSON file begins, where it begins with ``old``."""
    with suppress(OSError, ValueError):
        record = json.loads(path.read_text())
        if str(record.get(key)).startswith(old):
            rest = record[key].removeprefix(old)
            record[key] = f"{new}{rest}"
            write_whole(path, json.dumps(record).encode())


def _path_of(location: str) -> Path:
    """Return the path of a local artifact location."""
    if location.startswith("file://"):
        quoted = location.removeprefix("file://")
        return Path(urllib.parse.unquote(quoted))
    return Path(location)
