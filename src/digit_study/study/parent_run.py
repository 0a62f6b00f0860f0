"""The parent run of a study, a multirun or a confirmation: written, reported on, ended."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from digit_study.config.run_config import Config
from digit_study.data.digits import load_digits
from digit_study.report.figures import run_figures
from digit_study.support import console
from digit_study.support.signals import Interrupted
from digit_study.tracking.pages import INITIAL
from digit_study.tracking.session import Tracker
from digit_study.tracking.writer import RunWriter

#: Reports on a parent run at its end: its writer, and the status with which it ends.
Report = Callable[[RunWriter, str], None]


def _report_nothing(writer: RunWriter, status: str) -> None:
    """Leave the parent run as it is."""


def find_or_create(
    tracker: Tracker,
    config: Config,
    dataset: str,
    name: str,
    identity: Mapping[str, str],
    **tags: str,
) -> str:
    """Open the newest parent run with certain tags again, or create it.

    Args:
        tracker: The store that has the run, or gets it.
        config: What its children have in common.
        dataset: Name of the data.
        name: Name of a new run.
        identity: The tags by which the run is found.
        tags: Further tags of a new run.

    Returns:
        The id of the run.
    """
    found = tracker.find_run(identity)
    if found is None:
        return tracker.create_run(config, dataset, name, **INITIAL, **tags, **identity)
    tracker.reopen_run(found)
    return found


@contextmanager
def parent_run(
    tracker: Tracker,
    run_id: str,
    config: Config,
    *,
    interrupted: str = "",
    report: Report = _report_nothing,
    lock: AbstractContextManager[Any] | None = None,
) -> Iterator[RunWriter]:
    """Write the parent run while the block lasts, and end it with its true status.

    Args:
        tracker: The store that has the run.
        run_id: Id of the run, which is RUNNING.
        config: What its children have in common.
        interrupted: What a person who interrupts the command is told; nothing if empty.
        report: Called before the run ends, whatever happened in the block.
        lock: Held from the report to the end, where several processes of this machine write the
            same parent run, which has one spooled folder.

    Yields:
        The writer of the run.
    """
    status = "FAILED"
    try:
        writer = tracker.writer(run_id)
        writer.config(config)
        digits = load_digits(config.data)
        writer.dataset(digits.name, digits.sha256, digits.counts())
        run_figures.write_data_figures(digits, writer.folder)
        yield writer
        status = "FINISHED"
    except Interrupted:
        status = "KILLED"
        if interrupted:
            console.print_error(interrupted)
        raise
    finally:
        with lock or nullcontext():
            _end(tracker, run_id, status, report)


def _end(tracker: Tracker, run_id: str, status: str, report: Report) -> None:
    """Report and end a parent run, which another process may have ended meanwhile."""
    writer = tracker.writer(run_id)
    try:
        report(writer, status)
    except Interrupted:
        status = "KILLED"
        raise
    except BaseException:
        status = "FAILED"
        raise
    finally:
        writer.end(status, {})
