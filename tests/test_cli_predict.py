"""`python src/predict.py` as a person types it, and the reading of many behind it."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FrameType
from typing import Any

import numpy as np
import pytest
import recorded_store as rs
from conftest import sample
from mlflow import MlflowClient
from PIL import Image
from rich.console import Console

import draw
import predict
from digit_study.inference.files import image_files, left_out, printable
from digit_study.inference.picture import readings_figure
from digit_study.inference.prediction import (
    NO_NUMBER,
    BatchSize,
    Number,
    NumberDigit,
    Reading,
    read_files,
)
from digit_study.inference.segmentation import Box
from digit_study.pictures.image_files import ImageError, read_grey, reads_heif
from digit_study.support.errors import StudyError
from digit_study.support.workspace import Workspace
from digit_study.tracking.models import model_file, version_named

ROOT = Path(__file__).parents[1]
DIGITS, _ = sample()
VERSION = ["model=models:/digit-recognizer/1"]
MODEL = Path("model", "data", "model.keras")
#: User id of a user without rights.
NOBODY = 65534
BLANK = np.full((40, 40), 255, np.uint8)


def save(folder: Path, **images: np.ndarray[Any, Any]) -> list[Path]:
    for name, image in images.items():
        Image.fromarray(image).save(folder / f"{name}.png")
    return [folder / f"{name}.png" for name in images]


def by_brightness(images: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """A stand-in for a model: certain, and of a digit that depends on the pixels."""
    return np.eye(10, dtype=np.float32)[images.sum(axis=(1, 2), dtype=np.int64) % 10]


# ---------------------------------------------------------------------------------- without TensorFlow


def test_a_folder_means_its_images_in_natural_order(tmp_path: Path) -> None:
    save(tmp_path, d10=DIGITS[0], d2=DIGITS[1])
    (tmp_path / "notes.txt").write_text("no image")
    assert [file.name for file in image_files([str(tmp_path)])] == ["d2.png", "d10.png"]


@pytest.mark.parametrize(
    ("paths", "word"), [([], "must be named"), (["gone.png"], "got 'gone.png'")]
)
def test_paths_are_checked(paths: list[str], word: str) -> None:
    with pytest.raises(StudyError, match=word):
        image_files(paths)


def test_a_link_to_nothing_is_named_with_its_target(tmp_path: Path) -> None:
    link = tmp_path / "seven.png"
    link.symlink_to(tmp_path / "moved" / "7.png")
    with pytest.raises(StudyError, match=r"seven.png', which leads to '.*moved/7.png'"):
        image_files([str(link)])


def test_a_name_cannot_control_the_terminal() -> None:
    assert printable("zero\x1b[2J\n.png") == r"zero\x1b[2J\n.png"
    assert printable("Ziffer ü 7.png") == "Ziffer ü 7.png"


def test_batches_keep_the_order_and_errors_stop_nothing(tmp_path: Path) -> None:
    files = save(tmp_path, a=DIGITS[0], b=BLANK, c=DIGITS[9], d=DIGITS[4999], e=BLANK)
    readings = list(read_files(files, by_brightness, batch=BatchSize(files=2)))
    assert [reading.file for reading in readings] == [str(file) for file in files]
    assert [reading.error is None for reading in readings] == [True, False, True, True, False]
    digits = [reading.digit for reading in readings if reading.digit is not None]
    assert digits == list(by_brightness(DIGITS[[0, 9, 4999]]).argmax(axis=1))


def test_what_the_detector_does_not_accept_is_an_error_and_sets_are_told(tmp_path: Path) -> None:
    files = save(tmp_path, a=DIGITS[0], b=DIGITS[9], c=BLANK)
    unsure = np.array([[0.6, 0.3, *[0.0125] * 8]], np.float32)
    given = {
        "accepts": lambda images: images.sum(axis=(1, 2, 3)) != DIGITS[9].sum(dtype=np.int64),
        "least": 0.25,
    }
    first, second, third = read_files(
        files, lambda images: unsure.repeat(len(images), axis=0), **given
    )
    assert (first.digit, first.digits, first.error) == (0, [0, 1], None)
    assert first.as_json()["digits"] == [0, 1]
    assert (
        second.digit is None
        and second.probabilities is None
        and "abstain=false" in str(second.error)
    )
    assert "blank" in str(third.error)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--coverage", "1"], "`--coverage` must be in (0, 1), got 1"),
        (["--coverage", "0.9"], "needs the run of a model, got the file 'own.keras'"),
        (["abstain=no"], "`abstain` must be true or false, got 'no'"),
    ],
)
def test_what_is_asked_for_is_checked_before_anything_is_read(
    words: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    save(tmp_path, a=DIGITS[0])
    Path("own.keras").touch()
    with pytest.raises(SystemExit, match="1"):
        predict.main(["a.png", "model=own.keras", *words])
    assert message in capsys.readouterr().err


def test_a_folder_without_images_is_one_error_among_readings(tmp_path: Path) -> None:
    (only,) = read_files(image_files([str(tmp_path)]), by_brightness)
    assert only.error is not None and "holds no image files" in only.error
    assert set(only.as_json()) == {"file", "digit", "probabilities", "error"}
    assert only.digit is None and only.probabilities is None
    (tmp_path / "7").mkdir()
    (tmp_path / "test.csv").write_text("pixel0\n0\n")
    folder, table = read_files([tmp_path, tmp_path / "test.csv"], by_brightness)
    assert "name the folders in it" in str(folder.error)
    assert "--submission submission.csv" in str(table.error)


def test_a_store_that_is_not_there_is_not_created(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match=r"promote\.py"):
        model_file(
            "models:/digit-recognizer@champion",
            f"sqlite:///{tmp_path / 'none.db'}",
            Workspace(tmp_path),
        )
    assert not (tmp_path / "none.db").exists()


def test_a_file_with_an_equals_sign_is_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    save(tmp_path, **{"model=x": DIGITS[0]})
    assert predict.split_settings(["model=x.png", "model=models:/m/3"]) == (
        {"model": "models:/m/3"},
        ["model=x.png"],
    )
    for word in ("modle=models:/m/3", "modle=own.keras"):
        with pytest.raises(StudyError, match="did you mean 'model'"):
            predict.split_settings([word])


@pytest.mark.parametrize(
    ("show", "word"),
    [
        ("a.txt", "must end in"),
        ("gone/a.png", "folder that"),
        ("d.png", "not overwrite"),
        ("folder.png", "must be a file"),
    ],
)
def test_show_is_checked_before_anything_is_read(
    show: str,
    word: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    save(tmp_path, d=DIGITS[0])
    Path("folder.png").mkdir()
    with pytest.raises(SystemExit, match="1"):
        predict.main(["d.png", f"--show={show}"])
    assert word in capsys.readouterr().err


@pytest.mark.parametrize(
    ("into", "word"),
    [("gone/s.csv", "folder that"), ("test.csv", "not overwrite"), (".", "must be a file")],
)
def test_where_a_submission_goes_is_checked_before_a_model_is_looked_for(
    into: str,
    word: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("test.csv").touch()
    with pytest.raises(StudyError, match=f"`--submission` .*{word}"):
        predict.predict_submission(["test.csv"], into, "nonsense", None)


@pytest.mark.parametrize("option", ["--json", "--show", "--digit", "--coverage=0.9"])
def test_what_means_nothing_for_a_submission_is_refused(option: str) -> None:
    arguments = predict.parse_words(["test.csv", "--submission", "s.csv", option])
    with pytest.raises(StudyError, match=f"got `{option.partition('=')[0]}` too: leave it out"):
        predict.predict(arguments)


@contextmanager
def as_nobody() -> Iterator[None]:
    """Let the block do what anybody may do: root may read and write everything."""
    if os.geteuid() != 0:
        yield
        return
    os.setresuid(NOBODY, NOBODY, 0)
    try:
        yield
    finally:
        os.setresuid(0, 0, 0)


@pytest.fixture
def public() -> Iterator[Path]:
    """A folder that anybody may enter; pytest's own are its user's alone."""
    with TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


def test_a_target_that_may_not_be_written_is_found_at_once(public: Path) -> None:
    (public / "old.png").touch(0o444)
    public.chmod(0o555)
    for name in ("old.png", "new.png"):
        with as_nobody(), pytest.raises(StudyError, match="must be a file that can be written"):
            predict.check_target("--show", str(public / name), [])


@pytest.mark.parametrize("mode", [0o000, 0o444])
def test_a_folder_that_may_not_be_entered_is_one_error_among_readings(
    mode: int, public: Path
) -> None:
    (public / "scans").mkdir()
    save(public / "scans", d=DIGITS[0])
    (public / "scans").chmod(mode)
    paths = [str(public / "scans"), *map(str, save(public, a=DIGITS[0]))]
    try:
        with as_nobody():
            refused, read = read_files(image_files(paths), by_brightness)
            assert left_out(paths) == ""
    finally:
        (public / "scans").chmod(0o755)
    assert "check its permissions" in str(refused.error) and read.error is None


def test_a_table_in_a_pipe_has_a_line_a_file(capsys: pytest.CaptureFixture[str]) -> None:
    files = ["a" * 45 + ".png", "b" * 4000 + ".png"]
    predict.print_readings([Reading(file, error=NO_NUMBER) for file in files], None)
    printed = capsys.readouterr().out.splitlines()
    rows = [line for line in printed if ".png" in line]
    assert len(rows) == 2 and all(NO_NUMBER in row for row in rows)


def test_a_narrow_table_has_the_whole_of_paths_and_numbers() -> None:
    path = "/home/somebody/pictures/of/receipts/number_12.jpg"
    digits = [
        NumberDigit(number % 10, [0.5 + number / 100, *[0.0] * 9], Box(0, 0, 9, 9), BLANK)
        for number in range(40)
    ]
    terminal = Console(width=80, file=io.StringIO())
    table = predict.readings_table([Reading(path, number=Number([digits]))], None)
    with terminal.capture() as captured:
        terminal.print(table)
    lines = [line.split("│") for line in captured.get().splitlines() if "│" in line]
    columns = [[cells[column].strip() for cells in lines] for column in range(1, 5)]
    assert "".join(columns[0]) == path
    assert "".join(columns[1]) == "0123456789" * 4
    assert "50% to 89%" in " ".join(columns[3])


def test_the_picture_of_what_was_seen(tmp_path: Path) -> None:
    readings = list(read_files(save(tmp_path, a=DIGITS[0], b=BLANK), by_brightness))
    (axes,) = readings_figure(readings).axes
    assert np.array_equal(axes.get_images()[0].get_array()[:28, :28], DIGITS[0])
    assert [text.get_text().split("\n")[1] for text in axes.texts] == ["a.png", "b.png"]
    assert axes.texts[1].get_text().startswith("no digit") and "100.0%" in axes.texts[0].get_text()


# ---------------------------------------------------------------------------------- as a person types it


@pytest.fixture(scope="module")
def store(migrated: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """URI of a store with one tiny model, registered as champion."""
    import keras

    folder = tmp_path_factory.mktemp("store")
    keras.utils.set_random_seed(1)
    layers = [keras.Input((28, 28, 1)), keras.layers.Rescaling(1 / 255), keras.layers.Flatten()]
    (folder / "model" / "data").mkdir(parents=True)
    keras.Sequential([*layers, keras.layers.Dense(10, activation="softmax")]).save(folder / MODEL)
    made = rs.make_store(migrated, folder)
    logged = made.client.create_logged_model(made.experiment, name="model")
    made.client.log_model_artifacts(logged.model_id, str(folder / "model"))
    made.client.finalize_logged_model(logged.model_id, "READY")
    made.client.create_registered_model(rs.NAME)
    made.client.create_model_version(
        rs.NAME, f"models:/{logged.model_id}", model_id=logged.model_id
    )
    made.client.set_registered_model_alias(rs.NAME, "champion", "1")
    return made.uri


def typed(cwd: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "src" / "predict.py"), *words]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=300)


@pytest.mark.slow
def test_json_agrees_with_the_model_on_the_arrays(store: str, tmp_path: Path) -> None:
    import keras

    images = DIGITS[::10]
    (tmp_path / "scans").mkdir()
    save(tmp_path / "scans", **{f"d{k}": image for k, image in enumerate(images)})
    save(tmp_path, blank=BLANK, two=np.hstack([DIGITS[0], DIGITS[2600]]))
    words = ("scans/", "--json", "blank.png", f"tracking.uri={store}", "two.png")
    done = typed(tmp_path, *words, "--digit")
    assert done.returncode == 1 and done.stderr == ""
    *read, blank, two = json.loads(done.stdout)
    model = keras.models.load_model(Path(store.removeprefix("sqlite:///")).parent / MODEL)
    expected = model.predict(images[..., None], verbose=0)
    assert [one["digit"] for one in read] == list(expected.argmax(axis=1))
    assert np.allclose([one["probabilities"] for one in read], expected, atol=1e-5)
    assert "blank" in blank["error"] and "2 marks" in two["error"] and blank["digit"] is None


@pytest.mark.slow
def test_several_digits_are_a_number_with_boxes(store: str, tmp_path: Path) -> None:
    save(tmp_path, two=np.hstack([DIGITS[0], DIGITS[2600]]))
    done = typed(tmp_path, "two.png", "--json", "abstain=false", f"tracking.uri={store}")
    assert done.returncode == 0, done.stderr
    (two,) = json.loads(done.stdout)
    assert two["digit"] is None and two["number"].isdecimal() and len(two["number"]) == 2
    assert len(two["boxes"]) == 2 and [len(row) for row in two["digit_probabilities"]] == [10, 10]


@pytest.mark.slow
def test_a_number_from_standard_input_is_drawn(store: str, tmp_path: Path) -> None:
    (image,) = save(tmp_path, two=np.hstack([DIGITS[0], DIGITS[2600]]))
    words = ("-", "--show", "abstain=false", f"tracking.uri={store}")
    command = [sys.executable, str(ROOT / "src" / "predict.py"), *words]
    done = subprocess.run(command, input=image.read_bytes(), capture_output=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "predicted.png").is_file() and b"standard input" not in done.stdout


@pytest.mark.slow
def test_a_submission_as_kaggle_takes_it(store: str, tmp_path: Path) -> None:
    rows = [",".join(f"pixel{number}" for number in range(784))]
    rows += [",".join(map(str, image.ravel())) for image in DIGITS[:30]]
    (tmp_path / "test.csv").write_text("\n".join(rows))
    words = ("test.csv", "--submission", "submission.csv", f"tracking.uri={store}")
    done = typed(tmp_path, *words)
    assert done.returncode == 0, done.stderr
    lines = (tmp_path / "submission.csv").read_text().splitlines()
    assert lines[0] == "ImageId,Label" and len(lines) == 31
    assert lines[1].startswith("1,") and lines[30].startswith("30,")


@pytest.mark.slow
def test_the_table_and_the_picture(
    store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    save(tmp_path, **{"a photo ü=1": 255 - DIGITS[0]})
    assert predict.main(["--show", "a photo ü=1.png", f"tracking.uri={store}", *VERSION]) == 0
    printed = capsys.readouterr()
    assert "a photo ü=1.png" in printed.out and "%" in printed.out
    address = (
        "http://127.0.0.1:5000/#/models/digit-recognizer/versions/1?workflowType=machine_learning"
    )
    last = printed.out.splitlines()[-1]
    assert last == f"model: mlflow ui --backend-store-uri '{store}', then {address}"
    assert (tmp_path / "predicted.png").is_file() and "predicted.png" in printed.err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        ([], 1, "at least one image"),
        (["gone.png"], 1, "gone.png"),
        (["d.png", "model=nonsense"], 1, "models:/digit-recognizer"),
        (["d.png", "--jsn"], 2, "--jsn"),
    ],
)
def test_a_mistake_gets_one_message(
    words: list[str], code: int, message: str, tmp_path: Path
) -> None:
    save(tmp_path, d=DIGITS[0])
    done = typed(tmp_path, *words, f"tracking.uri=sqlite:///{tmp_path}/none.db")
    assert done.returncode == code and message in done.stderr and done.stdout == ""
    assert "Traceback" not in done.stderr and "ensorflow" not in done.stderr


@pytest.mark.slow
def test_what_mlflow_must_be_asked_for_is_found_before_tensorflow_is_imported(
    store: str, tmp_path: Path
) -> None:
    save(tmp_path, d=DIGITS[0], blank=BLANK)
    mistakes = {
        "model=models:/digit-recognizer@nobody": "promote.py",
        "model=models:/digit-recognizer/99": "versions there are (1)",
        "model=runs:/0123/model": "mlflow ui",
    }
    lines = f"""
