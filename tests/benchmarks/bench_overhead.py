"""What search, storage and tracking cost a trial: a study of stub trials that log as real ones do and train nothing.

    python tests/benchmarks/bench_overhead.py [trials] [overrides...]

Prints milliseconds a trial of all, of the first tenth and of the last, by the clock and by the processor, and the ratio
of the two ends. Under 50 ms and a ratio below 1.5 is the aim, on a machine that does nothing else.
"""

from __future__ import annotations

import atexit
import contextlib
import io
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve()
sys.path[:0] = [str(HERE.parents[2] / "src"), str(HERE.parents[1])]

SPACE = "search/space=default"


def main(trials: int, overrides: list[str]) -> None:
    folder = Path(tempfile.mkdtemp())
    # after multiprocessing, which is imported later and has temporary files in there
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{folder}/mlflow.db"
    stamps = search(trials, overrides)
    tenth = max(1, trials // 10)
    for name, column in (("clock", 0), ("processor", 1)):
        first, last = (
            1000 * mean_step(part, column) for part in (stamps[: tenth + 1], stamps[-tenth - 1 :])
        )
        every = 1000 * mean_step(stamps, column)
        told = f"{every:.1f} ms a trial; first {tenth}: {first:.1f}, last {tenth}: {last:.1f}, ratio {last / first:.2f}"
        print(f"{name:9} {told}")


def search(trials: int, overrides: list[str]) -> list[tuple[float, float]]:
    """Run the study; returns the clock and the processor time at the start of every trial."""
    from stub_worker import Stubs, plan

    from digit_study.study import search as study_run
    from digit_study.support.signals import collect_rarely
    from digit_study.trial.local.pool import LocalEngine

    collect_rarely()  # as the commands do
    # pictures and tables are drawn once, not for every trial
    study_run._report = lambda *arguments: None
    stubs = Stubs(os.environ["MLFLOW_TRACKING_URI"])
    stamps: list[tuple[float, float]] = []

    def launch(*arguments: object) -> object:
        stamps.append((time.perf_counter(), time.process_time()))
        return stubs(*arguments)

    words = ("training.epochs=1", f"search.trials={trials}", *overrides)
    with contextlib.redirect_stdout(io.StringIO()):
        study_run.run_study(plan(*words, space=SPACE), lambda context: LocalEngine(context, launch))
    return stamps


def mean_step(stamps: list[tuple[float, float]], column: int) -> float:
    return (stamps[-1][column] - stamps[0][column]) / (len(stamps) - 1)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1000, sys.argv[2:])
