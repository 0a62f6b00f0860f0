"""Everything slow that a trial needs, made ready once in the server that trials are forked from.

It is imported there. Imports and the digits; no operation of TensorFlow, whose threads no fork
would have.
"""

import gc
import importlib
import json
import os
import signal
import threading
from contextlib import suppress
from pathlib import Path

from digit_study.support.signals import collect_rarely, native_stderr
from digit_study.tracking.database import quiet_mlflow
from digit_study.trial.local.server import PRELOAD_FILE

#: Modules that a trial imports and that take long.
SLOW_MODULES = (
    "mlflow.keras",
    "mlflow.pyfunc",
    "scipy.stats",
    "seaborn",
    "sklearn.metrics",
    "sklearn.model_selection",
    "digit_study.tracking.session",
    "digit_study.trial.run_trial",
)
#: Set when the imports have ended.
_imported = threading.Event()


def _end_with_parent(parent: int = os.getppid()) -> None:
    """End this process if its parent dies during the imports; later the server does so itself."""
    while not _imported.wait(0.3):
        if os.getppid() != parent:
            os._exit(1)


def _load_digits() -> None:
    """Load the digits that most trials want; the trials say what is wrong with them."""
    from digit_study.data.digits import load_digits
    from digit_study.data.sources import DataConfig
    from digit_study.support.errors import StudyError

    with suppress(KeyError, OSError, StudyError, ValueError):
        wanted = json.loads(Path(os.environ["TMPDIR"], PRELOAD_FILE).read_text())
        folder = wanted["digits_folder"]
        load_digits(DataConfig(**wanted["data"]), None if folder is None else Path(folder))


collect_rarely()
_guard = threading.Thread(target=_end_with_parent)
_guard.start()
quiet_mlflow()
try:
    with native_stderr():
        for name in SLOW_MODULES:
            importlib.import_module(name)
    _load_digits()
    gc.freeze()  # every trial shares these pages
finally:  # no thread may be there when the first trial is forked
    _imported.set()
    _guard.join()
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # and drops one that waits
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT, signal.SIGHUP})
