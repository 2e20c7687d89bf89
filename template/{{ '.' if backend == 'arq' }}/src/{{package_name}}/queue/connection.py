"""Connections to Redis or Valkey: how they are opened, and which of their errors pass by waiting."""

import asyncio
import logging
import re
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import hiredis
from arq import ArqRedis
from redis.asyncio import BlockingConnectionPool
from redis.asyncio.connection import AbstractConnection
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ReadOnlyError, RedisError, ResponseError

from .documents import STORED_MS, deserialize, serialize
from .errors import QueueUnavailableError
from .settings import QueueSettings

T = TypeVar("T")
logger = logging.getLogger(__name__)
SCRIPTS = Path(__file__).with_name("scripts")
CONNECT_TIMEOUT = 1  # seconds
TURNS = 20  # of the event loop, in which a connection is opened and a reply is read
SOCKET_TIMEOUT = 3  # seconds, longer than a worker waits for a wake-up
FIRST_PAUSE = 0.05  # seconds between two attempts to reach Redis
LONGEST_PAUSE = 1
# What a server answers that cannot do a thing now, and has done nothing.
NOT_NOW = (
    "BUSY",
    "CLUSTERDOWN",
    "LOADING",
    "MASTERDOWN",
    "MISCONF",
    "NOREPLICAS",
    "OOM",
    "READONLY",
    "TRYAGAIN",
    "UNKILLABLE",
)


def connect(settings: QueueSettings, **options: Any) -> ArqRedis:
    """Return a client with its own pool; nothing is sent yet. Options are those of redis-py."""
    url = settings.redis_url.get_secret_value()
    defaults: dict[str, Any] = {
        "redis_connect_func": _greet,
        "socket_connect_timeout": CONNECT_TIMEOUT,
        "socket_timeout": SOCKET_TIMEOUT,
        "max_connections": 50,
        "timeout": None,
    }
    if not url.startswith("unix:"):
        defaults["socket_keepalive"] = True
    pool = BlockingConnectionPool.from_url(url, **(defaults | options))
    pool.connection_class = type("Connection", (_Lean, pool.connection_class), {})
    client = ArqRedis(
        pool,
        job_serializer=serialize,
        job_deserializer=deserialize,
        default_queue_name=settings.queue_name,
    )
    client.expires_extra_ms = STORED_MS
    return client


class _Lean(AbstractConnection):
    """What costs most of a command's time in redis-py's asynchronous connections, done faster."""

    _reader: Any

    def pack_command(self, *arguments: Any) -> list[bytes]:
        """Write a command with hiredis, as redis-py does where it is not asynchronous."""
        name, *others = arguments
        return [hiredis.pack_command((*name.split(), *others))]

    async def send_packed_command(self, *arguments: Any, **options: Any) -> None:
        """Send a command, and take uvloop's error for what it is: a lost connection."""
        try:
            await super().send_packed_command(*arguments, **options)
        except RuntimeError as error:
            raise RedisConnectionError("the connection was closed meanwhile") from error

    async def can_read_destructive(self) -> bool:
        """Return whether the server has closed the connection: without waiting for a timeout."""
        await asyncio.sleep(0)  # the event loop may not have looked since
        return bool(self._reader.at_eof())


async def _greet(connection: Any) -> None:
    """Open a connection; refuse a server on which the scripts cannot run."""
    await connection.on_connect()
    await connection.send_command("HELLO")
    try:
        reply = await connection.read_response()
    except ResponseError:
        return  # forbidden, or unknown: the scripts will show
    facts = dict(zip(reply[::2], reply[1::2], strict=False))
    mode, version = (facts.get(name, b"").decode() for name in (b"mode", b"version"))
    if mode in {"cluster", "sentinel"} or re.match(r"[1-6]\.", version):
        await connection.disconnect()
        raise QueueUnavailableError(
            f"Redis {version} in {mode} mode is not supported: version 7 or newer is needed, or any "
            "Valkey, and neither a cluster nor a Sentinel"
        )


