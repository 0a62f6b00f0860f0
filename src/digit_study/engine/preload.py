"""Everything slow that a trial needs, imported once by the server that trials are forked from. Runs no operation."""

import os
import signal
import threading

from digit_study.terminal.quiet import native_stderr
from digit_study.tracking.stores import quiet_mlflow

_imported = threading.Event()


def _follow_parent(parent: int = os.getppid()) -> None:
    """End this process if its parent is killed during the imports; afterwards the server looks after that itself."""
    while not _imported.wait(0.3):
        if os.getppid() != parent:
            os._exit(1)


_follower = threading.Thread(target=_follow_parent)
_follower.start()
quiet_mlflow()
try:
    with native_stderr():
        import mlflow.keras
        import seaborn
        import sklearn.metrics
        import sklearn.model_selection
        import statsmodels.stats.proportion

        import digit_study.engine.pipeline
finally:  # no thread may be there when the first trial is forked
    _imported.set()
    _follower.join()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # and drops one that waits
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})

__all__ = ["digit_study", "mlflow", "seaborn", "sklearn", "statsmodels"]
