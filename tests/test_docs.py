"""What README, docs and CONTRIBUTING show: commands work, links and paths exist, README is short."""

from __future__ import annotations

import json
import os
import re
import shlex
import tomllib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from conftest import LIGHT, ROOT, Project, copy_project, sample

from digit_study.config import command_line, compose, multirun_grid
from digit_study.config.compare_config import CompareConfig
from digit_study.config.promote_config import PromoteConfig
from digit_study.config.renamed_keys import RENAMED
from digit_study.config.run_config import Config
from digit_study.config.space import parse_space
from digit_study.config.study_config import StudyConfig
from digit_study.support.rules import flatten

PACKAGE = ROOT / "src" / "digit_study"
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "CHANGELOG.md",
    ROOT / "mlruns" / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
]
#: Words of the README at most: it is read in two minutes.
README_WORDS = 900
#: Numbers of the README at most.
README_NUMBERS = 70

FENCE = re.compile(r"^\s*```(\w*)\s*$")
NOT_RUN = re.compile(r"^<!-- not run: \S.* -->$")
LINK = re.compile(r"\]\(([^)\s]+)\)")
CODE_SPAN = re.compile(r"`([^`\n]+)`")
#: How an inline command begins.
PROGRAMS = ("python ", "make ", "pip install ", "mlflow ")
#: Folders whose files are named in text.
FOLDERS = ("src/", "sweeps/", "conf/", "tests/", "tools/", "docs/")
#: What a person replaces by the id of a run.
RUN_ID = "<run_id>"


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    page: Path
    language: str
    lines: list[str]
    #: Whether a comment above says why it is not run.
    is_excused: bool


@dataclass(frozen=True)
class Shown:
    """A command that a page shows."""

    page: str
    text: str

    @property
    def words(self) -> list[str]:
        return shlex.split(self.text, comments=True)


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def blocks_of(page: Path) -> list[Block]:
    blocks: list[Block] = []
    language: str | None = None
    lines: list[str] = []
    above = ""
    for line in page.read_text().splitlines():
        fence = FENCE.match(line)
        if fence and language is None:
            language = fence[1]
            lines = []
        elif fence:
            blocks.append(Block(page, str(language), lines, bool(NOT_RUN.match(above))))
            language = None
            above = ""
        elif language is not None:
            lines.append(line)
        elif line.strip():
            above = line.strip()
    return blocks


