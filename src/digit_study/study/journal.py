"""Whether a journal holds what Optuna wrote and nothing else, found out without Optuna."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from digit_study.support.errors import StudyError
from digit_study.support.workspace import Workspace

#: Number of the last operation that Optuna's journals know; the first has the number 0.
LAST_OPERATION = 10
#: Number of the operation that deletes a study.
DELETE_STUDY = 1
#: Number of the operation that gives a study an attribute.
SET_STUDY_ATTRIBUTE = 2
#: Characters of a damaged line that a message quotes.
LONGEST_LINE = 60


def journal_path(workspace: Workspace, study: str) -> Path:
    """Return the journal file of a study that is kept on this machine."""
    return workspace.studies / f"{study}.journal"


def stored_attributes(path: Path) -> dict[str, Any]:
    """Return the attributes of the study that a journal holds; none where there is no journal.

    Raises:
        StudyError: If something else wrote into it, or it is no file.
    """
    attributes: dict[str, Any] = {}
    check_is_file(path)
    if not path.exists():
        return attributes
    for record in _records(path):
        if record["op_code"] == DELETE_STUDY:
            # a study that is begun anew has nothing of the study before it
            attributes.clear()
        elif record["op_code"] == SET_STUDY_ATTRIBUTE:
            attributes.update(record["user_attr"])
    return attributes


def check_is_file(path: Path) -> None:
    """Make sure that nothing but a file stands where a journal is; raises StudyError."""
    if os.path.lexists(path) and not path.is_file():
        rule = f"{path} must be a file, the journal of a study"
        raise StudyError(f"{rule}, and is none: move it away, or mend the link")


def check_journal(path: Path) -> None:
    """Make sure that Optuna wrote every line of a journal; it is only read.

    Raises:
        StudyError: If not; the message names the first other line.
    """
    for _ in _records(path):
        pass


def _records(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the records of a journal.

    What a killed writer left behind the last line is no damage.

    Raises:
        StudyError: If a line is no record.
    """
    whole, _, _ = path.read_bytes().rpartition(b"\n")
    for number, line in enumerate(whole.splitlines(), start=1):
        record: Any = None
        with suppress(ValueError):
            record = json.loads(line)
        if is_record(record):
            yield record
            continue
        found = line[:LONGEST_LINE].decode(errors="replace")
        raise StudyError(
            f"{path}, line {number}, must be a record of a study, got {found!r}: delete "
            "that line if something else wrote it, or bring the file back from a copy; "
            "nothing was changed"
        )


def is_record(log: Any) -> bool:
    """Return whether a line of a journal is one that Optuna wrote."""
    if not isinstance(log, dict):
        return False
    operation = log.get("op_code")
    return isinstance(operation, int) and 0 <= operation <= LAST_OPERATION
