"""How the worker talks to Redis: patiently, with leases on its jobs, and burying what has failed.

ARQ's worker sends its commands through the client that it is given. This one waits for a Redis
that is away, and changes two commands on their way: the mark of a running job becomes a lease, and
the result of a job that failed for good is put among the dead letters in the same transaction.
"""

import asyncio
import logging
import math
import threading
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Self

import redis
from arq import ArqRedis
from arq.constants import in_progress_key_prefix, result_key_prefix
from pydantic import ValidationError
from redis.asyncio import ConnectionPool
from redis.asyncio.client import Pipeline
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialBackoff
from redis.exceptions import RedisError

from .encoding import ABORTED, STORED_FOR_MS, StoredError, StoredResult, encode
from .settings import Settings

DEAD_KEY_PREFIX = "arq:dead:"
DEAD_FOR_MS = 30 * 24 * 60 * 60 * 1000
BURY = Path(__file__).with_name("bury.lua").read_text()
FIRST_PAUSE = 0.05  # seconds
NO_CLAIM = {"EXISTS": 1, "ZSCORE": None}
logger = logging.getLogger(__name__)


class Patience(Retry):
    """Tries a command again until Redis is back, and says once that it is away."""

    def __init__(self) -> None:
        super().__init__(ExponentialBackoff(cap=1, base=FIRST_PAUSE), retries=-1)
        self.gone_at: float | None = None
        self.settled_at = 0.0
        self.main: asyncio.Task[Any] | None = None  # of the worker: when it has ended, so has this

    def __deepcopy__(self, _memo: object) -> Self:
        """Stay one for all connections."""
        return self

    async def call_with_retry(
        self, do: Callable[[], Awaitable[Any]], fail: Callable[[RedisError], Any]
    ) -> Any:
        """Do it until it is done."""

        async def note(error: RedisError) -> None:
            if self.gone_at is None:
                self.gone_at = time.monotonic()
                logger.warning("Redis is away, waiting: %s", type(error).__name__)
            if self.main is not None and self.main.done():
                raise error
            await fail(error)

        result = await super().call_with_retry(do, note)
        away = time.monotonic() - (self.gone_at or math.inf)
        if away > FIRST_PAUSE:  # what succeeds sooner was on its way before
            self.gone_at = None
            # After a longer outage, leases may have ended: let their holders renew them first.
            self.settled_at = time.monotonic() + (2 if away > 1 else 0)
            logger.warning("Redis is back after %.1f s", away)
        return result


class WorkerRedis(ArqRedis):
    """The client that a worker is given."""

    settings: Settings
    patience: Patience
    held: dict[str, int]  # leases, by their keys: since when, in milliseconds since 1970

    def pipeline(self, transaction: bool = True, shard_hint: str | None = None) -> Pipeline:  # noqa: FBT001, FBT002 - redis-py's
        """Open a pipeline that makes leases and buries what has failed."""
        pool: Any = self.connection_pool
        pipe = WorkerPipeline(pool, self.response_callbacks, transaction, shard_hint)
        pipe.settings, pipe.held = self.settings, self.held
        return pipe

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        """Send a command that stands alone."""
        client: Any = super()
        if args[0] != "ZRANGEBYSCORE":
            return await client.execute_command(*args, **options)
        if time.monotonic() < self.patience.settled_at:
            return []
        job_ids: list[bytes] = await client.execute_command(*args, **options)
        if foreign := [job_id for job_id in job_ids if not job_id.isascii()]:
            logger.error("%d ids that no job can have are removed from the queue", len(foreign))
            await self.zrem(args[1], *foreign)
        return [job_id for job_id in job_ids if job_id.isascii()]


