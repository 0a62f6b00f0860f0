"""The folder that a command works in: every path that the project writes to comes from here."""

from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from digit_study.support.sqlite import sqlite_uri


@dataclass(frozen=True)
class Workspace:
    """Where databases, artifacts, studies and locks lie.

    It is created once, by the entry point, and handed down; tests make one of ``tmp_path``.
    """

    #: The project's folder. A bare ``mlflow ui`` that is started there finds all runs.
    root: Path

    @classmethod
    def of_project(cls) -> "Workspace":
        """Return the workspace of the checkout that this code lies in."""
        return cls(Path(__file__).resolve().parents[3])

    @property
    def default_store(self) -> str:
        """URI of the tracking store that is used where none is configured."""
        return sqlite_uri(self.root / "mlflow.db")

    @property
    def artifacts(self) -> Path:
        """Folder of MLflow's artifacts and of everything else that is written."""
        return self.root / "mlruns"

    @property
    def spool(self) -> Path:
        """Folder of what runs still have to upload, one folder a run."""
        return self.artifacts / ".outbox"

    @property
    def studies(self) -> Path:
        """Folder of the studies whose trials are kept on this machine."""
        return self.artifacts / "studies"

    @property
    def drawings(self) -> Path:
        """Folder of the drawings that a person kept on the page to draw on."""
        return self.artifacts / "drawings"

    @property
    def newest_result(self) -> Path:
        """File with the address of the newest result, which ``make ui`` opens."""
        return self.artifacts / ".newest"

    def lock(self, name: str) -> FileLock:
        """Return a lock of this machine, which the kernel frees when its owner dies.

        Args:
            name: Path of the lock file below :attr:`artifacts`.
        """
        path = self.artifacts / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return FileLock(path)

    def shown(self, path: Path) -> Path:
        """Return a path as a person reads it: relative to :attr:`root` where it lies below that."""
        if path.is_relative_to(self.root):
            return path.relative_to(self.root)
        return path
