"""Image files to digits: ``python src/predict.py photo.jpg scans/ [model=models:/digit-recognizer/3]``."""

import argparse
import gc
import json
import os
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from rich.console import Console, RenderableType
from rich.progress import MofNCompleteColumn, Progress
from rich.table import Table
from rich.text import Text

from digit_study.inference.detector import are_digits
from digit_study.inference.prediction import image_files, load_model, read_files, readings_figure
from digit_study.support.console import protect_standard_streams
from digit_study.support.errors import StudyError
from digit_study.support.signals import collect_rarely
from digit_study.support.suggestions import nearest
from digit_study.support.workspace import Workspace
from digit_study.tracking.database import quiet_mlflow
from digit_study.tracking.location import CHAMPION_URI, MODEL_NAMES, store_uri
from digit_study.tracking.models import model_file

SETTINGS, SHOWN = ("model", "abstain", "tracking.uri"), "predicted.png"
PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".pdf", ".svg", ".tif", ".tiff")


def parsed(words: Sequence[str]) -> argparse.Namespace:
    """Parse a command line: ``given`` (paths and settings), ``json`` and ``show``."""
    parser = argparse.ArgumentParser(
        prog="predict.py",
        allow_abbrev=False,
        description="Reads the digit in each image: any size, mode, format or polarity; one digit per image. "
        "Exit code: 0 if all images were read, 1 if not, 2 for a wrong option.",
        epilog=f"Settings: model={MODEL_NAMES}; abstain=false, to read also what is no digit; tracking.uri=….",
    )
    images = "of an animation or a multi-page file the first picture; of a folder the images directly in it"
    picture = (
        f"draw what the network saw into PATH, written --show=PATH, or --show alone into {SHOWN}"
    )
    parser.add_argument("given", nargs="*", metavar="FILE|FOLDER|SETTING=VALUE", help=images)
    parser.add_argument(
        "--json", action="store_true", help="an array of objects on standard output"
    )
    parser.add_argument("--show", metavar="PATH", help=picture)
    sets = "print the digits that hold the true one with this probability, by the model's own validation images: 0.99"
    parser.add_argument("--coverage", type=float, metavar="P", help=sets)
    # --show alone never takes the next path as its own
    return parser.parse_intermixed_args(
        [f"--show={SHOWN}" if word == "--show" else word for word in words]
    )


def split_settings(given: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Separate ``key=value`` from paths; a file that exists is a file, whatever its name."""
    settings, paths = {}, []
    for word in given:
        key, equals, value = word.partition("=")
        if (
            not equals
            or os.path.exists(word)
            or (key not in SETTINGS and ("/" in key or "." in value))
        ):
            paths.append(word)
        elif key in SETTINGS:
            settings[key] = value
        else:
            rule = f"a setting must be {' or '.join(SETTINGS)}, and a file must exist"
            raise StudyError(f"{rule}, got '{word}'{nearest(key, SETTINGS)}")
    return settings, paths


def check_show(path: str, files: Sequence[Path]) -> None:
    """Raise StudyError for a picture that cannot be written, or would overwrite one of ``files``."""
    target = Path(path)
    if target.suffix.lower() not in PICTURES:
        raise StudyError(
            f"`--show` must end in one of {', '.join(PICTURES)}, got '{path}': --show={SHOWN}"
        )
    if not target.parent.is_dir():
        raise StudyError(
            f"`--show` must lie in a folder that exists, got '{path}': mkdir -p '{target.parent}'"
        )
    if target.resolve() in [file.resolve() for file in files]:
        raise StudyError(
            f"`--show` must not overwrite an image to be read, got '{path}': name another file"
        )


def model_place(named: str, tracking: str | None) -> str:
    """Return the address of a model's page in MLflow, before an alias moves; empty for a file."""
    if not named.startswith(("models:/", "runs:/")):
        return ""
    from digit_study.tracking.session import Tracker

    workspace = Workspace.of_project()
    return Tracker(store_uri(tracking, workspace), workspace).model_address(named)


def least_probability(coverage: float, named: str, tracking: str | None) -> float:
    """How probable a digit must be to stand in a set of this coverage; raises StudyError if that cannot be told."""
    if not 0 < coverage < 1:
        raise StudyError(f"`--coverage` must be in (0, 1), got {coverage:g}: --coverage 0.99")
    if not named.startswith(("models:/", "runs:/")):
        raise StudyError(
            f"`--coverage` needs the run of a model, got the file '{named}': name it as {MODEL_NAMES}"
        )
    from digit_study.model import calibration
    from digit_study.tracking.session import open_store

    found = open_store(tracking, Workspace.of_project()).evaluation_of_model(named)
    return calibration.least_probability(found.labels, found.probabilities, coverage)


def predict(arguments: argparse.Namespace) -> int:
    """Check everything, read with a bar on a terminal, print; returns 1 if a file could not be read."""
    settings, paths = split_settings(arguments.given)
    files = image_files(paths)
    if arguments.show:
        check_show(arguments.show, files)
    named, tracking = settings.get("model", CHAMPION_URI), settings.get("tracking.uri")
    if (abstain := settings.get("abstain", "true")) not in ("true", "false"):
        raise StudyError(
            f"`abstain` must be true or false, got '{abstain}': abstain=false reads what is no digit too"
        )
    keras_file = model_file(named, tracking, Workspace.of_project())
    coverage = arguments.coverage
    least = None if coverage is None else least_probability(coverage, named, tracking)
    where = "" if arguments.json else model_place(named, tracking)
    load = cache(load_model)  # called when the first image that can be read needs it
    columns = (*Progress.get_default_columns(), MofNCompleteColumn())
    with Progress(
        *columns, console=Console(stderr=True), disable=not sys.stderr.isatty(), transient=True
    ) as bar:
        accepts = are_digits if abstain == "true" else None
        results = read_files(files, lambda images: load(keras_file)(images), accepts, least)
        readings = list(bar.track(results, total=len(files), description="reading"))
    if arguments.json:
        print(json.dumps([reading.as_json() for reading in readings], indent=2))
    else:
        sets = () if least is None else (f"prediction set, {coverage:.4g}",)
        table = Table("file", "digit", "probability", *sets, "probabilities of 0 … 9, %")
        for reading in readings:
            row: list[RenderableType] = [
                Text(reading.file),
                "–",
                "",
                *("" for _ in sets),
                Text(reading.error or "", style="red"),
            ]
            if reading.probabilities is not None:
                each = " ".join(f"{100 * p:.0f}" for p in reading.probabilities)
                members = [" ".join(map(str, reading.digits or ())) for _ in sets]
                sure = f"{max(reading.probabilities):.2%}"
                row = [Text(reading.file), str(reading.digit), sure, *members, Text(each)]
            table.add_row(*row)
        Console(width=None if sys.stdout.isatty() else 200).print(table)  # in a pipe no edge wraps
    if arguments.show:
        readings_figure(readings).savefig(arguments.show, dpi=120)
        print(f"What the network saw: {Path(arguments.show).resolve()}", file=sys.stderr)
    if where:
        print(f"model: {where}")
    return int(any(reading.error for reading in readings))


def main(words: Sequence[str]) -> int:
    """Answer a command line; returns the exit code."""
    protect_standard_streams()
    collect_rarely()
    quiet_mlflow()
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "ERROR")
    try:
        return predict(parsed(words))
    except StudyError as fault:
        print(f"error: {fault}", file=sys.stderr)
        return 1
    finally:
        gc.freeze()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
