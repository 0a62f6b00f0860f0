"""What a trial costs a slot besides its training steps: before the first, for validation, and after the last.

    python tests/benchmarks/bench_trial.py [--data mnist.npz] [--filters 8 16 32] [--rounds 3]

Real trials of 20,000 images, 5,000 to validate on, three epochs, one thread each, as a sweep runs them, with all that
they leave in MLflow; the sizes alternate, medians are printed. ``before`` is from the free slot to the first step,
``after`` from the last step to the free slot; both hold nothing of the steps themselves. ``reading`` is the part of
``after`` that reads the validation images for the last time, exactly, in float32. The second trial of a slot is what
counts: the first waits for TensorFlow.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from dataclasses import replace
from multiprocessing.util import Finalize
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve()
sys.path.insert(0, str(HERE.parents[2] / "src"))

EPOCHS = 3


def measure(engine: Any, config: Any, run_id: str) -> dict[str, float]:
    """Seconds of one trial by part."""
    from digit_study.trial import events

    submitted = time.perf_counter()
    engine.submit(0, config, run_id)
    steps: list[tuple[float, int]] = []
    records: list[Any] = []
    read = 0.0
    while True:
        for event in engine.events(0.05):
            now = time.perf_counter()
            if isinstance(event, events.StepsDone):
                steps.append((now, event.step))
            elif isinstance(event, events.EpochDone):
                records.append(event.record)
                read = now
                engine.answer(0, events.Decision.CONTINUE)
            elif isinstance(event, events.Finished):
                total, trained = now - submitted, sum(one["step_seconds"] for one in records)
                size, in_all = steps[0][1], max(step for _, step in steps)
                first = steps[0][0] - submitted - records[0]["step_seconds"] * size / in_all
                validation = (
                    sum(one["epoch_seconds"] for one in records) - trained - first_trace(records)
                )
                after, reading = now - steps[-1][0], read - steps[-1][0]
                shares = {"validation": validation / trained, "steps": trained / total}
                return {"before": first, "after": after, "reading": reading, **shares}
            else:
                raise SystemExit(str(event))


def first_trace(records: list[Any]) -> float:
    """Seconds in the first epoch that were tracing: what its steps took longer than the second's."""
    images = records[1]["images_per_second"] * (records[1]["step_seconds"])
    return max(0.0, images / records[0]["images_per_second"] - records[0]["step_seconds"])


def main() -> None:
    """Print a row a size."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", help="an mnist.npz; else it is downloaded")
    parser.add_argument("--filters", type=int, nargs="*", default=[8, 16, 32])
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    from digit_study.config import compose
    from digit_study.config.run_config import resolve_config
    from digit_study.support.workspace import Workspace
    from digit_study.tracking.session import session
    from digit_study.trial.local.pool import LocalEngine
    from digit_study.trial.protocol import EngineContext

    compose.register()
    folder = Path(tempfile.mkdtemp())
    # after multiprocessing, which has temporary files in there
    Finalize(None, shutil.rmtree, args=(folder, True), exitpriority=-300)
    uri = os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{folder}/mlflow.db"
    words = [
        "data.limit=20000",
        "data.validation=5000",
        "training=plain",
        f"training.epochs={EPOCHS}",
        "training.threads=1",
    ]
    words += ["model.batch_norm=false", "model.dense_units=0", "training.schedule=constant"]
    words += [f"data.path='{Path(given.data).resolve()}'"] if given.data else []
    configs = {
        width: resolve_config(compose.compose_config([*words, f"model.filters={width}"]))[0]
        for width in given.filters
    }
    workspace = Workspace(Path(folder))
    found: dict[tuple[int, str], list[float]] = defaultdict(list)
    first = next(iter(configs.values()))
    with session(uri, workspace, outage_timeout=1.0) as tracker:
        context = EngineContext(workspace=workspace, tracking_uri=uri, data=first.data)
        engine = LocalEngine(context)
        # as in a sweep, whose parent has the figures of the digits
        parent = tracker.create_run(first, "mnist", "parent")
        for number in range(given.rounds + 1):
            for width, config in configs.items():
                tracking = replace(config.tracking, parent_run_id=parent)
                child = replace(config, tracking=tracking)
                run_id = tracker.create_run(child, "mnist", f"{width}")
                for name, value in measure(engine, child, run_id).items():
                    if number:
                        found[width, name].append(value)
        engine.stop()
    print("filters  before, s  after, s  fixed, s  reading, s  validation  steps of all")
    for width in configs:
        before, after, reading, validation, steps = (
            statistics.median(found[width, name])
            for name in ("before", "after", "reading", "validation", "steps")
        )
        seconds = f"{before:11.2f}{after:10.2f}{before + after:10.2f}{reading:12.2f}"
        print(f"{width:7}{seconds}{validation:12.1%}{steps:14.1%}")


if __name__ == "__main__":
    main()