class WorkerPipeline(Pipeline):
    """Commands that ARQ sends together."""

    settings: Settings
    held: dict[str, int]

    async def execute(self, *args: Any, **options: Any) -> list[Any]:
        """Send them; a lease is renewed from before its job is claimed until it has been finished."""
        commands: list[Any] = [command for command, _ in self.command_stack]
        claimed = [command[1] for command in commands if is_claim(*command)]
        ended = [key for command in commands if command[0] == "DEL" for key in command[1:]]
        self.held.update(dict.fromkeys(claimed, int(time.time() * 1000)))
        try:
            return await super().execute(*args, **options)
        except BaseException:
            ended = claimed
            raise
        finally:
            for key in ended:  # all that ARQ keeps of a job, under "arq:<what>:<job id>"
                self.held.pop(in_progress_key_prefix + str(key).split(":", 2)[-1], None)

    def pipeline_execute_command(self, *args: Any, **options: Any) -> Any:
        """Add a command."""
        now = int(time.time() * 1000)
        if is_claim(*args):
            args = ("PSETEX", args[1], int(self.settings.job_lease * 1000), now)
        self.command_stack.append((args, options))
        if args[0] == "SET" and str(args[1]).startswith(result_key_prefix) and failed(args[2]):
            job_id = args[1].removeprefix(result_key_prefix)
            limits = (DEAD_FOR_MS, now, self.settings.max_dead)
            keys = (f"{self.settings.queue_name}:dead", DEAD_KEY_PREFIX)
            bury: Any = ("EVAL", BURY, 1, *keys, job_id, args[2], *limits)
            self.command_stack.append((bury, {}))
        return self

    async def immediate_execute_command(self, *args: Any, **options: Any) -> Any:
        """Send a command of a claim; where the connection is lost on the way, there is no claim."""
        pipe: Any = super()
        try:
            return await pipe.immediate_execute_command(*args, **options)
        except RedisError:
            if args[0] in NO_CLAIM:
                return NO_CLAIM[args[0]]
            raise


class Leases(threading.Thread):
    """Renews the leases of running jobs, all in one round trip every third of a lease.

    ARQ marks a running job with a key that outlives the longest timeout: after `kill -9` nobody
    would touch its jobs for minutes. A lease ends soon after its worker. A thread renews it, for a
    task may keep the event loop busy; but not if the loop stands still for a whole lease.
    """

    def __init__(self, settings: Settings, held: dict[str, int]) -> None:
        super().__init__(name="leases", daemon=True)
        url = settings.redis_url.get_secret_value()
        self._redis = redis.Redis.from_url(url, socket_connect_timeout=1, socket_timeout=2)
        self._seconds = settings.job_lease
        self._held = held
        self._loop = asyncio.get_running_loop()
        self._alive_at = time.monotonic()
        self.stopped = threading.Event()

    def run(self) -> None:
        """Renew until stopped."""
        pause, lost = self._seconds / 3, False
        while not self.stopped.wait(pause):
            self._loop.call_soon_threadsafe(setattr, self, "_alive_at", time.monotonic())
            if time.monotonic() - self._alive_at > self._seconds:
                continue
            try:
                self._renew(again=lost)
                pause, lost = self._seconds / 3, False
            except RedisError:
                pause, lost = 0.2, True
        self._redis.close()

    def _renew(self, *, again: bool) -> None:
        lease = int(self._seconds * 1000)
        with self._redis.pipeline(transaction=False) as pipe:
            for key, since in list(self._held.items()):
                if again:  # it may have ended while Redis was away
                    pipe.set(key, since, px=lease, nx=True)
                pipe.pexpire(key, lease)
            pipe.execute()


def connect_for_good(settings: Settings) -> WorkerRedis:
    """Prepare the client of a worker."""
    patience = Patience()
    errors = [OSError, redis.ConnectionError, redis.TimeoutError, redis.OutOfMemoryError]
    options: Any = {"socket_connect_timeout": 1, "socket_keepalive": True}
    url = settings.redis_url.get_secret_value()
    pool = ConnectionPool.from_url(url, retry=patience, retry_on_error=errors, **options)
    client = WorkerRedis(pool, job_serializer=encode, default_queue_name=settings.queue_name)
    client.settings, client.patience, client.held = settings, patience, {}
    client.expires_extra_ms = STORED_FOR_MS
    return client


def is_claim(command: str, key: object = "", *_rest: object) -> bool:
    """Tell whether a command marks a job as running."""
    return command == "PSETEX" and str(key).startswith(in_progress_key_prefix)


def failed(result: bytes) -> bool:
    """Tell whether a stored result is that of a job which failed, and was not aborted."""
    try:
        stored = StoredResult.model_validate_json(result)
        return not stored.s and StoredError.model_validate(stored.r).type != ABORTED
    except ValidationError:
        return True
