"""What happens to a ticket, as it happens: a stream in Redis, for whoever watches."""

from dataclasses import dataclass
from typing import Any
from uuid import UUID

from redis.exceptions import RedisError

from ..queue import translate_redis_errors
from ..resources import Resources
from ..tickets import ENDED

MOST = 10_000  # events of a ticket that are kept
LIFETIME = 86_400  # seconds after the last event that they are kept
START = "0-0"
EVENT_ID = r"^[0-9]{1,19}-[0-9]{1,19}$"


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

    def __init__(self, resources: Resources, ticket_id: UUID) -> None:
        settings = resources.queue.settings
        # redis-py does not tell its asynchronous replies from the others.
        self._redis: Any = resources.queue.redis
        self._timeout = settings.enqueue_timeout
        self._key = f"{settings.queue_name}:ticket:{ticket_id}"

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
        async with translate_redis_errors(self._timeout):
            found = await self._redis.xread({self._key: event_id}, count=1000)
        return [
            Event(each.decode(), fields[b"kind"].decode(), fields[b"text"].decode())
            for _, events in found
            for each, fields in events
        ]

    async def delete(self) -> None:
        """Delete all events."""
        async with translate_redis_errors(self._timeout):
            await self._redis.delete(self._key)
