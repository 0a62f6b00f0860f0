"""Private names of MLflow that are used, for which 3.17 has no public ones; tests fail should they move."""

from collections.abc import Callable

from mlflow.store.db.utils import _initialize_tables
from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor
from sqlalchemy import create_engine


def create_tables(uri: str) -> None:
    """Create MLflow's tables in a database and leave no connection open, as MLflow itself does."""
    engine = create_engine(uri)
    _initialize_tables(engine)  # type: ignore[no-untyped-call]
    engine.dispose()


class SystemMetrics(SystemMetricsMonitor):
    """MLflow's monitor of processor, memory, disk, network and GPU, which records through the spool.

    MLflow's own loop asks the store after every sample whether the run goes on, uploads past the
    spool, and ends at the first fault of the store. This loop does neither.
    """

    def __init__(
        self, run_id: str, record: Callable[[dict[str, float], int], None], interval_s: float
    ) -> None:
        """Prepare; `start` begins, and `finish` ends it.

        Args:
            run_id: Id of the run.
            record: Is called with metrics by name, and with the number of the sample as step.
            interval_s: Seconds between two samples, unless MLflow's environment variable says.
        """
        super().__init__(run_id, sampling_interval=interval_s, tracking_uri="unused")  # type: ignore[no-untyped-call]
        self._record = record

    def monitor(self) -> None:
        """Sample until `finish` is called."""
        while not self._shutdown_event.wait(self.sampling_interval):
            self.collect_metrics()  # type: ignore[no-untyped-call]
            self.publish_metrics(self.aggregate_metrics())  # type: ignore[no-untyped-call]

    def publish_metrics(self, metrics: dict[str, float]) -> None:
        """Record a sample."""
        named = {f"{self._metrics_prefix}{name}": value for name, value in metrics.items()}
        self._record(named, self._logging_step)
        self._logging_step += 1
        for monitor in self.monitors:
            monitor.clear_metrics()  # type: ignore[no-untyped-call]
