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
        self._next_turn: dict[str, float] = {}

    def acquire(self, task: Task[..., Any]) -> float:
        """Count a start of this task now, or return the seconds until it may ask again.

        Those that wait get turns one after the other, so that each asks once or twice, not all of
        them whenever a start becomes free.
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
        turn = max(free_at, self._next_turn.get(task.name, 0))
        self._next_turn[task.name] = turn + seconds / count
        return turn - now
