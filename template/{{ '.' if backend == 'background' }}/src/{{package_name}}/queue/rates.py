"""Rate limits: at most so many starts of a task in any window of time."""

import time
from collections import deque
from typing import Any

from .task import Task

MARGIN = 0.05  # seconds between the look at the clock and the start of the task


class RateLimits:
    """The latest starts of each task that has a rate limit."""

    def __init__(self) -> None:
        self._starts: dict[str, deque[float]] = {}

    def acquire(self, task: Task[..., Any], waiting: int) -> float:
        """Count a start of this task now, or return the seconds until it may ask again.

        Those that wait get turns one after the other, so that each asks once or twice, not all of
        them whenever a start becomes free.

        Args:
            task: The task.
            waiting: The number of its jobs that wait for their turns already.
        """
        if task.rate_limit is None:
            return 0
        count, seconds = task.rate_limit.count, task.rate_limit.seconds
        now = time.monotonic()
        starts = self._starts.setdefault(task.name, deque(maxlen=count))
        free_at = starts[0] + seconds + MARGIN if len(starts) == count else now
        if free_at <= now:
            starts.append(now)
            return 0
        return free_at - now + waiting * seconds / count
