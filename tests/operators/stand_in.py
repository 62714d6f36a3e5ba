"""A process that stands in for a part by what it counts: ``python -m tests.operators.stand_in PART PORT``."""

import sys
import time

from streams.core.health import Health, serve
from streams.core.metrics import TABLE, Metrics


def move(metrics: Metrics, part: str) -> None:
    """One second of a part: every row of the table that is its own."""
    for row in TABLE:
        if row.part == part:
            labels = dict.fromkeys(row.labels, "x")
            if row.kind == "counter":
                metrics.add(row.name, **labels)
            elif row.kind == "histogram":
                metrics.observe(row.name, 0.2, **labels)
            elif row.name != "tidemill_reward_drift_alarm":  # which the test raises
                metrics.set(row.name, float(not row.name.endswith(("_alarm", "_tripped"))), **labels)


if __name__ == "__main__":
    counted = Metrics()
    serve(counted, Health(), int(sys.argv[2]))
    while True:
        move(counted, sys.argv[1])
        time.sleep(1)