def commands_of(block: Block) -> Iterator[Shown]:
    """Yield the commands of a block of shell; a backslash continues a line."""
    lines = block.lines
    if block.language == "console":
        lines = [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
    for line in "\n".join(lines).replace("\\\n", " ").splitlines():
        if shlex.split(line, comments=True):
            yield Shown(name_of(block.page), line.strip())


def prose_of(page: Path) -> str:
    """Return a page without its fenced blocks and comments."""
    kept: list[str] = []
    is_inside = False
    for line in page.read_text().splitlines():
        if FENCE.match(line):
            is_inside = not is_inside
        elif not is_inside:
            kept.append(line)
    return re.sub(r"<!--.*?-->", "", "\n".join(kept), flags=re.DOTALL)


def shown_commands() -> list[Shown]:
    """List the commands that are not excused, those in the text too."""
    found: list[Shown] = []
    for page in PAGES:
        for block in blocks_of(page):
            if block.language in ("sh", "console") and not block.is_excused:
                found += commands_of(block)
        for span in CODE_SPAN.findall(prose_of(page)):
            if span.startswith(PROGRAMS):
                found.append(Shown(name_of(page), span))
    return list(dict.fromkeys(found))


COMMANDS = shown_commands()


# ------------------------------------------------------------------------------------- parsed


def check_overrides(root: str, schema: type, words: Sequence[str]) -> None:
    """Compose and check what a command of Hydra's is asked for, without training."""
    compose.register(root, schema)
    typed = [word.replace(RUN_ID, f"{number:032x}") for number, word in enumerate(words)]
    parsed = command_line.parse_arguments(typed)
    jobs = [list(parsed.overrides)]
    if parsed.multirun:
        jobs = multirun_grid.expand(parsed.overrides)
    for job in jobs:
        compose.compose_config(job, root).validate()


def check_run(words: Sequence[str]) -> None:
    check_overrides("config", Config, words)


def check_study(words: Sequence[str]) -> None:
    plain = [word.replace("--plan", "search.plan=true") for word in words]
    check_overrides("study", StudyConfig, plain)
    study = compose.compose_config(command_line.parse_arguments(plain).overrides, "study")
    parse_space(study.search.space, study.run)


def check_promote(words: Sequence[str]) -> None:
    plain = [word.replace("--dry-run", "promote.dry_run=true") for word in words]
    check_overrides("promote", PromoteConfig, plain)


def check_compare(words: Sequence[str]) -> None:
    check_overrides("compare", CompareConfig, words)


def check_tests(words: Sequence[str]) -> None:
    """Check that a test file exists, and that it holds what ``-k`` selects."""
    assert words[0] == "-m" and words[1] == "pytest"
    (path,) = [ROOT / word for word in words if word.startswith("tests/")]
    assert path.is_file()
    if "-k" in words:
        assert words[words.index("-k") + 1] in path.read_text()


SCRIPTS: dict[str, Callable[[Sequence[str]], None]] = {
    "src/run.py": check_run,
    "sweeps/optuna_search.py": check_study,
    "sweeps/confirm.py": check_study,
    "sweeps/report.py": check_study,
    "sweeps/frontier.py": check_study,
    "sweeps/promote.py": check_promote,
    "sweeps/compare.py": check_compare,
}
#: Parsed by argparse in their own process, see below.
OWN_PARSERS = ("src/predict.py", "src/draw.py")


def check_python(words: Sequence[str]) -> None:
    script = words[0]
    if script == "-m":
        check_tests(words)
        return
    assert (ROOT / script).is_file()
    if script in SCRIPTS:
        SCRIPTS[script](words[1:])
    elif script not in OWN_PARSERS:
        assert script.startswith(("tests/benchmarks/", "tools/")), "no test knows this command"


def check_make(words: Sequence[str]) -> None:
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    for word in words:
        assert word in targets or re.match(r"(ARGS|PYTHON)=", word)


def check_pip(words: Sequence[str]) -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    assert words[0] == "install"
    if words[1] == "-r":
        assert (ROOT / words[2]).is_file()
        return
    if words[1] != "-e":
        package = words[1].partition("[")[0]
        assert package in extras, f"{package} is no extra of the project"
        return
    extra = re.fullmatch(r"\.\[(\w+)\]", words[2])
    assert extra and extra[1] in extras


def check_mlflow(words: Sequence[str]) -> None:
    assert list(words) == ["ui"], "only `mlflow ui` is known to be shown"


def check_source(words: Sequence[str]) -> None:
    assert list(words) == [".venv/bin/activate"]


CHECKS: dict[str, Callable[[Sequence[str]], None]] = {
    "python": check_python,
    ".venv/bin/python": check_python,
    "make": check_make,
    "pip": check_pip,
    "mlflow": check_mlflow,
    "source": check_source,
}


def test_there_are_commands_to_check() -> None:
    assert len(COMMANDS) > 40


@pytest.mark.slow
@pytest.mark.parametrize("shown", COMMANDS, ids=[f"{c.page}: {c.text}" for c in COMMANDS])
def test_a_command_that_is_shown_can_be_given(shown: Shown) -> None:
    program, *words = shown.words
    assert program in CHECKS, "test it here, or say above its block why not: <!-- not run: … -->"
    CHECKS[program](words)


@pytest.mark.slow
@pytest.mark.parametrize("script", OWN_PARSERS)
def test_options_of_the_other_commands_are_known(script: str, project: Project) -> None:
    """They are refused for what is missing here, a picture or a champion, and not for an option."""
    lines = [shown.words for shown in COMMANDS if script in shown.words]
    assert lines
    for line in lines:
        words = line[line.index(script) + 1 :]
        done = project.run(*words, script=script, preloaded=LIGHT)
        assert done.code == 1, done.err
        assert "a setting must be" not in done.err


# ------------------------------------------------------------------------------------- run


#: Little to train.
SMALL = (
    "data=mnist_sample",
    "data.limit=300",
    "model=tiny",
    "training.epochs=1",
    "training.threads=1",
)
#: Commands as they are shown, in the order of the documentation, and what makes them small.
JOURNEY = [
    ("python src/run.py -m model.filters=16,32,64", SMALL),
    ("python sweeps/optuna_search.py --plan", SMALL),
    (
        "python sweeps/optuna_search.py",
        (*SMALL, "search/space=small", "search.trials=3", "search.workers=2"),
    ),
    ("python sweeps/confirm.py study=default", ("confirm.top=2", "confirm.seeds=2")),
    ("python sweeps/report.py study=default", ()),
    ("python sweeps/promote.py study=default --dry-run", ()),
    ("python sweeps/promote.py study=default", ("promote.floor=0.05",)),
    ("python sweeps/promote.py history=true", ()),
    ("python src/predict.py photo.jpg scans/", ("abstain=false",)),
    ("python src/predict.py photo.jpg --json", ("abstain=false",)),
    ("python sweeps/compare.py a=<run_id> b=<run_id>", ()),
    ("python src/run.py reproduce=<run_id>", ()),
]
#: What the commands leave, of what the documentation names.
LEFT = (
    "mlflow.db",
    "mlruns/studies/default.journal",
    "mlruns/studies/default.html",
    "mlruns/studies/default.best.txt",
)


def test_the_commands_that_are_run_are_shown() -> None:
    shown = {command.text.partition("#")[0].strip() for command in COMMANDS}
    assert [text for text, _ in JOURNEY if text not in shown] == []


@pytest.fixture
def clone(project: Project, tmp_path: Path) -> Project:
    """A copy of the project with its own default store, and pictures to predict."""
    from PIL import Image

    copy_project(tmp_path)
    images, _ = sample()
    (tmp_path / "scans").mkdir()
    for path, image in (("photo.jpg", images[0]), ("scans/three.png", images[1500])):
        Image.fromarray(255 - image).resize((280, 280)).save(tmp_path / path)
    skipped = ("PYTHONDONTWRITEBYTECODE", "MLFLOW_TRACKING_URI")
    environment = {name: value for name, value in os.environ.items() if name not in skipped}
    return Project(tmp_path, environment, shells=project.shells)


def finished_runs(store: Path) -> list[str]:
    """Return the ids of two finished runs without children."""
    import mlflow

    from digit_study.tracking.queries import HAS_RESULT

    client = mlflow.MlflowClient(f"sqlite:///{store}")
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    # a pruned trial is FINISHED too
    runs = client.search_runs(experiments, HAS_RESULT)
    return [run.info.run_id for run in runs if "model.filters" in run.data.params][:2]


@pytest.mark.slow
def test_the_commands_of_the_documentation_work_one_after_the_other(clone: Project) -> None:
    for text, more in JOURNEY:
        script, *words = shlex.split(text)[1:]
        if RUN_ID in text:
            run_ids = finished_runs(clone.root / "mlflow.db")
            words = [
                word.replace(RUN_ID, run_id) for word, run_id in zip(words, run_ids, strict=False)
            ]
        done = clone.run(*words, *more, script=script)
        assert done.code == 0, f"{text}\n{done.out}\n{done.err}"
        assert "Traceback" not in done.err
        if "--json" in words:
            assert json.loads(done.out)[0]["file"] == "photo.jpg"
    assert [path for path in LEFT if not (clone.root / path).exists()] == []


# ------------------------------------------------------------------------------------- links


def slug(heading: str) -> str:
    """Return the anchor that GitHub gives a heading."""
    plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).strip().lower()
    return re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")


