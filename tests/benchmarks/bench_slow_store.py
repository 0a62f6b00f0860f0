"""What a slow tracking server costs a sweep: whole commands, with and without seconds added to each of its answers.

    python tests/benchmarks/bench_slow_store.py [--delay 2] [--rounds 3] [--trials 12] [--epochs 25] [--engine local]

Real sweeps of two workers on the sample over a real MLflow server, alternating; medians are printed. With
``--engine ray`` Ray is started on this machine.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve()
sys.path[:0] = [str(HERE.parents[1]), str(HERE.parents[2] / "src")]

from conftest import Project, copy_project  # noqa: E402
from failing_services import Server, SlowConnection  # noqa: E402
from typed_study import trials_of  # noqa: E402

from digit_study.tracking._mlflow import create_tables  # noqa: E402

SETTINGS = (
    "data=mnist_sample",
    "training=plain",
    "search.workers=2",
    "search.sampler=random",
    "search.pruner=none",
)


def sweep(folder: Path, delay: float, words: list[str]) -> tuple[float, float]:
    """Seconds of a whole command, and of these from the first trial's start to the last one's end."""
    copy_project(folder)
    create_tables(f"sqlite:///{folder / 'tables.db'}", (folder / "mlruns" / "0").as_uri())
    project = Project(folder, dict(os.environ))
    server = Server(project, folder / "tables.db", folder)
    server.ensure()
    try:
        environment = {**os.environ, "MLFLOW_TRACKING_URI": SlowConnection(server.port, delay).uri}
        command = [sys.executable, "sweeps/optuna_search.py", "study=slow", *SETTINGS, *words]
        began = time.monotonic()
        subprocess.run(command, cwd=folder, env=environment, check=True, stdout=subprocess.DEVNULL)
        seconds = time.monotonic() - began
    finally:
        server.kill()
        for shell in project.shells.values():
            shell.communicate()  # its input ends, and so does it
    times = [(one.datetime_start, one.datetime_complete) for one in trials_of(folder, "slow")]
    return seconds, (
        max(end for _, end in times) - min(start for start, _ in times)
    ).total_seconds()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--delay", type=float, default=2.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--trials", type=int, default=12)
    parser.add_argument("--epochs", type=int, default=25)
    parser.add_argument("--engine", choices=["local", "ray"], default="local")
    given = parser.parse_args()
    words = [f"search.trials={given.trials}", f"training.epochs={given.epochs}"]
    words += ["search.engine=ray", "search.address=local"] if given.engine == "ray" else []
    found: dict[float, list[tuple[float, float]]] = {0.0: [], given.delay: []}
    for _ in range(given.rounds):
        for delay, measured in found.items():
            with tempfile.TemporaryDirectory() as folder:
                measured.append(sweep(Path(folder), delay, words))
            print(
                f"{delay:g} s an answer: {measured[-1][0]:.1f} s in all, trials {measured[-1][1]:.1f} s",
                flush=True,
            )
    for part, name in enumerate(("the whole command", "its trials")):
        fast, slow = (
            statistics.median(one[part] for one in measured) for measured in found.values()
        )
        print(
            f"{name}: {fast:.1f} s and {slow:.1f} s, {slow - fast:+.1f} s, ratio {slow / fast:.3f}"
        )


if __name__ == "__main__":
    main()
