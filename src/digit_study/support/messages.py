"""Rules for values, and the old address of errors, redaction and suggestions until callers move."""

from collections.abc import Iterable, Mapping
from typing import Any

from digit_study.support.errors import StudyError as StudyError
from digit_study.support.errors import find_unwritable as unwritable
from digit_study.support.errors import first_line as first_line
from digit_study.support.errors import is_infrastructure_error as is_infrastructure_fault
from digit_study.support.redaction import without_password as without_password
from digit_study.support.redaction import without_secrets as without_secrets
from digit_study.support.suggestions import nearest as nearest
from digit_study.support.suggestions import short_names as short_names

__all__ = [
    "StudyError",
    "first_line",
    "is_infrastructure_fault",
    "nearest",
    "short_names",
    "unwritable",
    "without_password",
    "without_secrets",
]


def listed(values: Mapping[str, Any]) -> str:
    """``{cpu: 4, gpu: 0.25}``: a flat mapping of numbers as a person types it, without zeros."""
    return "{" + ", ".join(f"{key}: {value:g}" for key, value in values.items() if value) + "}"


def raise_violations(sentences: Iterable[str]) -> None:
    """Raise all sentences as one StudyError, or nothing where there are none."""
    if message := "\n".join(sentences):
        raise StudyError(message)
