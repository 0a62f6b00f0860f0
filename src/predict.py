"""Read the digits in image files: ``python src/predict.py photo.jpg scans/``."""

import argparse
import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

# Python puts this folder there itself, but not with -P, -I or PYTHONSAFEPATH
sys.path.insert(0, str(Path(__file__).resolve().parent))

from rich.console import Console, RenderableType
from rich.progress import MofNCompleteColumn, Progress
from rich.table import Column, Table
from rich.text import Text

from digit_study.data.formats import read_unlabelled_csv
from digit_study.inference.detector import are_digits
from digit_study.inference.files import image_files, left_out, printable
from digit_study.inference.prediction import Number, Reading, load_model, read_files
from digit_study.support.console import warn
from digit_study.support.errors import StudyError
from digit_study.support.signals import readable_errors
from digit_study.support.suggestions import nearest
from digit_study.support.workspace import Workspace
from digit_study.tracking.database import quiet_mlflow
from digit_study.tracking.location import CHAMPION_URI, MODEL_NAMES, store_uri
from digit_study.tracking.models import SCHEMES, model_file

SETTINGS = ("model", "abstain", "tracking.uri")
DEFAULT_PICTURE = "predicted.png"
PICTURE_TYPES = (".png", ".jpg", ".jpeg", ".webp", ".pdf", ".svg", ".tif", ".tiff")
#: Digits at most of a number each of whose probabilities is shown.
MOST_PROBABILITIES = 10
#: More characters than any table has in a line.
UNBOUNDED_WIDTH = 20_000
#: Path that stands for standard input.
STANDARD_INPUT = "-"


def parse_words(words: Sequence[str]) -> argparse.Namespace:
    """Parse a command line: ``given`` holds paths and settings, the rest is options."""
    parser = argparse.ArgumentParser(
        prog="predict.py",
        allow_abbrev=False,
        description=(
            "Reads the digit in each image, or the number: any size, mode, format or polarity. "
            "Exit code: 0 if all images were read, 1 if not, 2 for a wrong option."
        ),
        epilog=(
            f"Settings: model={MODEL_NAMES}; "
            "abstain=false, to read also what is no digit; tracking.uri=…."
        ),
    )
    parser.add_argument(
        "given",
        nargs="*",
        metavar="FILE|FOLDER|SETTING=VALUE",
        help=(
            "of an animation or a multi-page file the first picture; "
            "of a folder the images directly in it; - is standard input"
        ),
    )
    parser.add_argument(
        "--json",
        action="store_true",
        help="an array of objects on standard output",
    )
    parser.add_argument(
        "--show",
        metavar="PATH",
        help=(
            "draw what the network saw into PATH, written --show=PATH, "
            f"or --show alone into {DEFAULT_PICTURE}"
        ),
    )
    parser.add_argument(
        "--digit",
        action="store_true",
        help="insist on a single digit: numbers are refused",
    )
    parser.add_argument(
        "--submission",
        metavar="PATH",
        help="read the images of Kaggle's test.csv and write ImageId,Label into PATH",
    )
    parser.add_argument(
        "--coverage",
        type=float,
        metavar="P",
        help=(
            "print the digits that hold the true one with this probability, "
            "by the model's own validation images: 0.99"
        ),
    )
    # --show alone never takes the next path as its own
    complete = [f"--show={DEFAULT_PICTURE}" if word == "--show" else word for word in words]
    return parser.parse_intermixed_args(complete)


