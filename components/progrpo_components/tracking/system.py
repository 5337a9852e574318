"""Use of CPU, memory, network and GPUs, by the names that MLflow shows under "System metrics".

Measured by mlflow's own monitors. CPU and memory are the whole machine's, as psutil counts them also in a container.
"""

from __future__ import annotations

import logging
import os
import time
from typing import Any

logger = logging.getLogger(__name__)

INTERVAL_S = 10.0


class SystemMetrics:
    """Samples at most every ``MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL`` seconds, ten by default.

    ``MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING=false`` switches it off.
    """

    def __init__(self) -> None:
        on = os.environ.get("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", "true").lower() in ("true", "1")
        self._interval_s = float(os.environ.get("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL") or INTERVAL_S)
        self._monitors = _monitors() if on else []
        self._next = time.monotonic() + self._interval_s

    def sample_if_due(self) -> dict[str, float]:
        """Return ``system/...`` values, or nothing if it is not yet time."""
        if time.monotonic() < self._next:
            return {}
        self._next = time.monotonic() + self._interval_s
        values: dict[str, float] = {}
        for monitor in self._monitors:
            try:
                monitor.collect_metrics()
                values |= {f"system/{key}": float(value) for key, value in monitor.aggregate_metrics().items()}
                monitor.clear_metrics()
            except Exception as error:  # a GPU that fell off the bus is no reason to stop sending
                logger.debug("no system metrics: %s", error)
        return values


def _monitors() -> list[Any]:
    from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
    from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
    from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor

    monitors: list[Any] = []
    for kind in (CPUMonitor, NetworkMonitor, GPUMonitor):
        try:
            monitors.append(kind())
        except Exception as error:  # no psutil, no nvidia-ml-py, no GPU
            logger.debug("no %s: %s", kind.__name__, error)
    return monitors