import sys
sys.path.insert(0, {str(ROOT / "src")!r})
import predict
import pytest
for words in [["d.png", word] for word in {list(mistakes)}]:
    with pytest.raises(SystemExit, match="1"):
        predict.main([*words, "tracking.uri={store}"])
print("no more mistakes", flush=True)
assert predict.main(["blank.png", "tracking.uri={store}"]) == 1
assert "tensorflow" not in sys.modules and "keras" not in sys.modules
"""
    done = subprocess.run(
        [sys.executable, "-c", lines], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("no more mistakes")
    answers = done.stderr.splitlines()
    assert len(answers) == 3 and all(
        word in answer for word, answer in zip(mistakes.values(), answers, strict=True)
    )


@pytest.mark.slow
def test_a_model_that_is_a_file_has_no_address_and_needs_no_mlflow(tmp_path: Path) -> None:
    save(tmp_path, blank=BLANK)
    (tmp_path / "own.keras").touch()
    lines = f"""
import sys
sys.path.insert(0, {str(ROOT / "src")!r})
import predict
assert predict.main(["blank.png", "model=own.keras"]) == 1
assert "mlflow" not in sys.modules
"""
    done = subprocess.run(
        [sys.executable, "-c", lines], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert "blank" in done.stdout and "model:" not in done.stdout


@pytest.mark.slow
def test_standard_input_is_read_and_what_a_folder_leaves_out_is_named(tmp_path: Path) -> None:
    save(tmp_path, blank=BLANK)
    (tmp_path / "scans").mkdir()
    save(tmp_path / "scans", d1=BLANK)
    (tmp_path / "scans" / "IMG_1.HEIC").write_bytes(b"\0\0\0\x18ftypheic")
    (tmp_path / "scans" / "scan.pdf").write_bytes(b"%PDF-1.4")
    (tmp_path / "own.keras").touch()
    script = str(ROOT / "src" / "predict.py")
    line = [sys.executable, script, "-", "scans", "--json", "model=own.keras"]
    image = (tmp_path / "blank.png").read_bytes()
    done = subprocess.run(line, input=image, capture_output=True, cwd=tmp_path)
    assert [reading["file"] for reading in json.loads(done.stdout)] == ["-", "scans/d1.png"]
    told = done.stderr.decode()
    assert len(told.splitlines()) == 1 and "'scans/scan.pdf' is no image by its ending" in told
    if not reads_heif():
        assert "'scans/IMG_1.HEIC' is HEIC, which needs the package pillow-heif" in told
        with pytest.raises(ImageError, match="pip install pillow-heif"):
            read_grey(tmp_path / "scans" / "IMG_1.HEIC")


@pytest.mark.parametrize(
    ("words", "told"), [(["-"], "got none"), (["-", "-"], "standard input can be read once")]
)
def test_standard_input_must_be_there_once(
    words: list[str], told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(StudyError, match=told), predict.standard_input_as_file(words):
        pass


@pytest.mark.slow
def test_the_version_that_an_alias_names_at_this_moment(store: str, tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    assert version_named("models:/digit-recognizer@champion", store, workspace) == "1"
    assert version_named("models:/digit-recognizer/1", store, workspace) is None
    assert version_named("a@b.keras", store, workspace) is None


@pytest.mark.slow
def test_the_page_downloads_a_model_once(store: str, tmp_path: Path) -> None:
    downloads = []

    def note(frame: FrameType, event: str, _: object) -> None:
        if event == "call" and frame.f_code.co_name == "download_artifacts":
            downloads.append(frame.f_code.co_filename)

    sys.setprofile(note)
    try:
        (found,) = draw.find_networks({"tracking.uri": store}, Workspace(tmp_path))
    finally:
        sys.setprofile(None)
    assert downloads and len(downloads) == len(set(downloads))
    assert found.found.version == "1"


def test_a_version_whose_files_were_deleted_is_not_recommended(
    migrated: Path, tmp_path: Path
) -> None:
    workspace = Workspace(tmp_path)
    uri = f"sqlite:///{shutil.copy(migrated, tmp_path / 'mlflow.db')}"
    client = MlflowClient(uri)
    client.create_registered_model("digit-recognizer")
    (tmp_path / "gone").mkdir()
    client.create_model_version("digit-recognizer", (tmp_path / "gone").as_uri())
    (tmp_path / "gone").rmdir()
    with pytest.raises(StudyError, match="whose files are gone from the store: bring them back"):
        model_file("models:/digit-recognizer/1", uri, workspace)
