"""Webhooks: what happens after the signature of one has been verified."""

from datetime import UTC, datetime

from pydantic import JsonValue

from ..db import WebhookEvent
from ..queue import task
from ..resources import Context
from .notifications import send_notification


@task(retries=5, unique=("source", "webhook_id"))
async def process_webhook(
    ctx: Context, source: str, webhook_id: str, payload: dict[str, JsonValue]
) -> None:
    """Store a webhook and notify the chat channel.

    A worker may be lost between any two lines, and a sender may repeat a webhook days later: each
    effect happens at least once and is safe to repeat, and `processed_at` says that all have.
    """
    async with ctx.resources.sessions.begin() as session:
        event = await session.get(WebhookEvent, (source, webhook_id))
        if event is None:
            event = WebhookEvent(source=source, webhook_id=webhook_id, payload=payload)
            session.add(event)
    if event.processed_at is not None:
        return
    text = f"{source} sent {payload.get('type', 'event')} ({webhook_id})"
    queue = ctx.resources.queue.once(f"{source}/{webhook_id}")
    await queue.enqueue(send_notification, text=text)
    async with ctx.resources.sessions.begin() as session:
        session.add(event)
        event.processed_at = datetime.now(UTC)
