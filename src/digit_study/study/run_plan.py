"""From a command line to checked runs, before TensorFlow is imported and before anything is written."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Any

from digit_study.config import compose
from digit_study.config.engine_config import (
    ENGINE_KEYS,
    EngineConfig,
    common_precision,
    with_defaults,
)
from digit_study.config.run_config import Config, resolve_config
from digit_study.support import machine
from digit_study.support.console import warn
from digit_study.support.messages import StudyError
from digit_study.support.rules import check, choice
from digit_study.tracking.database import check_store, require_run, tracking_uri
from digit_study.trial.protocol import ENGINES, OFFERS, EngineContext

#: Keys that may stand beside ``reproduce``: where the result goes, and where the digits lie now.
BESIDE_REPRODUCE = ("tracking.uri", "tracking.experiment", "tracking.run_name", "data.path")
#: Keys of reproductions, promotions and comparisons that hold the id of a run.
RUN_IDS = ("reproduce", "run_id", "a", "b")


@dataclass(frozen=True)
class Job:
    """One run of a command line: what a person typed for it, what that means, and the name of its data."""

    overrides: list[str]
    config: Config
    dataset: str


@dataclass(frozen=True)
class Plan:
    """Everything a command line asks for, checked."""

    typed: list[str]  # overrides
    jobs: list[Job]  # in Hydra's order, every config resolved
    multirun: bool  # -m was given
    parallel: int  # how many jobs run at a time
    context: EngineContext | None = (
        None  # what an engine may use that has its own slots; None: Hydra launches the jobs
    )

    def resolved_overrides(self) -> list[str]:
        """Overrides that hand Hydra's jobs what was resolved here once, so that all see the same."""
        config, *others = (job.config for job in self.jobs)
        chosen = []
        if all(other.training.threads == config.training.threads for other in others):
            chosen.append(f"training.threads={config.training.threads}")
        if all(other.data == config.data for other in others):
            chosen.append(f"data.sha256='{config.data.sha256}'")
            chosen += [] if config.data.path else [f"data.source={config.data.source}"]
        return chosen


def plan(arguments: Sequence[str]) -> Plan:
    """Compose and check every job of a command line; raises StudyError for all that is known without TensorFlow."""
    args = compose.parse_arguments(arguments)
    compose.register()
    texts = compose.expand(args.overrides) if args.multirun else [list(args.overrides)]
    configs = [compose.compose_config(text) for text in texts]
    for config in configs:
        config.validate()
    for uri in {tracking_uri(config.tracking.uri) for config in configs}:
        check_store(uri)
    parallel, chosen = 1, dict(text.split("=", 1) for text in args.overrides if "=" in text)
    if args.multirun and chosen.get("hydra/launcher") == "joblib":
        if find_spec("hydra_plugins.hydra_joblib_launcher") is None:
            raise StudyError(
                "hydra/launcher=joblib needs hydra-joblib-launcher: pip install -e '.[joblib]'"
            )
        wanted = int(chosen.get("hydra.launcher.n_jobs", -1))
        parallel = max(1, min(len(texts), machine.cores() if wanted < 0 else wanted))
    place = _place(configs, args.multirun)
    configs = [replace(config, resources=place.resources) for config in configs]
    nodes = OFFERS[place.engine](place, tracking_uri(configs[0].tracking.uri))
    precision = common_precision(nodes)
    resolved = [resolve_config(config, parallel, precision) for config in configs]
    for warning in sorted({str(source.warning) for _, source in resolved if source.warning}):
        warn(warning)
    jobs = [
        Job(text, config, source.name)
        for text, (config, source) in zip(texts, resolved, strict=True)
    ]
    if place.engine == "local":
        return Plan(list(args.overrides), jobs, bool(args.multirun), parallel)
    if len({job.config.data.sha256 for job in jobs}) > 1:
        raise StudyError(
            "all runs of -m on a cluster read the same digits, got several: give a command for each"
        )
    data, uri = jobs[0].config.data, tracking_uri(configs[0].tracking.uri)
    context = EngineContext(place.workers, place=place, data=data, uri=uri)
    return Plan(
        list(args.overrides),
        jobs,
        True,
        min(sum(one.capacity for one in nodes), len(jobs)),
        context,
    )


def _place(configs: Sequence[Config], multirun: bool) -> EngineConfig:
    """Where all runs are trained; raises StudyError if that is no engine, not the same for all, or for one run."""
    first, places = configs[0], {str(config.engine_options) for config in configs}
    check(first, {"engine": choice(ENGINES)}, [])
    if len(places) > 1:
        raise StudyError(
            f"{', '.join(ENGINE_KEYS)} are of the whole command, got a sweep over them: give one value"
        )
    if first.engine == "local":
        return first.engine_options
    if not multirun:
        raise StudyError(
            f"`engine`={first.engine} is for the runs of -m, got one run, which is trained here: add -m"
        )
    if len({tracking_uri(config.tracking.uri) for config in configs}) > 1:
        raise StudyError(
            "`tracking.uri` is the same for all runs of -m on a cluster, got several: give one"
        )
    return with_defaults(
        first.engine_options, max(config.training.threads or 1 for config in configs)
    )


def plan_reproduction(arguments: Sequence[str]) -> Config:
    """Compose a command line with ``reproduce=<run_id>``; raises StudyError if it asks for more or is of no run."""
    typed = compose.parse_arguments(arguments).overrides
    allowed, listed = ("reproduce", *BESIDE_REPRODUCE), ", ".join(BESIDE_REPRODUCE)
    if extra := [text for text in typed if text.lstrip("+").partition("=")[0] not in allowed]:
        more = f"got {' '.join(extra)!r} beside it: drop that, only {listed} may be given"
        raise StudyError(f"`reproduce` trains a run as it was, {more}")
    config: Config = plan_task(arguments, "config", Config)
    return config


def plan_task(arguments: Sequence[str], root: str, schema: type) -> Any:
    """Compose and check ``conf/<root>.yaml`` and its store, without MLflow; raises StudyError; --help ends here."""
    compose.answer(arguments, root, schema)
    args = compose.parse_arguments(arguments)
    if args.multirun:
        raise StudyError(
            "-m launches several runs, but this takes one run or does one thing at a time: drop it"
        )
    config = compose.compose_config(args.overrides, root)
    config.validate()
    uri = tracking_uri(config.tracking.uri)
    check_store(uri)
    for key in RUN_IDS:
        if (run_id := getattr(config, key, None)) is not None:
            require_run(uri, run_id, key)
    return config
