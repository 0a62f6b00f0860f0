"""What tracking, figures and saving add to a run: `python tests/benchmarks/bench_tracking.py [rounds]`, idle machine.

Alternates whole tracked runs with bare ones (load, build, fit, evaluate) of the same config in fresh stores, in one
process and after one of each to preloaded up, and compares the medians. One epoch of the tiny network on the sample, so
that what is measured is what is added and not the training.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import sys
import tempfile
import time
from multiprocessing.util import Finalize
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "src"))
TRAINING_S = 60.0


def main(rounds: int) -> None:
    """Measure and print."""
    from digit_study.config import compose as composition
    from digit_study.config.run_config import resolve_config
    from digit_study.support.signals import native_stderr
    from digit_study.support.workspace import Workspace
    from digit_study.tracking import database

    database.quiet_mlflow()
    with native_stderr():
        import digit_study.trial.run_trial  # noqa: F401
        from digit_study.tracking.session import Tracker

    composition.register()
    words = [
        "data=mnist_sample",
        "model=tiny",
        "training=plain",
        "training.epochs=1",
        "tracking.experiment=bench",
    ]
    config, _ = resolve_config(composition.compose_config(words))
    folder = Path(tempfile.mkdtemp())
    # after multiprocessing, which has temporary files in there
    Finalize(None, shutil.rmtree, args=(folder, True), exitpriority=-300)
    workspace = Workspace(folder)
    os.environ["MLFLOW_TRACKING_URI"] = uri = workspace.default_store
    database.create_store(uri, workspace)
    tracker = Tracker(uri, workspace)
    tracked, bare = [], []
    for _ in range(rounds + 1):
        tracked.append(_seconds(lambda: _tracked(config, tracker)))
        bare.append(_seconds(lambda: _bare(config)))
    _print(tracked[1:], bare[1:], first=tracked[0] - bare[0])


def _seconds(walk: object) -> float:
    started = time.perf_counter()
    walk()  # type: ignore[operator]
    return time.perf_counter() - started


class _Quiet:
    """Follows a trial and does nothing."""

    def on_steps(self, epoch: int, step: int, steps: int) -> None:
        """Hear of some steps."""

    def on_epoch(self, epoch: int, record: object) -> object:
        """Let the trial go on."""
        from digit_study.trial.events import Decision

        return Decision.CONTINUE

    def on_result(self, result: object) -> None:
        """Hear of the result."""


def _tracked(config: object, tracker: object) -> None:
    from digit_study.trial.run_trial import run_trial

    run_id = tracker.create_run(config, "mnist_sample")  # type: ignore[attr-defined]
    run_trial(config, run_id, tracker, _Quiet())  # type: ignore[arg-type]


def _bare(config: object) -> None:
    import keras

    from digit_study.data import digits as data
    from digit_study.model import fit as training
    from digit_study.model.networks import build_model
    from digit_study.stats import metrics as evaluation

    digits = data.load_digits(config.data)  # type: ignore[attr-defined]
    recipe = config.training  # type: ignore[attr-defined]
    keras.utils.set_random_seed(recipe.seed)
    network = config.model  # type: ignore[attr-defined]
    final, model = (
        build_model(network),
        build_model(network, recipe.precision, training.FUSED_LAYERS),
    )

    def validate() -> evaluation.Evaluation:
        final.set_weights(model.get_weights())
        read = training.Predictor(final)(digits.validation_images)
        return evaluation.evaluate(digits.validation_labels, read, digits.validation_index)

    training.fit(
        model,
        digits.train_images,
        digits.train_labels,
        recipe,
        validate=lambda: validate().metrics,
        on_epoch=lambda record: None,
    )
    validate()


def _print(tracked: list[float], bare: list[float], first: float) -> None:
    added = statistics.median(one - other for one, other in zip(tracked, bare, strict=True))
    print(f"rounds                       {len(tracked)}")
    print(f"tracked run, median          {statistics.median(tracked):6.2f} s")
    print(f"bare training, median        {statistics.median(bare):6.2f} s")
    print(f"added by tracking            {added:6.2f} s (median of the differences)")
    print(f"of {TRAINING_S:.0f} s of training         {100 * added / TRAINING_S:6.1f} %")
    print(f"first run of a process       {first:6.2f} s (imports and fonts included)")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("rounds", type=int, nargs="?", default=5)
    main(parser.parse_args().rounds)
