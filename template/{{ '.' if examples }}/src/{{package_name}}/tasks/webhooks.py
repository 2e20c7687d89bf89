"""Webhooks: what is done with one after its signature has been checked."""

from pydantic import JsonValue
from sqlalchemy.exc import IntegrityError

from ..db import WebhookEvent
from ..queue import task
from ..resources import Context
from .notifications import send_notification


@task(retries=5, unique=("source", "webhook_id"))
async def process_webhook(
    ctx: Context, source: str, webhook_id: str, payload: dict[str, JsonValue]
) -> None:
    """Keep a webhook, and tell the chat channel of it; a webhook kept already is not kept twice."""
    try:
        async with ctx.resources.sessions.begin() as session:
            session.add(WebhookEvent(source=source, webhook_id=webhook_id, payload=payload))
    except IntegrityError:
        return
    kind = payload.get("type", "event")
    await ctx.resources.queue.enqueue(send_notification, text=f"{source} sent {kind} ({webhook_id})")