class Script:
    """One of the scripts, run on one client.

    Args:
        redis: The client.
        name: The file's name without its ending.
    """

    def __init__(self, redis: ArqRedis, name: str) -> None:
        text = (SCRIPTS / f"{name}.lua").read_text("utf-8")
        self._pool: Any = redis.connection_pool
        self._script: Any = redis.register_script(text)

    async def __call__(self, *arguments: str | bytes | float) -> Any:
        """Run it in one round trip."""
        try:
            return await self._script(args=arguments)
        except ReadOnlyError:
            # A failover: the name may stand for another server by now.
            await self._pool.disconnect(inuse_connections=False)
            raise


def has_done_nothing(error: BaseException) -> bool:
    """Return whether the server cannot have run what failed with this error."""
    was_refused = isinstance(error.__context__, ConnectionRefusedError | FileNotFoundError)
    return was_refused or isinstance(error, ResponseError)


def passes(error: BaseException) -> bool:
    """Return whether what failed with this error may succeed later."""
    if isinstance(error, ResponseError):
        return code(error) in NOT_NOW
    return isinstance(error, RedisError | OSError)


def code(error: BaseException) -> str:
    """Return the first word of a server's answer, or the type of another error: never a value."""
    name, first = type(error).__name__, str(error).partition(" ")[0]
    # redis-py strips some codes and keeps them as the name of the exception.
    known = {"BusyLoadingError": "LOADING", "OutOfMemoryError": "OOM", "ReadOnlyError": "READONLY"}
    is_code = isinstance(error, ResponseError) and first.isupper()
    return known.get(name, first if is_code else name)


class Outage:
    """Whether Redis is unavailable, as all calls of one worker see it together."""

    def __init__(self) -> None:
        self._since: float | None = None
        self._back_at = 0.0
        self._abandoned = False

    def abandon(self) -> None:
        """Let waiting calls fail: the worker ends."""
        self._abandoned = True

    async def persist(
        self, call: Callable[[], Awaitable[T]], *, give_up: Callable[[], bool] = lambda: False
    ) -> T:
        """Repeat a call, which must be safe to repeat, until Redis answers.

        Raises:
            RedisError: Redis is unavailable, and waiting was given up or abandoned.
            OSError: As above.
        """
        pause = FIRST_PAUSE
        while True:
            sent_at = time.monotonic()
            try:
                result = await call()
            except (RedisError, OSError) as error:
                self._begin(error, sent_at)
                if self._abandoned or give_up():
                    raise
                await asyncio.sleep(pause)
                pause = min(2 * pause, LONGEST_PAUSE)
            else:
                self._end()
                return result

    def _begin(self, error: Exception, sent_at: float) -> None:
        # A call of the last outage may fail when others have succeeded again.
        if self._since is None and sent_at > self._back_at:
            self._since = time.monotonic()
            logger.warning("Redis is unavailable, retrying: %s", code(error))

    def _end(self) -> None:
        if self._since is not None:
            logger.warning("Redis is back after %.1f s", time.monotonic() - self._since)
            self._since = None
            self._back_at = time.monotonic()


@asynccontextmanager
async def translate_redis_errors(seconds: float | None) -> AsyncGenerator[None]:
    """Raise `QueueUnavailableError` where Redis fails, or does not answer in time."""
    deadline = asyncio.get_running_loop().time() + seconds if seconds else None
    try:
        async with timeout_at(deadline):
            yield
    except (RedisError, OSError) as error:
        raise QueueUnavailableError(f"Redis is not available: {code(error)}") from error


@asynccontextmanager
async def timeout_at(deadline: float | None) -> AsyncGenerator[None]:
    """Raise `TimeoutError` after a time of the event loop's clock, where none has an end.

    A loop that has much to do may itself be late: before, it gets some turns to read what has come.
    """
    loop = asyncio.get_running_loop()
    handle: asyncio.Handle | None = None
    async with asyncio.timeout(None) as timer:

        def give_turns(number: int) -> None:
            nonlocal handle
            if number:
                handle = loop.call_soon(give_turns, number - 1)
            else:
                timer.reschedule(loop.time())

        if deadline is not None:
            handle = loop.call_at(deadline, give_turns, TURNS)
        try:
            yield
        finally:
            if handle is not None:
                handle.cancel()
