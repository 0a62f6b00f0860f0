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

from digit_study.data.formats import read_unlabelled_csv
from digit_study.inference.detector import are_digits
from digit_study.inference.prediction import (
    Reading,
    image_files,
    load_model,
    read_files,
    readings_figure,
)
from digit_study.support.messages import StudyError, nearest
from digit_study.support.signals import collect_rarely
from digit_study.tracking.database import (
    CHAMPION_URI,
    NAMED,
    model_file,
    quiet_mlflow,
    tracking_uri,
)

SETTINGS, SHOWN = ("model", "abstain", "tracking.uri"), "predicted.png"
PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".pdf", ".svg", ".tif", ".tiff")


def parsed(words: Sequence[str]) -> argparse.Namespace:
    """Parse a command line: ``given`` (paths and settings), ``json`` and ``show``."""
    parser = argparse.ArgumentParser(
        prog="predict.py",
        allow_abbrev=False,
        description="Reads the digit in each image, or the number: any size, mode, format or "
        "polarity. Exit code: 0 if all images were read, 1 if not, 2 for a wrong option.",
        epilog=f"Settings: model={NAMED}; abstain=false, to read also what is no digit; tracking.uri=….",
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
    parser.add_argument(
        "--digit", action="store_true", help="insist on a single digit: numbers are refused"
    )
    submission = "read the images of Kaggle's test.csv and write ImageId,Label into PATH"
    parser.add_argument("--submission", metavar="PATH", help=submission)
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
    """The address of the model's page in MLflow, which is asked now, before an alias moves; empty for a file."""
    if not named.startswith(("models:/", "runs:/")):
        return ""
    from digit_study.tracking import views

    return views.model_place(tracking_uri(tracking), named)


def least_probability(coverage: float, named: str, tracking: str | None) -> float:
    """How probable a digit must be to stand in a set of this coverage; raises StudyError if that cannot be told."""
    if not 0 < coverage < 1:
        raise StudyError(f"`--coverage` must be in (0, 1), got {coverage:g}: --coverage 0.99")
    if not named.startswith(("models:/", "runs:/")):
        raise StudyError(
            f"`--coverage` needs the run of a model, got the file '{named}': name it as {NAMED}"
        )
    from digit_study.model import calibration
    from digit_study.tracking import queries as lookup

    found = lookup.evaluation_of_model(named, tracking)
    return calibration.least_probability(found.labels, found.probabilities, coverage)


def submit(table: str, into: str, keras_file: Path) -> None:
    """Read the images of a table without labels and write what they show, as Kaggle takes it.

    Args:
        table: path of a CSV file with 784 pixels a row.
        into: path of the CSV file to be written, with the columns ImageId (from 1) and Label.
        keras_file: the network.

    Raises:
        StudyError: if the table is laid out otherwise, or ``into`` cannot be written.
    """
    if not Path(into).parent.is_dir():
        raise StudyError(
            f"`--submission` must lie in a folder that exists, got '{into}': mkdir it first"
        )
    if Path(into).resolve() == Path(table).resolve():
        raise StudyError(f"`--submission` must not overwrite the images, got '{into}'")
    images = read_unlabelled_csv(Path(table))
    digits = load_model(keras_file)(images).argmax(axis=1)
    rows = [f"{number},{digit}" for number, digit in enumerate(digits, start=1)]
    Path(into).write_text("\n".join(["ImageId,Label", *rows, ""]), encoding="utf-8")
    print(f"{len(digits):,} digits: {Path(into).resolve()}")


def predict(arguments: argparse.Namespace) -> int:
    """Check everything, read with a bar on a terminal, print; returns 1 if a file could not be read."""
    settings, paths = split_settings(arguments.given)
    named = settings.get("model", CHAMPION_URI)
    tracking = settings.get("tracking.uri")
    if arguments.submission is not None:
        if len(paths) != 1 or not paths[0].endswith(".csv"):
            raise StudyError(
                f"`--submission` takes a single CSV file of images, got {' '.join(paths) or 'none'}: "
                "python src/predict.py test.csv --submission submission.csv"
            )
        image_files(paths)
        submit(paths[0], arguments.submission, model_file(named, tracking))
        return 0
    files = image_files(paths)
    if arguments.show:
        check_show(arguments.show, files)
    if (abstain := settings.get("abstain", "true")) not in ("true", "false"):
        raise StudyError(
            f"`abstain` must be true or false, got '{abstain}': abstain=false reads what is no digit too"
        )
    keras_file = model_file(named, tracking)
    coverage = arguments.coverage
    least = None if coverage is None else least_probability(coverage, named, tracking)
    where = "" if arguments.json else model_place(named, tracking)
    load = cache(load_model)  # called when the first image that can be read needs it
    columns = (*Progress.get_default_columns(), MofNCompleteColumn())
    with Progress(
        *columns, console=Console(stderr=True), disable=not sys.stderr.isatty(), transient=True
    ) as bar:
        accepts = are_digits if abstain == "true" else None
        results = read_files(
            files,
            lambda images: load(keras_file)(images),
            accepts,
            least,
            only_digit=arguments.digit,
        )
        readings = list(bar.track(results, total=len(files), description="reading"))
    if arguments.json:
        print(json.dumps([reading.as_json() for reading in readings], indent=2))
    else:
        Console(width=None if sys.stdout.isatty() else 200).print(  # in a pipe no edge wraps
            readings_table(readings, coverage)
        )
    if arguments.show:
        readings_figure(readings).savefig(arguments.show, dpi=120)
        print(f"What the network saw: {Path(arguments.show).resolve()}", file=sys.stderr)
    if where:
        print(f"model: {where}")
    return int(any(reading.error for reading in readings))


def readings_table(readings: Sequence[Reading], coverage: float | None) -> Table:
    """Return a table with a row a file; with a prediction set where a coverage was asked for."""
    sets = [] if coverage is None else [f"prediction set, {coverage:.4g}"]
    table = Table("file", "digit", "probability", *sets, "probabilities of 0 … 9, %")
    for reading in readings:
        digit = "–"
        sure = ""
        last = Text(reading.error or "", style="red")
        members = " ".join(map(str, reading.digits or ()))
        if reading.number is not None:
            digit = reading.number.text
            sure = f"{reading.number.probability:.2%}"
            each = [f"{max(own.probabilities):.0%}" for own in reading.number.digits]
            last = Text(f"of each digit: {' '.join(each)}")
        elif reading.probabilities is not None:
            digit = str(reading.digit)
            sure = f"{max(reading.probabilities):.2%}"
            last = Text(" ".join(f"{100 * p:.0f}" for p in reading.probabilities))
        row: list[RenderableType] = [Text(reading.file), digit, sure]
        if sets:
            row.append(members)
        table.add_row(*row, last)
    return table


def main(words: Sequence[str]) -> int:
    """Answer a command line; returns the exit code."""
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
