"""Outcomes of attempts on their way to Redis: those of one turn of the event loop go together."""

import asyncio
import logging
from collections import deque
from dataclasses import dataclass
from typing import Any

from arq import ArqRedis
from pydantic_core import from_json, to_json
from redis.exceptions import RedisError, ResponseError

from .connection import Script, code, passes
from .documents import STORED_MS, ChainLink, job_document
from .keys import Keys
from .outage import Outage
from .settings import QueueSettings

logger = logging.getLogger(__name__)
MOST_OUTCOMES = 200
MOST_BYTES = 4_194_304


@dataclass(slots=True)
class Ended:
    """What the finishing script is told of one attempt.

    Attributes:
        queue: The key of the job's queue.
        job_id: The job's id, as Redis has it.
        token: What proves that this worker holds the job.
        kind: "end", "dead", "retry" or "release".
        document: The result to store.
        milliseconds: How long the result is kept, or until the job is due again.
        chain: The chain that the job is part of, its new state, and the next step's queue, id and
            stored job.
    """

    queue: str
    job_id: bytes
    token: bytes
    kind: str
    document: bytes = b""
    milliseconds: int = 0
    chain: tuple[str, str, str, str, bytes] = ("", "", "", "", b"")

    def follow_chain(
        self, link: ChainLink, status: str, result: bytes, keys: Keys, now_ms: int
    ) -> None:
        """Enqueue the next step together with the end of this one, or end the chain."""
        if status != "complete" or not link.steps:
            self.chain = (link.id, f"{link.index} {status}", "", "", b"")
            return
        step, *rest = link.steps
        arguments = dict(step.arguments)
        if step.result_argument is not None:
            arguments[step.result_argument] = from_json(result)
        following = ChainLink(id=link.id, index=link.index + 1, steps=rest)
        document = job_document(
            step.task,
            to_json(arguments),
            now_ms,
            step.queue,
            chain=following.model_dump_json().encode(),
        )
        queue = keys.queue(step.queue)
        self.chain = (link.id, f"{following.index} queued", queue, step.job_id, document)


class Outcomes:
    """Reports outcomes, each until Redis has it.

    Args:
        redis: The client.
        settings: The queue's settings.
        outage: Waits for Redis.
    """

    def __init__(self, redis: ArqRedis, settings: QueueSettings, outage: Outage) -> None:
        self._script = Script(redis, "finish")
        self._settings = settings
        self._outage = outage
        self._waiting: deque[tuple[Ended, asyncio.Future[None]]] = deque()
        self._sender: asyncio.Task[None] | None = None

    async def report(self, ended: Ended) -> None:
        """Tell Redis of an outcome, and return when it knows."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((ended, future))
        if self._sender is None:
            self._sender = asyncio.create_task(self._send_all())
        await future

    async def send(self, *ended: Ended) -> list[Any]:
        """Tell Redis of outcomes once, in one round trip."""
        settings = self._settings
        arguments: list[Any] = [
            settings.queue_name,
            STORED_MS,
            settings.max_dead,
            settings.keep_dead * 1000,
        ]
        for each in ended:
            arguments += (
                each.queue,
                each.job_id,
                each.token,
                each.kind,
                each.document,
                each.milliseconds,
                *each.chain,
            )
        replies: list[Any] = await self._script(*arguments)
        return replies

    async def _send_all(self) -> None:
        try:
            await asyncio.sleep(0)  # others may end in the same turn
            while self._waiting:
                batch = self._take()
                await self._send([ended for ended, _ in batch])
                for _, future in batch:
                    if not future.done():
                        future.set_result(None)
                await asyncio.sleep(0)
        finally:
            self._sender = None
            for _, future in self._waiting:
                future.cancel()

    def _take(self) -> list[tuple[Ended, "asyncio.Future[None]"]]:
        batch: list[tuple[Ended, asyncio.Future[None]]] = []
        size = 0
        while self._waiting and len(batch) < MOST_OUTCOMES and size < MOST_BYTES:
            batch.append(self._waiting.popleft())
            size += len(batch[-1][0].document)
        return batch

    async def _send(self, batch: list[Ended]) -> None:
        async def send() -> list[Any]:
            try:
                return await self.send(*batch)
            except ResponseError as error:
                if passes(error):
                    raise
                return [code(error).encode()] * len(batch)

        try:
            replies = await self._outage.persist(send)
        except (RedisError, OSError):
            return  # the worker ends without Redis: the jobs run again when their leases have ended
        for ended, reply in zip(batch, replies, strict=True):
            job_id = ended.job_id.decode(errors="replace")
            if reply == 0:
                logger.warning("job %s is held by another worker: its outcome is dropped", job_id)
            elif reply != 1:
                text = reply.decode(errors="replace")[:200]
                logger.error("the outcome of job %s was not stored: %s", job_id, text)
