"""Figures of finished jobs, in this process's memory: of each task, and of each minute."""

from bisect import bisect_left
from collections import Counter
from datetime import UTC, datetime

from .models import JobStatus
from .monitoring import BOUNDS, MINUTES, Histogram, Minute, TaskFigures


class Figures:
    """Counts jobs when they finish.

    Attributes:
        tasks: The figures of each task by its name.
    """

    def __init__(self) -> None:
        self.tasks: dict[str, TaskFigures] = {}
        self._minutes: dict[int, Counter[JobStatus]] = {}

    def count(
        self, task: str, status: JobStatus, due: float, began: datetime | None, ended: datetime
    ) -> None:
        """Count a job that has finished.

        Args:
            task: The name of its task.
            status: Its final status.
            due: When it was due, in seconds since 1970.
            began: When its last attempt began; None if it had none.
            ended: When it finished.
        """
        figures = self.tasks.setdefault(task, TaskFigures())
        figures.finished[status] = figures.finished.get(status, 0) + 1
        if began is not None:
            _add(figures.wait, began.timestamp() - due)
            _add(figures.duration, (ended - began).total_seconds())
        minute = _minute(ended)
        if minute not in self._minutes:
            kept = [each for each in self._minutes.items() if each[0] > minute - MINUTES]
            self._minutes = {**dict(kept), minute: Counter()}
        self._minutes[minute][status] += 1

    def finished(self) -> Counter[JobStatus]:
        """Return how many jobs have ended with each status."""
        total: Counter[JobStatus] = Counter()
        for each in self.tasks.values():
            total.update(each.finished)
        return total

    def minutes(self, now: datetime) -> list[Minute]:
        """Return the last minutes, the newest last."""
        last = _minute(now)
        return [self._describe(each) for each in range(last - MINUTES + 1, last + 1)]

    def _describe(self, minute: int) -> Minute:
        counts = self._minutes.get(minute, Counter())
        return Minute(
            start=datetime.fromtimestamp(minute * 60, UTC),
            complete=counts[JobStatus.COMPLETE],
            failed=counts[JobStatus.FAILED],
        )


def _minute(moment: datetime) -> int:
    return int(moment.timestamp() // 60)


def _add(histogram: Histogram, seconds: float) -> None:
    histogram.counts[bisect_left(BOUNDS, seconds)] += 1
    histogram.sum += max(0.0, seconds)  # the clock may be set back
