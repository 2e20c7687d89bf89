"""What happens to a ticket, as it happens: a table in the database, for whoever watches."""

import time
from collections.abc import Sequence
from uuid import UUID

from sqlalchemy import BigInteger, Index, Integer, delete, select
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Mapped, mapped_column

from ..db import Base
from ..resources import Resources
from ..tickets import ENDED

PAUSE = 0.2  # seconds between two writes of tokens
START = "0"
EVENT_ID = r"^[0-9]{1,18}$"


class Event(Base):
    """An event: a `step` that begins, tokens of the draft, a new `status`, or an `error`."""

    __tablename__ = "ticket_events"
    __table_args__ = (
        Index("ticket_events_by_ticket", "ticket_id", "id"),
        {"sqlite_autoincrement": True},  # no id is used again
    )

    id: Mapped[int] = mapped_column(BigInteger().with_variant(Integer, "sqlite"), primary_key=True)
    ticket_id: Mapped[UUID]
    kind: Mapped[str]
    text: Mapped[str]

    @property
    def is_last(self) -> bool:
        """Return whether no event follows."""
        return self.kind == "status" and self.text in ENDED


class TicketEvents:
    """The events of one ticket."""

    def __init__(self, resources: Resources, ticket_id: UUID) -> None:
        self._sessions = resources.sessions
        self._ticket_id = ticket_id
        self._tokens = ""  # that are not written yet
        self._written_at = 0.0

    async def publish(self, kind: str, text: str) -> None:
        """Publish an event. It is for watching only: without the database, it is lost.

        Tokens that come fast are written as one event, at the latest with the next of another kind.
        """
        events: list[Event] = []
        if kind == "token":
            self._tokens += text
            if time.monotonic() < self._written_at + PAUSE:
                return
        else:
            events = [self._event(kind, text)]
        if self._tokens:
            events.insert(0, self._event("token", self._tokens))
        self._tokens, self._written_at = "", time.monotonic()
        try:
            async with self._sessions.begin() as session:
                session.add_all(events)
        except SQLAlchemyError:
            pass

    async def after(self, event_id: str) -> Sequence[Event]:
        """Return the events after one, a thousand at most."""
        events = select(Event).where(Event.ticket_id == self._ticket_id, Event.id > int(event_id))
        async with self._sessions() as session:
            return (await session.scalars(events.order_by(Event.id).limit(1000))).all()

    async def delete(self) -> None:
        """Delete all events."""
        async with self._sessions.begin() as session:
            await session.execute(delete(Event).where(Event.ticket_id == self._ticket_id))

    def _event(self, kind: str, text: str) -> Event:
        return Event(ticket_id=self._ticket_id, kind=kind, text=text)
