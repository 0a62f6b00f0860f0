"""What the machine is busy with while a run goes on: MLflow's monitors, through the spool.

MLflow's `SystemMetricsMonitor`, which runs the same monitors, cannot go through the spool: it opens
the store when it is made, asks it after every sample whether the run goes on, uploads by itself,
and ends for good at the first fault of the store.
"""

import threading
from collections.abc import Callable, Mapping
from typing import Protocol

from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor

#: How the names begin of metrics that MLflow shows on its page "System metrics".
PREFIX = "system/"
#: Records metrics by name at a step.
Record = Callable[[Mapping[str, float], int], None]


class Monitor(Protocol):
    """What MLflow's monitors have in common."""

    def collect_metrics(self) -> None:
        """Take a sample."""

    def aggregate_metrics(self) -> dict[str, float]:
        """Return the means of the samples by name."""

    def clear_metrics(self) -> None:
        """Forget the samples."""


class SystemMetrics:
    """Records processor, memory, disk, network and NVIDIA's GPUs, in a thread of its own."""

    def __init__(self, record: Record, interval_s: float) -> None:
        """Begin.

        Args:
            record: Is called with the metrics of a sample, and with its number from 0 as step.
            interval_s: Seconds between two samples.
        """
        self._record = record
        self._interval_s = interval_s
        self._monitors = _monitors()
        # psutil measures the processor from call to call: the first call says 0
        self._sample()
        self._is_stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End; nothing is recorded after this."""
        self._is_stopping.set()
        self._thread.join()

    def _run(self) -> None:
        step = 0
        while not self._is_stopping.wait(self._interval_s):
            try:
                self._record(self._sample(), step)
            except OSError:  # the disk is full: the trial will meet that, and says so
                continue
            step += 1

    def _sample(self) -> dict[str, float]:
        found: dict[str, float] = {}
        for monitor in self._monitors:
            monitor.collect_metrics()
            for name, value in monitor.aggregate_metrics().items():
                found[f"{PREFIX}{name}"] = float(value)
            monitor.clear_metrics()
        return found


def _monitors() -> list[Monitor]:
    """Return MLflow's monitors; the GPUs' is left out without its package, a driver or a GPU."""
    kinds: tuple[Callable[[], Monitor], ...] = (
        CPUMonitor,
        DiskMonitor,
        NetworkMonitor,
        GPUMonitor,
    )
    monitors = []
    for kind in kinds:
        try:
            monitors.append(kind())
        except (ImportError, RuntimeError):
            continue
    return monitors