def anchors_of(page: Path) -> set[str]:
    return {slug(found) for found in re.findall(r"^#+ (.+)$", prose_of(page), flags=re.MULTILINE)}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_and_pictures_resolve(page: Path) -> None:
    dead: list[str] = []
    for link in LINK.findall(prose_of(page)):
        if link.startswith(("http://", "https://")):
            continue
        path, _, anchor = link.partition("#")
        target = page
        if path:
            target = page.parent / path
        if not target.exists() or (anchor and anchor not in anchors_of(target)):
            dead.append(link)
    assert dead == []


def test_every_page_and_every_picture_is_linked() -> None:
    linked = {
        (page.parent / link.partition("#")[0]).resolve()
        for page in PAGES
        for link in LINK.findall(prose_of(page))
    }
    files = [*(ROOT / "docs").glob("*.md"), *(ROOT / "docs" / "images").iterdir()]
    assert [path.name for path in files if path.resolve() not in linked] == []


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_files_that_are_named_exist(page: Path) -> None:
    if page.name == "CHANGELOG.md":
        pytest.skip("it also names what is gone")
    named = [span for span in CODE_SPAN.findall(prose_of(page)) if span.startswith(FOLDERS)]
    paths = [span for span in named if not set(span) & set("<* =")]
    assert [path for path in paths if not (ROOT / path).exists()] == []


