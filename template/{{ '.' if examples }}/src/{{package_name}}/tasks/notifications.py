"""Reminders for users, and notifications for a chat channel."""

from datetime import datetime, timedelta
from http import HTTPStatus
from uuid import UUID

from pydantic_core import to_json

from ..db import User
from ..queue import Discard, task
from ..resources import Context
from .emails import deliver_email, write_to_outbox

# Client errors that pass by waiting.
NOT_NOW = {HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_EARLY, HTTPStatus.TOO_MANY_REQUESTS}


@task(retries=5, timeout=30)
async def send_reminder(
    ctx: Context,
    user_id: UUID,
    message: str,
    due: datetime | timedelta,  # noqa: ARG001 - compared under one Idempotency-Key
) -> None:
    """Email a reminder to a user."""
    async with ctx.resources.sessions() as session:
        user = await session.get_one(User, user_id)
    await deliver_email(ctx.resources, user.email, "Your reminder", f"{message}\n")


@task(retries=5, timeout=30, rate_limit="30/minute")
async def send_notification(ctx: Context, text: str) -> None:
    """Post a text to `NOTIFICATION_URL`, as Slack and Mattermost take it, or to the outbox."""
    url = ctx.resources.settings.notification_url
    if url is None:
        write_to_outbox(ctx.resources.settings, ".json", to_json({"text": text}))
        return
    response = await ctx.resources.http.post(str(url.get_secret_value()), json={"text": text})
    if response.is_success:
        return
    # Not raise_for_status: its error holds the URL, which is a secret.
    if response.is_server_error or response.status_code in NOT_NOW:
        raise ConnectionError(f"the channel does not work now: {response.status_code}")
    raise Discard(f"the channel refuses the notification: {response.status_code}")
