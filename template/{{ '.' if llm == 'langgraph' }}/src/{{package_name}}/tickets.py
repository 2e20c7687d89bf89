"""The table of support tickets."""

import enum
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

from sqlalchemy import UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from .db import Base


class TicketStatus(enum.StrEnum):
    """The state of a ticket: at work, waiting for a person, or at its end."""

    WORKING = "working"
    WAITING = "waiting"
    SENT = "sent"
    REJECTED = "rejected"
    FAILED = "failed"  # never stored: its job may be retried


ENDED = {TicketStatus.SENT, TicketStatus.REJECTED}


class Ticket(Base):
    """A support ticket of a client; its id is also the id of its thread of checkpoints."""

    __tablename__ = "tickets"
    __table_args__ = (UniqueConstraint("owner", "idempotency_key"),)

    id: Mapped[UUID] = mapped_column(primary_key=True, default=uuid4)
    owner: Mapped[str]
    email: Mapped[str]
    subject: Mapped[str]
    text: Mapped[str]
    status: Mapped[TicketStatus] = mapped_column(default=TicketStatus.WORKING, index=True)
    category: Mapped[str | None]
    draft: Mapped[str | None]
    decision: Mapped[dict[str, Any] | None]
    reply: Mapped[str | None]
    job_id: Mapped[str | None]
    idempotency_key: Mapped[str | None]
    created_at: Mapped[datetime] = mapped_column(default=lambda: datetime.now(UTC), index=True)
