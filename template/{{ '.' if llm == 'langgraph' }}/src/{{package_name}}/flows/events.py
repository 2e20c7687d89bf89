"""What happens to a ticket, as it happens: a stream in Redis, for whoever watches."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from redis.exceptions import RedisError

from ..queue import TaskQueue
from ..tickets import ENDED

MOST = 10_000  # events of a ticket that are kept
LIFETIME = 86_400  # seconds after the last event that they are kept
POLL = 0.2  # seconds between two looks for new events
SILENCE = 15  # seconds, after which a watcher is told that the connection lives
START = "0-0"


@dataclass(frozen=True, slots=True)
class Event:
    """An event: a `step` that begins, a `token` of the draft, a new `status`, or an `error`."""

    id: str
    kind: str
    text: str

    @property
    def is_last(self) -> bool:
        """Return whether no event follows."""
        return self.kind == "status" and self.text in ENDED


class TicketEvents:
    """The events of one ticket."""

    def __init__(self, queue: TaskQueue, ticket_id: UUID) -> None:
        # redis-py does not tell its asynchronous replies from the others.
        self._redis: Any = queue.redis
        self._key = f"{queue.settings.queue_name}:ticket:{ticket_id}"

    async def publish(self, kind: str, text: str) -> None:
        """Publish an event. It is for watching only: without Redis, it is lost and nothing fails."""
        try:
            async with self._redis.pipeline(transaction=False) as pipe:
                pipe.xadd(self._key, {"kind": kind, "text": text}, maxlen=MOST, approximate=True)
                pipe.expire(self._key, LIFETIME)
                await pipe.execute()
        except (RedisError, OSError):
            pass

    async def after(self, event_id: str) -> list[Event]:
        """Return the events after one, a thousand at most."""
        found = await self._redis.xread({self._key: event_id}, count=1000)
        return [
            Event(each.decode(), fields[b"kind"].decode(), fields[b"text"].decode())
            for _, events in found
            for each, fields in events
        ]

    async def follow(
        self,
        event_id: str,
        has_ended: Callable[[], Awaitable[bool]],
        is_ending: Callable[[], bool],
    ) -> AsyncGenerator[Event | None]:
        """Yield the events after one as they come, until the last; None where there is silence.

        Args:
            event_id: The event.
            has_ended: Whether the ticket has come to its end, asked where there is silence: its last
                event may have been lost.
            is_ending: Whether the process is to end.
        """
        silence = float(SILENCE)
        while not is_ending():
            for event in await self.after(event_id):
                yield event
                if event.is_last:
                    return
                event_id, silence = event.id, 0
            if silence >= SILENCE:
                if await has_ended():
                    return
                yield None
                silence = 0
            await asyncio.sleep(POLL)
            silence += POLL
