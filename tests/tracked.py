"""What tests of tracking share: a store and a workspace of their own, and runs in it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import mlflow
import pytest
from mlflow.exceptions import MlflowException

from digit_study.config.run_config import Config, TrackingConfig
from digit_study.data.sources import DataConfig
from digit_study.model.recipe import TrainingConfig
from digit_study.support.workspace import Workspace
from digit_study.tracking.session import Tracker

CONFIG = Config(
    data=DataConfig(sha256="ab" * 32), training=TrainingConfig(precision="float32", threads=1)
)


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    """A workspace in which nothing lies yet."""
    return Workspace(tmp_path)


@pytest.fixture
def tracker(migrated: Path, workspace: Workspace) -> Tracker:
    """A new and empty store, in which runs upload themselves."""
    shutil.copy(migrated, workspace.root / "mlflow.db")
    return Tracker(workspace.default_store, workspace)


def created(tracker: Tracker, **tracked: Any) -> str:
    """Create a run whose tracking config has these values; return its id."""
    config = Config(CONFIG.data, CONFIG.model, CONFIG.training, TrackingConfig(**tracked))
    return tracker.create_run(config, "mnist_sample", "filters=8")


def stored_run(tracker: Tracker, run_id: str) -> Any:
    """Return a run as the store has it."""
    return mlflow.MlflowClient(tracker.uri).get_run(run_id)


def again(tracker: Tracker) -> Tracker:
    """Return the store as the next command opens it: nothing is remembered."""
    return Tracker(tracker.uri, tracker.workspace)


def is_spool_empty(workspace: Workspace) -> bool:
    """Return whether every run is uploaded."""
    if not workspace.spool.is_dir():
        return True
    return not [path for path in workspace.spool.iterdir() if path.is_dir()]


class Gone:
    """A client of a store that has gone away."""

    def __getattr__(self, name: str) -> Any:
        def refuse(*_: Any, **__: Any) -> Any:
            raise MlflowException("connection refused\nand a long story")

        return refuse
