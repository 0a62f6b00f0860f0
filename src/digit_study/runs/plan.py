"""From a command line to checked jobs, before TensorFlow is imported and before anything is written."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec

from hydra._internal.utils import get_args_parser

from digit_study.config import compose as composition
from digit_study.config import machine as hardware
from digit_study.config.resolve import resolve_config
from digit_study.config.run import Config, validate
from digit_study.terminal import console
from digit_study.terminal.errors import StudyError
from digit_study.terminal.signals import Interrupted, interruptible
from digit_study.tracking.stores import check_store, require_run, tracking_uri


@dataclass(frozen=True)
class Job:
    """One run of a command line: what a person typed for it, what that means, and the name of its data."""

    overrides: list[str]
    config: Config
    dataset: str


@dataclass(frozen=True)
class Plan:
    """Everything a command line asks for, found sound.

    Attributes:
        typed: the overrides as typed.
        jobs: in Hydra's order, every config resolved.
        multirun: whether -m was given.
        parallel: how many jobs run at a time.
    """

    typed: list[str]
    jobs: list[Job]
    multirun: bool
    parallel: int

    def settled(self) -> list[str]:
        """Overrides that hand Hydra's jobs what was resolved here once, so that all see the same."""
        configs = [job.config for job in self.jobs]
        chosen = []
        if len({config.training.threads for config in configs}) == 1:
            chosen.append(f"training.threads={configs[0].training.threads}")
        if len({config.data for config in configs}) == 1:
            found = configs[0].data
            chosen += [
                f"data.sha256='{found.sha256}'",
                *([] if found.path else [f"data.source={found.source}"]),
            ]
        return chosen


@contextmanager
def readable_errors() -> Iterator[None]:
    """Print what a person can mend as one message and exit with 1; exit with 128 + n after signal n."""
    try:
        with interruptible():
            yield
    except StudyError as error:
        console.complain(str(error))
        raise SystemExit(1) from None
    except Exception as error:
        if (told := _outside_fault(error)) is None:
            raise
        console.complain(told)
        raise SystemExit(1) from None
    except Interrupted as interrupted:
        console.complain(f"stopped by {interrupted}: what was running is ended as KILLED, what was measured is kept")
        raise SystemExit(interrupted.exit_code) from None


#: What the place that is written to, not the program, is to blame for.
UNWRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT)


def _outside_fault(error: Exception) -> str | None:
    """What to say of a disk or a tracking store that failed under a command; None of a fault of this program's."""
    if isinstance(error, OSError) and error.errno in UNWRITABLE:
        return f"results must be written to a place that takes them, got '{error.filename}': {error.strerror}"
    mlflow = sys.modules.get("mlflow.exceptions")  # it takes a second to import, and may not be there yet
    if mlflow is None or not isinstance(error, mlflow.MlflowException):
        return None
    said = str(error).strip().split("\n")[0][:300]
    return (
        f"the tracking store must answer, but it said: {said}; make it answer, then run the same command again. "
        "What was measured and not sent is kept in mlruns/.outbox"
    )


def answered(name: str, schema: type, arguments: Sequence[str], answer: Callable[[], None]) -> bool:
    """Register the root config ``name``, and let Hydra ``answer`` where nothing else is asked for than to be told."""
    composition.register(name, schema)
    asked = asks_for_information(arguments)
    if asked:
        answer()
    return asked


def asks_for_information(arguments: Sequence[str]) -> bool:
    """Whether Hydra only has to answer (--help, --cfg job, --info, ...) and nothing is to run."""
    args = get_args_parser().parse_args(list(arguments))
    return bool(args.help or args.hydra_help or args.cfg or args.info or args.shell_completion)


def plan(arguments: Sequence[str]) -> Plan:
    """Compose and check every job of a command line.

    Raises:
        StudyError: anything that can be known to be wrong before TensorFlow is there.
    """
    args = get_args_parser().parse_args(list(arguments))
    composition.register()
    texts = composition.expand(args.overrides) if args.multirun else [list(args.overrides)]
    configs = [composition.compose_config(text) for text in texts]
    for config in configs:
        validate(config)
    for uri in {tracking_uri(config.tracking.uri) for config in configs}:
        check_store(uri)
    parallel = _parallel(args.overrides, len(texts)) if args.multirun else 1
    resolved = [resolve_config(config, parallel) for config in configs]
    for warning in sorted({str(source.warning) for _, source in resolved if source.warning}):
        console.warn(warning)
    jobs = [Job(text, config, source.name) for text, (config, source) in zip(texts, resolved, strict=True)]
    return Plan(list(args.overrides), jobs, bool(args.multirun), parallel)


def _parallel(overrides: Sequence[str], jobs: int) -> int:
    chosen = dict(text.split("=", 1) for text in overrides if "=" in text)
    if chosen.get("hydra/launcher", "basic") != "joblib":
        return 1
    if find_spec("hydra_plugins.hydra_joblib_launcher") is None:
        raise StudyError(
            "hydra/launcher=joblib needs hydra-joblib-launcher, which is not installed: pip install -e '.[joblib]'"
        )
    wanted = int(chosen.get("hydra.launcher.n_jobs", -1))
    return max(1, min(jobs, hardware.cores() if wanted < 0 else wanted))


#: Keys that may stand beside ``reproduce``: where the result goes, and where the digits lie now.
BESIDE_REPRODUCE = ("tracking.uri", "tracking.experiment", "tracking.run_name", "data.path")


def asked_reproduction(arguments: Sequence[str]) -> Config:
    """Compose a command line with ``reproduce=<run_id>`` in it.

    Raises:
        StudyError: it asks for more than that, or the store holds no such run.
    """
    args = get_args_parser().parse_args(list(arguments))
    if args.multirun:
        raise StudyError("`reproduce` takes one run, got -m: drop it")
    composition.register()
    config: Config = composition.compose_config(args.overrides)
    allowed = ("reproduce", *BESIDE_REPRODUCE)
    extra = [text for text in args.overrides if text.lstrip("+").partition("=")[0] not in allowed]
    if extra:
        raise StudyError(
            f"`reproduce` trains a run as it was, got {' '.join(extra)!r} beside it: drop that, only "
            f"{', '.join(BESIDE_REPRODUCE)} may be given"
        )
    uri = tracking_uri(config.tracking.uri)
    check_store(uri)
    require_run(uri, str(config.reproduce), "reproduce")
    return config


def run_hydra(task: Callable[[], None], extra: Sequence[str]) -> None:
    """Let Hydra compose and launch ``task`` from the command line, with ``extra`` overrides behind what was typed.

    Jobs, in whatever process, read from the environment which overrides nobody typed, and leave them out of names.
    """
    typed = list(sys.argv)
    os.environ["DIGIT_STUDY_SETTLED"] = "\n".join(extra)
    # else Hydra prints a traceback of its own and exits, and the message for a person is lost in it
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        sys.argv = [*typed, *extra]
        task()
    finally:
        sys.argv = typed
