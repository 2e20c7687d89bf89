"""Batches: what the tasks of one turn of the event loop send to Redis goes in one round trip."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextvars import Context
from typing import Generic, Protocol, TypeVar

MOST_ITEMS = 1000
MOST_BYTES = 4_194_304


class HasDocument(Protocol):
    """Something to send, whose document is most of its size."""

    @property
    def document(self) -> bytes: ...  # noqa: D102 - see the class


Item = TypeVar("Item", bound=HasDocument)
Reply = TypeVar("Reply")


def batches(items: Iterable[Item]) -> Iterator[list[Item]]:
    """Cut items into batches, each of a bounded number and size."""
    batch: list[Item] = []
    size = 0
    for item in items:
        if len(batch) == MOST_ITEMS or size >= MOST_BYTES:
            yield batch
            batch, size = [], 0
        batch.append(item)
        size += len(item.document)
    if batch:
        yield batch


class Batcher(Generic[Item, Reply]):
    """Sends items together. One batch is on its way at a time; what comes meanwhile follows.

    Args:
        send: Sends a batch, and returns a reply for each item; if it raises, all senders get it.
    """

    def __init__(self, send: Callable[[list[Item]], Awaitable[list[Reply]]]) -> None:
        self._send = send
        self._waiting: deque[tuple[Item, asyncio.Future[Reply]]] = deque()
        self._sender: asyncio.Task[None] | None = None

    async def put(self, item: Item) -> Reply:
        """Send an item with others, and return its reply."""
        future: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        self._waiting.append((item, future))
        if self._sender is None:  # it begins when all tasks of this turn have put theirs
            # In an empty context: it sends for others than the job that puts the first, too.
            self._sender = asyncio.create_task(self._send_all(), context=Context())
        return await future

    async def _send_all(self) -> None:
        try:
            while self._waiting:
                batch = self._take()
                try:
                    replies = await self._send([item for item, _ in batch])
                except Exception as error:  # noqa: BLE001 - it belongs to those who wait
                    for _, future in batch:
                        if not future.done():
                            future.set_exception(error)
                else:
                    for (_, future), reply in zip(batch, replies, strict=True):
                        if not future.done():
                            future.set_result(reply)
        finally:
            self._sender = None
            for _, future in self._waiting:
                future.cancel()

    def _take(self) -> list[tuple[Item, "asyncio.Future[Reply]"]]:
        batch: list[tuple[Item, asyncio.Future[Reply]]] = []
        size = 0
        while self._waiting and len(batch) < MOST_ITEMS and size < MOST_BYTES:
            item, future = self._waiting.popleft()
            if not future.done():  # else its sender has gone
                batch.append((item, future))
                size += len(item.document)
        return batch
