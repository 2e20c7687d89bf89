"""Leases of running jobs, renewed together from a thread of their own.

A thread, because a task may keep the event loop busy. If the loop stands still for a whole lease, or
Redis cannot be reached for as long, the worker no longer holds its jobs: it cancels them, since
another worker may run them.
"""

import asyncio
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import redis
from redis.exceptions import RedisError

from .connection import CONNECT_TIMEOUT, SCRIPTS
from .settings import QueueSettings

RENEWALS = 3  # in the time of one lease
RETRY_PAUSE = 0.2  # seconds
LOOP_PAUSE = 0.05  # seconds
SAFETY = 0.9  # of a lease after which it counts as lost, if it could not be renewed


@dataclass(slots=True)
class Lease:
    """A job that this worker holds.

    Attributes:
        queue: The key of its queue.
        job_id: Its id, as Redis has it.
        token: What the worker proves with that it holds the job.
        renewed_at: When it was last renewed, by the monotonic clock.
    """

    queue: str
    job_id: bytes
    token: bytes
    renewed_at: float = field(default_factory=time.monotonic)


class Leases(threading.Thread):
    """Renews leases until it is stopped.

    Args:
        settings: The queue's settings.
        on_lost: Called in the event loop with each lease that is no longer the worker's.
    """

    def __init__(self, settings: QueueSettings, on_lost: Callable[[Lease], None]) -> None:
        super().__init__(name="leases", daemon=True)
        self._seconds = settings.job_lease
        self._service = settings.queue_name
        self._redis: Any = redis.Redis.from_url(
            settings.redis_url.get_secret_value(),
            socket_connect_timeout=CONNECT_TIMEOUT,
            socket_timeout=max(CONNECT_TIMEOUT, self._seconds / 6),
        )
        self._script: Any = self._redis.register_script((SCRIPTS / "renew.lua").read_text("utf-8"))
        self._on_lost = on_lost
        self._held: dict[bytes, Lease] = {}
        self._loop = asyncio.get_running_loop()
        self._loop_seen_at = time.monotonic()
        self._current: asyncio.Task[Any] | None = None
        self._stopped = threading.Event()
        self._give_up_old(time.monotonic())

    def hold(self, lease: Lease) -> None:
        """Renew this lease from now on."""
        self._held[lease.job_id] = lease

    def release(self, lease: Lease) -> None:
        """Renew this lease no more."""
        if self._held.get(lease.job_id) is lease:
            self._held.pop(lease.job_id, None)  # the other thread may do so too

    def stop(self) -> None:
        """Renew nothing any more."""
        self._stopped.set()

    def run(self) -> None:
        """Renew every third of a lease."""
        pause = self._seconds / RENEWALS
        while not self._stopped.wait(pause):
            self._loop.call_soon_threadsafe(self._see_loop)
            # A turn of the loop may take long where many tasks are slow: see one follow another.
            current = asyncio.current_task(self._loop)
            if current is not self._current:
                self._current = current
                self._see_loop()
            if time.monotonic() - self._loop_seen_at > self._seconds:
                pause = LOOP_PAUSE  # it stands still: look again soon, to learn what was lost
                continue
            try:
                self._renew()
                pause = self._seconds / RENEWALS
            except (RedisError, OSError):
                self._redis.connection_pool.disconnect()
                pause = min(RETRY_PAUSE, self._seconds / RENEWALS)
        self._redis.close()

    def _see_loop(self) -> None:
        self._loop_seen_at = time.monotonic()

    def _renew(self) -> None:
        held = list(self._held.values())
        if not held:
            return
        arguments: list[Any] = [self._service, int(self._seconds * 1000)]
        for lease in held:
            arguments += (lease.queue, lease.job_id, lease.token)
        sent_at = time.monotonic()
        lost = set(self._script(args=arguments))
        for lease in held:
            if lease.job_id in lost:
                self._lose(lease)
            else:
                lease.renewed_at = sent_at

    def _give_up_old(self, due_at: float) -> None:
        """Lose what was not renewed in time; in the loop, since the thread may wait for Redis."""
        now = time.monotonic()
        # After a pause of the process, the thread has not had its turn yet.
        for lease in list(self._held.values()) if now < due_at + self._seconds / 10 else ():
            if lease.renewed_at < now - SAFETY * self._seconds:
                self._lose(lease)
        pause = self._seconds / 20
        if not self._stopped.is_set():
            self._loop.call_later(pause, self._give_up_old, now + pause)

    def _lose(self, lease: Lease) -> None:
        self.release(lease)
        self._loop.call_soon_threadsafe(self._on_lost, lease)