# ------------------------------------------------------------------------------------- tables


def rows_of(page: Path, heading: str) -> list[list[str]]:
    """Return the cells of the table whose first column has a heading."""
    lines = prose_of(page).splitlines()
    first = [number for number, line in enumerate(lines) if line.startswith(f"| {heading} |")][0]
    rows: list[list[str]] = []
    for line in lines[first + 2 :]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split(" | ")])
    return rows


def project_path(name: str) -> Path | None:
    """Return the file or folder of a name that begins at the package or at the project."""
    for folder in (PACKAGE, ROOT):
        if (folder / name).exists():
            return folder / name
    return None


@pytest.mark.parametrize("page", ["docs/extending.md", "CONTRIBUTING.md"])
def test_what_the_table_of_extensions_names_is_there(page: str) -> None:
    for what, where in rows_of(ROOT / page, "to add"):
        names = CODE_SPAN.findall(where)
        paths = [name for name in names if project_path(name)]
        assert paths, what
        sources = [path for path in map(project_path, paths) if path and path.is_file()]
        text = "\n".join(path.read_text() for path in sources)
        unknown = [name for name in names if name not in paths and name not in text]
        assert [name for name in unknown if not name.startswith("make ")] == [], what


def test_contributing_names_the_packages_in_their_order() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    layers = settings["tool"]["importlinter"]["contracts"][0]["layers"]
    named = [row[0].strip("`") for row in rows_of(ROOT / "CONTRIBUTING.md", "package")]
    assert named[1:] == layers


def test_the_files_of_the_way_of_a_trial_exist() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    files = re.findall(r"^ +participant \w+ as ([\w/.]+)", text, flags=re.MULTILINE)
    assert len(files) == 8
    assert [file for file in files if project_path(file) is None] == []


def known_keys() -> set[str]:
    """Return the keys of all configs, and those that have another name by now."""
    keys = set(RENAMED)
    for root, schema in (("config", Config), ("study", StudyConfig), ("promote", PromoteConfig)):
        compose.register(root, schema)
        keys |= set(flatten(compose.compose_config([], root)))
    return keys


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_keys_that_are_named_exist(page: Path) -> None:
    if page.name == "CHANGELOG.md":
        pytest.skip("it also names what is gone")
    keys = known_keys()
    groups = "|".join(sorted({key.partition(".")[0] for key in keys if "." in key}))
    spans = re.findall(rf"`((?:{groups})\.[a-z_.]+)(?:=[^`]*)?`", prose_of(page))
    named = [span for span in spans if not span.endswith(".py")]
    unknown = [name for name in named if not any(f"{key}.".startswith(f"{name}.") for key in keys)]
    assert unknown == []


# ------------------------------------------------------------------------------------- README


def test_the_readme_is_read_in_two_minutes() -> None:
    text = (ROOT / "README.md").read_text()
    assert len(text.split()) <= README_WORDS
    assert len(re.findall(r"\d[\d.,]*", text)) <= README_NUMBERS
