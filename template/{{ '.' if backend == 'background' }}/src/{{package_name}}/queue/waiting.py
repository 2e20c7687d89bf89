"""Jobs that wait: for the response to be sent, for their time, or for a free slot."""

import asyncio
import time
from collections import OrderedDict, defaultdict
from contextvars import Context

from .cron import Cron
from .table import Record

LONGEST_HOLD = 1  # seconds until a job starts whose response was not sent, as after an error
CLOCK_CHECK = 60  # seconds between two looks at the clock, which may be set


class Waiting:
    """The jobs that wait, each in one place.

    Attributes:
        news: Set when a job became ready or a slot became free.
        runner: Takes the jobs; None if nothing does.
        paused: The queues whose jobs it does not take.
        schedules: Of the periodic tasks whose next runs it keeps waiting, by their names.
    """

    def __init__(self) -> None:
        self.news = asyncio.Event()
        self.runner: asyncio.Task[None] | None = None
        self.paused: set[str] = set()
        self.schedules: dict[str, Cron] = {}
        self._held: set[Record] = set()
        self._limited: defaultdict[str, OrderedDict[str, Record]] = defaultdict(OrderedDict)
        self._ready: defaultdict[str, OrderedDict[str, Record]] = defaultdict(OrderedDict)

    def put(self, record: Record) -> None:
        """Let a job wait until it is due, then for a free slot."""
        self.remove(record)
        seconds = record.due - time.time()
        if seconds > 0:
            self._call_later(min(seconds, CLOCK_CHECK), record)
        else:
            self._ready[record.task.queue][record.job_id] = record
            self.news.set()

    def limit(self, record: Record, seconds: float) -> None:
        """Add a job that waits for its turn under the rate limit of its task."""
        record.due = time.time() + seconds
        self.put(record)
        self._limited[record.task.name][record.job_id] = record

    def count_limited(self, task: str) -> int:
        """Return the number of a task's jobs that wait for their turns."""
        return len(self._limited[task])

    def hold(self, record: Record) -> None:
        """Let a job wait for its release, though not for long: the response may never be sent."""
        self._held.add(record)
        self._call_later(LONGEST_HOLD, record)

    async def release(self, record: Record) -> None:
        """Let a job go that is held."""
        if record in self._held:
            self.put(record)

    def release_all(self) -> None:
        """Let all jobs go that are held."""
        for record in list(self._held):
            self.put(record)

    def take(self, queue: str) -> Record | None:
        """Return the job of a queue that has been ready for longest; None if it is paused."""
        ready = self._ready[queue]
        return ready.popitem(last=False)[1] if ready and queue not in self.paused else None

    def remove(self, record: Record) -> None:
        """Let a job wait no more."""
        self._held.discard(record)
        self._ready[record.task.queue].pop(record.job_id, None)
        self._limited[record.task.name].pop(record.job_id, None)
        if record.timer is not None:
            record.timer.cancel()
            record.timer = None

    def withdraw(self, record: Record) -> None:
        """Remove a waiting job; those behind it under the same rate limit move up."""
        limited = self._limited[record.task.name]
        moves = record.job_id in limited
        self.remove(record)
        for each in list(limited.values()) if moves else ():
            each.due = time.time()
            self.put(each)

    def oldest_due(self, *queues: str) -> float | None:
        """Return since when the first ready job has been due, in seconds since 1970."""
        waiting = [self._ready[queue] for queue in queues or self._ready]
        firsts = [next(iter(ready.values())) for ready in waiting if ready]
        return min((each.due for each in firsts), default=None)

    def has_runner(self) -> bool:
        """Return whether something takes the jobs."""
        return self.runner is not None and not self.runner.done()

    def _call_later(self, seconds: float, record: Record) -> None:
        # A context of its own: the request's would be kept until then.
        loop = asyncio.get_running_loop()
        record.timer = loop.call_later(seconds, self.put, record, context=Context())
