"""Choice of the image files that are named on a command line."""

import os
import re
from collections.abc import Sequence
from pathlib import Path

from digit_study.pictures.image_files import SUFFIXES
from digit_study.support.errors import StudyError

#: Missing paths that an error names, at most.
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
    missing = [f"'{path}'" for path in paths if not os.path.exists(path)]
    if missing:
        named = ", ".join(missing[:MOST_NAMED])
        if len(missing) > MOST_NAMED:
            named += " …"
        raise StudyError(
            f"every path must exist, got {named}: check the spelling, from {Path.cwd()}"
        )
    files: list[Path] = []
    for name in paths:
        path = Path(name)
        files += _images_in(path) or [path]
    return files


def _images_in(path: Path) -> list[Path]:
    """Return the image files directly in a folder, in natural order; of a file none."""
    if not path.is_dir():
        return []
    images = []
    for file in path.iterdir():
        is_hidden = file.name.startswith(".")
        if file.suffix.lower() in SUFFIXES and not is_hidden:
            images.append(file)
    return sorted(images, key=_natural_key)


def _natural_key(file: Path) -> list[str | int]:
    """Return the parts of a name, text and numbers in turn, by which files are sorted."""
    key: list[str | int] = []
    for part in re.split(r"(\d+)", file.name.casefold()):
        if part.isdecimal():
            key.append(int(part))
        else:
            key.append(part)
    return key
