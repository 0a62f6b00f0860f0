"""Choice of the image files that are named on a command line."""

import os
import re
from collections.abc import Sequence
from pathlib import Path

from digit_study.pictures.image_files import HEIF_SUFFIXES, NEEDS_HEIF, SUFFIXES, reads_heif
from digit_study.support.errors import StudyError

#: Paths that a message names, at most.
MOST_NAMED = 5


def image_files(paths: Sequence[str]) -> list[Path]:
    """Return the image files that paths stand for.

    Args:
        paths: files and folders.

    Returns:
        Each file, and the image files directly in each folder, in natural order (2.png before
        10.png). A folder without any stands for itself, which is an error when it is read.

    Raises:
        StudyError: if no path is given, or a path does not exist.
    """
    if not paths:
        raise StudyError(
            "at least one image or folder must be named: python src/predict.py photo.png scans/"
        )
    missing = [_named(path) for path in paths if not os.path.exists(path)]
    if missing:
        named = ", ".join(missing[:MOST_NAMED])
        if len(missing) > MOST_NAMED:
            named += " …"
        raise StudyError(
            f"every path must exist, got {named}: check spelling and links, from {Path.cwd()}"
        )
    files: list[Path] = []
    for name in paths:
        path = Path(name)
        images = [entry for entry in _entries_of(path) if _is_image(entry)]
        files += images or [path]
    return files


def printable(name: str) -> str:
    """Return a name without what a terminal would obey: control characters are escaped."""
    shown = ""
    for character in name:
        if character.isprintable():
            shown += character
        else:
            shown += character.encode("unicode_escape").decode()
    return shown


def _named(path: str) -> str:
    """Return a path that does not exist as a message names it: of a link with its target."""
    shown = f"'{printable(path)}'"
    if os.path.islink(path):
        shown += f", which leads to '{printable(os.readlink(path))}'"
    return shown


def left_out(paths: Sequence[str]) -> str:
    """Return which files and folders of folders are not read, and why; empty if all are.

    Args:
        paths: files and folders, which exist.
    """
    others: list[Path] = []
    for name in paths:
        others += [entry for entry in _entries_of(Path(name)) if not _is_image(entry)]
    if not others:
        return ""
    named = [f"'{printable(str(entry))}' {_reason(entry)}" for entry in others[:MOST_NAMED]]
    if len(others) > MOST_NAMED:
        named.append(f"and {len(others) - MOST_NAMED} more")
    return f"left out: {'; '.join(named)}"


def _reason(entry: Path) -> str:
    """Return why a file or a folder is no image that is read."""
    if entry.is_dir():
        return "is a folder: name it too"
    if entry.suffix.lower() in HEIF_SUFFIXES:
        return NEEDS_HEIF
    return "is no image by its ending"


def _is_image(entry: Path) -> bool:
    """Return whether an entry of a folder is a file that is read, by its ending."""
    if entry.is_dir():
        return False
    ending = entry.suffix.lower()
    return ending in SUFFIXES or (ending in HEIF_SUFFIXES and reads_heif())


def _entries_of(path: Path) -> list[Path]:
    """Return what lies directly in a folder and is not hidden; of a file nothing.

    Files come first, then folders, each in natural order.
    """
    if not path.is_dir():
        return []
    try:
        shown = [entry for entry in path.iterdir() if not entry.name.startswith(".")]
        return sorted(shown, key=lambda entry: (entry.is_dir(), _natural_key(entry)))
    except PermissionError:
        # the folder stands for itself: that it may not be entered is the error when it is read
        return []


def _natural_key(entry: Path) -> list[str | int]:
    """Return the parts of a name, text and numbers in turn, by which files are sorted."""
    key: list[str | int] = []
    for part in re.split(r"(\d+)", entry.name.casefold()):
        if part.isdecimal():
            key.append(int(part))
        else:
            key.append(part)
    return key
