"""The indexes that lists are made of: which jobs run, wait, have finished and are dead.

Of each index a bounded number of entries is read, and of each job's document the beginning.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

from arq import ArqRedis
from redis.exceptions import ResponseError

from .connection import Script, code, translate_redis_errors
from .documents import read_number
from .keys import ATTEMPTS, JOB, RESULT, Keys
from .models import JobStatus
from .settings import QueueSettings
from .task import DEFAULT_QUEUE

MOST_ENTRIES = 1000  # of each index, and of the waiting jobs of each queue
MOST_RUNNING = 10_000
BEGINNING = 2048  # bytes of a document
FINAL = (JobStatus.COMPLETE, JobStatus.FAILED, JobStatus.ABORTED)


@dataclass(slots=True)
class Entry:
    """What an index holds of a job.

    Attributes:
        raw_id: Its id, as Redis has it.
        status: Its status.
        prefix: What the key of its document begins with.
        moment_ms: When it was begun, is due, or died.
        task: Its task, where the index knows it.
        queue: Its queue, where it runs.
        worker: The id of the worker that runs it.
        attempts: How many attempts have begun, where it runs or waits.
    """

    raw_id: bytes
    status: JobStatus
    prefix: str = JOB
    moment_ms: float = 0
    task: str | None = None
    queue: str = ""
    worker: str = ""
    attempts: int = 0

    @property
    def job_id(self) -> str:
        """Its id as text."""
        return as_text(self.raw_id)


class Indexes:
    """Reads the indexes of a service.

    Args:
        redis: The client.
        settings: The queue's settings.
        timeout: Seconds to wait for Redis; None for as long as it takes to answer.
    """

    def __init__(self, redis: ArqRedis, settings: QueueSettings, timeout: float | None) -> None:
        self._redis: Any = redis
        self._settings = settings
        self._timeout = timeout
        self._beginnings = Script(redis, "beginnings")
        self._running = Script(redis, "running")
        self.keys = Keys(settings.queue_name)

    @property
    def queues(self) -> dict[str, str]:
        """The keys of the queues by their names."""
        names = dict.fromkeys([DEFAULT_QUEUE, *self._settings.queues])
        return {name: self.keys.queue(name) for name in names}

    async def ask(self, *commands: tuple[Any, ...]) -> list[Any]:
        """Send commands in one round trip; a reply is None where a key holds another type."""
        async with (
            translate_redis_errors(self._timeout),
            self._redis.pipeline(transaction=False) as pipe,
        ):
            for command in commands:
                pipe.execute_command(*command)
            replies: list[Any] = await pipe.execute(raise_on_error=False)
            for place, reply in enumerate(replies):
                if isinstance(reply, ResponseError) and code(reply) == "WRONGTYPE":
                    replies[place] = None
                elif isinstance(reply, Exception):
                    raise reply
        return replies

    async def read_running(self) -> tuple[int, list[Entry]]:
        """Return the server's time, and the jobs that run, in the order in which they began.

        A job whose lease has ended is none of them: its worker is lost, and it waits.
        """
        names, keys = [*self.queues], [*self.queues.values()]
        async with translate_redis_errors(self._timeout):
            now_ms, found = await self._running(self.keys.service, MOST_RUNNING, *keys)
        running: list[Entry] = []
        for raw_id, token, place in found:
            worker, attempts, started_ms = read_token(token)
            if worker:
                entry = Entry(raw_id, JobStatus.IN_PROGRESS, moment_ms=started_ms)
                entry.queue, entry.worker, entry.attempts = names[place], worker, attempts
                running.append(entry)
        return now_ms, sorted(running, key=attrgetter("moment_ms"))

    async def read_others(
        self, now_ms: int, running: Iterable[Entry]
    ) -> tuple[list[Entry], list[Entry], list[Entry]]:
        """Return the jobs that are due first, and those that have finished and died last."""
        held = {each.raw_id for each in running}
        bounds = [("-inf", now_ms, MOST_ENTRIES), (f"({now_ms}", "+inf", MOST_ENTRIES + len(held))]
        finished, dead, *waiting = await self.ask(
            ("LRANGE", self.keys.finished, 0, MOST_ENTRIES - 1),
            ("ZRANGE", self.keys.dead, 0, MOST_ENTRIES - 1, "REV", "WITHSCORES"),
            *(
                ("ZRANGE", key, first, last, "BYSCORE", "LIMIT", 0, most, "WITHSCORES")
                for first, last, most in bounds
                for key in self.queues.values()
            ),
        )
        entries = [
            Entry(raw_id, status, moment_ms=float(due))
            for place, found in enumerate(waiting)
            for status in [JobStatus.DEFERRED if place >= len(self.queues) else JobStatus.QUEUED]
            for raw_id, due in pairs(found)
            if raw_id not in held
        ]
        prefix = self.keys.dead_job("")
        return (
            sorted(entries, key=attrgetter("moment_ms")),
            list(_read_finished(finished or [])),
            [Entry(raw_id, JobStatus.FAILED, prefix, float(died)) for raw_id, died in pairs(dead)],
        )

    async def read_beginnings(self, entries: list[Entry]) -> list[bytes]:
        """Return the beginnings of documents; note the attempts of waiting jobs."""
        if not entries:
            return []
        waiting = [each for each in entries if each.prefix == JOB and not each.worker]
        keys = [each.prefix.encode() + each.raw_id for each in entries]
        keys += [ATTEMPTS.encode() + each.raw_id for each in waiting]
        async with translate_redis_errors(self._timeout):
            found: list[bytes] = await self._beginnings(BEGINNING, *keys)
        for entry, attempts in zip(waiting, found[len(entries) :], strict=True):
            entry.attempts = read_number(attempts)
        return found[: len(entries)]


def pairs(flat: list[bytes] | None) -> Iterator[tuple[bytes, bytes]]:
    """Return the fields or members of a reply with their values or scores."""
    return zip((flat or [])[::2], (flat or [])[1::2], strict=True)


def read_token(token: bytes) -> tuple[str, int, int]:
    """Return the worker of a running job, the attempt and its beginning; '' for another content."""
    worker, *numbers = token.split(b":")
    if len(numbers) != 3 or worker == b"lost":  # noqa: PLR2004 - attempt, beginning, losses
        return "", 0, 0
    return as_text(worker), read_number(numbers[0]), read_number(numbers[1])


def as_text(data: bytes) -> str:
    """Return bytes as text, whatever they are."""
    return data.decode(errors="replace")


def _read_finished(entries: Iterable[bytes]) -> Iterator[Entry]:
    known: set[bytes] = set()
    for entry in entries:
        task, status, raw_id = (*entry.split(b" ", 2), b"", b"")[:3]
        if as_text(status) in FINAL and raw_id not in known:
            known.add(raw_id)
            yield Entry(raw_id, JobStatus(as_text(status)), RESULT, task=as_text(task))