def split_settings(given: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Separate ``key=value`` from paths; a file that exists is a file, whatever its name."""
    settings = {}
    paths = []
    for word in given:
        key, equals, value = word.partition("=")
        meant = nearest(key, SETTINGS)
        looks_like_path = "/" in key or "." in value
        if not equals or os.path.exists(word):
            paths.append(word)
        elif key in SETTINGS:
            settings[key] = value
        elif looks_like_path and not meant:
            paths.append(word)
        else:
            rule = f"a setting must be {' or '.join(SETTINGS)}, and a file must exist"
            raise StudyError(f"{rule}, got '{word}'{meant}")
    return settings, paths


def check_target(option: str, path: str, files: Sequence[Path]) -> None:
    """Raise StudyError for a target that cannot be written or would overwrite one of ``files``.

    Args:
        option: the option that names the target, for the message.
        path: what was given.
        files: the files that are read.
    """
    target = Path(path)
    if not target.parent.is_dir():
        raise StudyError(
            f"`{option}` must lie in a folder that exists, got '{path}': mkdir -p '{target.parent}'"
        )
    if target.is_dir():
        raise StudyError(f"`{option}` must be a file, got the folder '{path}': name a file in it")
    if target.resolve() in [file.resolve() for file in files]:
        raise StudyError(
            f"`{option}` must not overwrite an image to be read, got '{path}': name another file"
        )
    written = target
    if not target.exists():
        written = target.parent
    if not os.access(written, os.W_OK):
        raise StudyError(
            f"`{option}` must be a file that can be written, got '{path}': name another, or give "
            f"yourself permission (chmod u+w '{written}')"
        )


def check_show(path: str, files: Sequence[Path]) -> None:
    """Raise StudyError for a picture that cannot be written or would overwrite one of ``files``."""
    if Path(path).suffix.lower() not in PICTURE_TYPES:
        raise StudyError(
            f"`--show` must end in one of {', '.join(PICTURE_TYPES)}, got '{path}': "
            f"--show={DEFAULT_PICTURE}"
        )
    check_target("--show", path, files)


def model_page(name: str, tracking: str | None) -> str:
    """Return the address of a model's page in MLflow, before an alias moves; empty for a file."""
    if not name.startswith(SCHEMES):
        return ""
    from digit_study.tracking.session import Tracker

    workspace = Workspace.of_project()
    return Tracker(store_uri(tracking, workspace), workspace).model_address(name)


def least_probability(coverage: float, name: str, tracking: str | None) -> float:
    """Return how probable a digit must be to stand in a prediction set.

    Args:
        coverage: how often a set should hold the true digit, in (0, 1).
        name: the model, as a version or a run of the store.
        tracking: address of the store; None for the project's own.

    Raises:
        StudyError: if the coverage is out of range, or the model is a mere file.
    """
    if not 0 < coverage < 1:
        raise StudyError(f"`--coverage` must be in (0, 1), got {coverage:g}: --coverage 0.99")
    if not name.startswith(SCHEMES):
        raise StudyError(
            f"`--coverage` needs the run of a model, got the file '{name}': "
            f"name it as {MODEL_NAMES}"
        )
    from digit_study.model import calibration
    from digit_study.tracking.session import open_store

    store = open_store(tracking, Workspace.of_project())
    evaluation = store.evaluation_of_model(name)
    return calibration.least_probability(evaluation.labels, evaluation.probabilities, coverage)


def check_options_of_submission(arguments: argparse.Namespace) -> None:
    """Raise StudyError for an option that means nothing beside ``--submission``."""
    for option in ("json", "show", "digit", "coverage"):
        if getattr(arguments, option):
            raise StudyError(
                f"`--submission` writes a digit for every row of a table, got `--{option}` too: "
                "leave it out"
            )


def predict_submission(
    paths: Sequence[str],
    into: str,
    name: str,
    tracking: str | None,
) -> None:
    """Read the images of a table without labels and write what they show, as Kaggle takes it.

    Args:
        paths: what was given: a single CSV file with 784 pixels a row.
        into: path of the CSV file to be written, with the columns ImageId (from 1) and Label.
        name: the network.
        tracking: address of the store; None for the project's own.

    Raises:
        StudyError: if ``paths`` is anything else, or ``into`` cannot be written.
    """
    if len(paths) != 1 or not paths[0].endswith(".csv"):
        raise StudyError(
            f"`--submission` takes a single CSV file of images, got {' '.join(paths) or 'none'}: "
            "python src/predict.py test.csv --submission submission.csv"
        )
    (table,) = image_files(paths)
    check_target("--submission", into, [table])
    keras_file = model_file(name, tracking, Workspace.of_project())
    images = read_unlabelled_csv(table)
    digits = load_model(keras_file)(images).argmax(axis=1)
    rows = [f"{number},{digit}" for number, digit in enumerate(digits, start=1)]
    target = Path(into)
    target.write_text("\n".join(["ImageId,Label", *rows, ""]), encoding="utf-8")
    print(f"{len(digits):,} digits: {target.resolve()}")


def check_abstain(value: str) -> bool:
    """Return whether what is no digit is refused; raise StudyError for any other word."""
    if value not in ("true", "false"):
        raise StudyError(
            f"`abstain` must be true or false, got '{value}': "
            "abstain=false reads what is no digit too"
        )
    return value == "true"


def read_with_bar(
    files: Sequence[Path],
    keras_file: Path,
    *,
    abstain: bool,
    least: float | None,
    only_digit: bool,
) -> list[Reading]:
    """Read all files, with a bar on a terminal."""
    load = cache(load_model)  # called when the first image that can be read needs it
    results = read_files(
        files,
        lambda images: load(keras_file)(images),
        are_digits if abstain else None,
        least,
        only_digit=only_digit,
    )
    columns = (*Progress.get_default_columns(), MofNCompleteColumn())
    bar = Progress(
        *columns,
        console=Console(stderr=True),
        disable=not sys.stderr.isatty(),
        transient=True,
    )
    with bar:
        return list(bar.track(results, total=len(files), description="reading"))


@contextmanager
def standard_input_as_file(paths: Sequence[str]) -> Iterator[list[str]]:
    """Let the block have standard input as a file.

    Args:
        paths: paths, of which one at most is ``-``.

    Yields:
        The paths, with the file instead of ``-``.

    Raises:
        StudyError: if nothing can be read there.
    """
    if STANDARD_INPUT not in paths:
        yield list(paths)
        return
    if paths.count(STANDARD_INPUT) > 1:
        raise StudyError("standard input can be read once, got '-' twice: give it once")
    if sys.stdin is None or sys.stdin.isatty():
        raise StudyError(
            "'-' reads an image from standard input, got none: python src/predict.py - < photo.png"
        )
    with TemporaryDirectory() as folder:
        file = Path(folder, "standard input")
        file.write_bytes(sys.stdin.buffer.read())
        yield [str(file) if path == STANDARD_INPUT else path for path in paths]


def print_readings(readings: Sequence[Reading], coverage: float | None) -> None:
    """Print a table of readings; in a pipe it has no edge to wrap at."""
    width = None
    if not sys.stdout.isatty():
        width = UNBOUNDED_WIDTH
    Console(width=width).print(readings_table(readings, coverage))


def predict(arguments: argparse.Namespace) -> int:
    """Check everything, then read and print; return 1 if a file could not be read, else 0."""
    settings, paths = split_settings(arguments.given)
    name = settings.get("model", CHAMPION_URI)
    tracking = settings.get("tracking.uri")
    if arguments.submission is not None:
        check_options_of_submission(arguments)
        predict_submission(paths, arguments.submission, name, tracking)
        return 0
    with standard_input_as_file(paths) as with_file:
        files = image_files(with_file)
        if arguments.show:
            check_show(arguments.show, files)
        abstain = check_abstain(settings.get("abstain", "true"))
        keras_file = model_file(name, tracking, Workspace.of_project())
        coverage = arguments.coverage
        least = None
        if coverage is not None:
            least = least_probability(coverage, name, tracking)
        page = ""
        if not arguments.json:
            page = model_page(name, tracking)
        others = left_out(with_file)
        if others:
            warn(others)
        readings = read_with_bar(
            files,
            keras_file,
            abstain=abstain,
            least=least,
            only_digit=arguments.digit,
        )
        given = dict(zip(with_file, paths, strict=True))
        shown = [
            replace(reading, file=given.get(reading.file, reading.file)) for reading in readings
        ]
        if arguments.json:
            print(json.dumps([reading.as_json() for reading in shown], indent=2))
        else:
            print_readings(shown, coverage)
        if arguments.show:
            from digit_study.inference.picture import readings_figure

            readings_figure(readings).savefig(arguments.show, dpi=120)
            print(f"What the network saw: {Path(arguments.show).resolve()}", file=sys.stderr)
    if page:
        print(f"model: {page}")
    return int(any(reading.error for reading in readings))


def readings_table(readings: Sequence[Reading], coverage: float | None) -> Table:
    """Return a table with a row a file; with a prediction set where a coverage was asked for."""
    sets = [] if coverage is None else [f"prediction set, {coverage:.4g}"]
    # what does not fit is folded: paths differ at their ends, and a number is read to its end
    table = Table(
        Column("file", overflow="fold"),
        Column("digit", overflow="fold"),
        "probability",
        *sets,
        "probabilities of 0 … 9, %",
    )
    for reading in readings:
        digit = "–"
        sure = ""
        last = Text(reading.error or "", style="red")
        members = " ".join(map(str, reading.digits or ()))
        if reading.number is not None:
            digit = reading.number.text
            sure = f"{reading.number.probability:.2%}"
            last = Text(f"of each digit: {shown_probabilities(reading.number)}")
        elif reading.probabilities is not None:
            digit = str(reading.digit)
            sure = f"{max(reading.probabilities):.2%}"
            last = Text(" ".join(f"{100 * p:.0f}" for p in reading.probabilities))
            if reading.turned is not None:
                last.append(f"; turned to the {reading.turned}")
        row: list[RenderableType] = [Text(printable(reading.file)), digit, sure]
        if sets:
            row.append(members)
        table.add_row(*row, last)
    return table


def shown_probabilities(number: Number) -> str:
    """Return the probability of each digit of a number; of many, the least and the greatest."""
    each = [max(digit.probabilities) for digit in number.digits]
    if len(each) > MOST_PROBABILITIES:
        return f"{min(each):.0%} to {max(each):.0%}"
    return " ".join(f"{probability:.0%}" for probability in each)


def main(words: Sequence[str]) -> int:
    """Answer a command line; return 1 if a file could not be read, else 0."""
    quiet_mlflow()
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "ERROR")
    with readable_errors("no prediction is printed"):
        code = predict(parse_words(words))
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
