"""Reminders: a task that runs later."""

from datetime import UTC, datetime, timedelta
from typing import Self
from uuid import UUID

from fastapi import APIRouter, HTTPException
from pydantic import AwareDatetime, BaseModel, Field, model_validator

from ..db import User
from ..tasks.notifications import send_reminder
from .deps import IdempotencyKey, Line, Queue, Session
from .jobs import Accept, JobAccepted

LONGEST_DELAY = 366 * 24 * 60 * 60  # seconds
router = APIRouter(tags=["reminders"])


class ReminderRequest(BaseModel):
    """A message, and when to send it: after a delay, or at a time with a timezone."""

    user_id: UUID
    message: Line
    delay_seconds: float | None = Field(None, ge=0, le=LONGEST_DELAY, allow_inf_nan=False)
    send_at: AwareDatetime | None = None

    @model_validator(mode="after")
    def _has_one_time(self) -> Self:
        if (self.delay_seconds is None) == (self.send_at is None):
            raise ValueError("give either delay_seconds or send_at")
        latest = datetime.now(UTC) + timedelta(seconds=LONGEST_DELAY)
        if self.send_at is not None and self.send_at > latest:
            raise ValueError("send_at is more than a year away")
        return self

    @property
    def due(self) -> datetime | timedelta:
        """The time, or the delay."""
        return self.send_at or timedelta(seconds=self.delay_seconds or 0)


@router.post("/reminders", status_code=202)
async def request_reminder(
    body: ReminderRequest,
    session: Session,
    queue: Queue,
    accept: Accept,
    idempotency_key: IdempotencyKey = None,
) -> JobAccepted:
    """Remind a user later; a time that has passed means now."""
    if await session.get(User, body.user_id) is None:
        raise HTTPException(404, "There is no such user.")
    queue, due, message = queue.once(idempotency_key), body.due, body.message
    if isinstance(due, datetime):
        return accept(await queue.enqueue_at(due, send_reminder, body.user_id, message, due))
    return accept(await queue.enqueue_in(due, send_reminder, body.user_id, message, due))
