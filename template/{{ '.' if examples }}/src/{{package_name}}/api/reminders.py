"""Reminders: a task that runs later."""

from datetime import timedelta
from typing import Self
from uuid import UUID

from fastapi import APIRouter, HTTPException
from pydantic import AwareDatetime, BaseModel, Field, model_validator

from ..db import User
from ..tasks.notifications import send_reminder
from .deps import IdempotencyKey, Line, Queue, Session
from .jobs import Accept, JobAccepted

LONGEST_DELAY = 366 * 24 * 60 * 60
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
        return self


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
    queue = queue.once(idempotency_key)
    if body.send_at is not None:
        receipt = await queue.enqueue_at(body.send_at, send_reminder, body.user_id, body.message)
    else:
        delay = timedelta(seconds=body.delay_seconds or 0)
        receipt = await queue.enqueue_in(delay, send_reminder, body.user_id, body.message)
    return accept(receipt)
