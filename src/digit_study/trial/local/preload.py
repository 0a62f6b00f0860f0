"""Everything slow that a trial needs, made ready once in the server that trials are forked from.

Imports and the digits; no operation of TensorFlow, whose threads no fork would have.
"""

import gc
import importlib
import json
import os
import signal
import threading
from contextlib import suppress
from importlib.metadata import version

from digit_study.support.signals import collect_rarely, native_stderr
from digit_study.tracking.database import quiet_mlflow

SLOW = (
    "mlflow.keras", "mlflow.pyfunc", "seaborn", "sklearn.metrics", "sklearn.model_selection",
    "statsmodels.stats.proportion", "digit_study.trial.run_trial",
)  # fmt: skip
_imported = threading.Event()


def _end_with_parent(parent: int = os.getppid()) -> None:
    """End this process if its parent is killed during the imports; afterwards the server looks after that itself."""
    while not _imported.wait(0.3):
        if os.getppid() != parent:
            os._exit(1)


def _load_digits() -> None:
    """Load the digits that most trials want, if they are there: what is wrong with them is said by the trials."""
    from digit_study.data.digits import PRELOADED, load_digits
    from digit_study.data.sources import DataConfig
    from digit_study.support.messages import StudyError

    if wanted := os.environ.get(PRELOADED):
        with suppress(StudyError, OSError):
            load_digits(DataConfig(**json.loads(wanted)))


collect_rarely()
_guard = threading.Thread(target=_end_with_parent)
_guard.start()
quiet_mlflow()
try:
    with native_stderr():
        for name in SLOW:
            importlib.import_module(name)
    # MLflow asks which package every module is of when it saves a model: half a second, of which it keeps the answer
    requirements = importlib.import_module("mlflow.utils.requirements_utils")
    requirements.warn_dependency_requirement_mismatches([f"numpy=={version('numpy')}"])
    _load_digits()
    gc.freeze()  # and every trial shares these pages
finally:  # no thread may be there when the first trial is forked
    _imported.set()
    _guard.join()
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # and drops one that waits
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT, signal.SIGHUP})
