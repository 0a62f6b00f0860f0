"""Image files to digits: ``python src/predict.py photo.jpg scans/ [model=models:/digit-recognizer/3]``."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress
from rich.table import Table
from rich.text import Text

from digit_study.reading.prediction import (
    CHAMPION,
    Model,
    Reading,
    image_files,
    load_model,
    model_file,
    read_files,
    seen_figure,
)
from digit_study.terminal.errors import StudyError
from digit_study.terminal.naming import nearest

QUIET = {
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_LOGGING_LEVEL": "ERROR",
}
SETTINGS = ("model", "tracking.uri")
SHOWN = "predicted.png"
PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".pdf", ".svg", ".tif", ".tiff")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="predict.py",
        allow_abbrev=False,
        description="Reads the digit in each image: any size, mode, format or polarity; one digit per image.",
        epilog=f"Settings: model={CHAMPION} or models:/digit-recognizer/3 or runs:/<run id>/model or "
        "FILE.keras, and tracking.uri=…. Exit code: 0 if all images were read, 1 if not, 2 for a wrong option.",
    )
    parser.add_argument(
        "given",
        nargs="*",
        metavar="FILE|FOLDER|SETTING=VALUE",
        help="of an animation or a multi-page file the first picture; of a folder the images directly in it",
    )
    parser.add_argument("--json", action="store_true", help="an array of objects on standard output")
    parser.add_argument(
        "--show", metavar="PATH", help=f"draw what the network saw into PATH, --show alone into {SHOWN}"
    )
    return parser


def _settings(given: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Part ``key=value`` from paths; a file that exists is a file, whatever its name."""
    settings, paths = {}, []
    for word in given:
        key, equals, value = word.partition("=")
        if not equals or os.path.exists(word) or (key not in SETTINGS and ("/" in key or "." in value)):
            paths.append(word)
        elif key not in SETTINGS:
            raise StudyError(
                f"a setting must be {' or '.join(SETTINGS)}, and a file must exist, "
                f"got '{word}'{nearest(key, SETTINGS)}"
            )
        else:
            settings[key] = value
    return settings, paths


def _check_show(path: str, files: Sequence[Path]) -> None:
    target = Path(path)
    if target.suffix.lower() not in PICTURES:
        raise StudyError(f"`--show` must end in one of {', '.join(PICTURES)}, got '{path}': --show={SHOWN}")
    if not target.parent.is_dir():
        raise StudyError(f"`--show` must lie in a folder that exists, got '{path}': mkdir -p '{target.parent}'")
    if any(target.resolve() == file.resolve() for file in files):
        raise StudyError(f"`--show` must not overwrite an image to be read, got '{path}': name another file")


def _read(files: list[Path], keras_file: Path) -> list[Reading]:
    """Read all, with a bar on a terminal; the model is loaded when the first readable image asks for it."""
    loaded: list[Model] = []

    def model(images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        if not loaded:
            loaded.append(load_model(keras_file))
        return loaded[0](images)

    columns = (*Progress.get_default_columns(), MofNCompleteColumn())
    with Progress(*columns, console=Console(stderr=True), disable=not sys.stderr.isatty(), transient=True) as bar:
        return list(bar.track(read_files(files, model), total=len(files), description="reading"))


def _table(readings: Sequence[Reading]) -> Table:
    table = Table("file", "digit", "probability", "probabilities of 0 … 9, %")
    for reading in readings:
        if reading.probabilities is None:
            table.add_row(Text(reading.file), "–", "", Text(reading.error or "", style="red"))
        else:
            each = " ".join(f"{100 * p:.0f}" for p in reading.probabilities)
            table.add_row(Text(reading.file), str(reading.digit), f"{max(reading.probabilities):.2%}", each)
    return table


def _print(readings: Sequence[Reading], as_json: bool) -> None:
    if as_json:
        print(json.dumps([reading.as_json() for reading in readings], indent=2))
        return
    console = Console()
    wide = Console(width=200)  # in a pipe there is no edge to wrap at
    (console if console.is_terminal else wide).print(_table(readings))


def _predict(arguments: argparse.Namespace) -> int:
    settings, paths = _settings(arguments.given)
    files = image_files(paths)
    if arguments.show:
        _check_show(arguments.show, files)
    readings = _read(files, model_file(settings.get("model", CHAMPION), settings.get("tracking.uri")))
    _print(readings, arguments.json)
    if arguments.show:
        seen_figure(readings).savefig(arguments.show, dpi=120)
        print(f"What the network saw: {Path(arguments.show).resolve()}", file=sys.stderr)
    return int(any(reading.error for reading in readings))


def main(argv: Sequence[str]) -> int:
    """Parse, read, print; returns the exit code."""
    os.environ.update({**QUIET, **os.environ})  # what the person has set stays
    words = [f"--show={SHOWN}" if word == "--show" else word for word in argv]  # it never eats the next path
    try:
        return _predict(_parser().parse_intermixed_args(words))
    except StudyError as fault:
        print(f"error: {fault}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
