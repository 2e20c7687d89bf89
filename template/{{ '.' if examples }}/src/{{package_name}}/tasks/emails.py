"""Emails, by SMTP or into the outbox."""

from datetime import UTC, datetime
from email.message import EmailMessage
from email.utils import formatdate, make_msgid
from uuid import UUID, uuid4

import aiosmtplib

from ..db import User
from ..queue import Discard, task
from ..resources import Context, Resources
from ..settings import Settings


@task(retries=5, timeout=30)
async def send_email(ctx: Context, to: str, subject: str, body: str) -> None:
    """Send an email."""
    await deliver_email(ctx.resources, to, subject, body)


@task(retries=5)
async def send_welcome_email(ctx: Context, user_id: UUID) -> None:
    """Greet a new user."""
    await greet(ctx.resources, user_id)


async def greet(resources: Resources, user_id: UUID) -> None:
    """Send a new user a welcome email, here and now."""
    async with resources.sessions() as session:
        user = await session.get_one(User, user_id)
    body = f"Hello {user.name},\n\nwelcome! Your account is ready.\n"
    await deliver_email(resources, user.email, f"Welcome, {user.name}", body)


async def deliver_email(resources: Resources, to: str, subject: str, body: str) -> None:
    """Send an email here and now; without `SMTP_HOST`, write it to the outbox as an .eml file."""
    settings = resources.settings
    message = EmailMessage()
    message["From"] = settings.mail_from
    message["To"] = to
    message["Subject"] = subject
    message["Date"] = formatdate()
    message["Message-ID"] = make_msgid()
    message.set_content(body)
    if settings.smtp_host is None:
        write_to_outbox(settings, ".eml", bytes(message))
        return
    password = settings.smtp_password
    try:
        await aiosmtplib.send(
            message,
            hostname=settings.smtp_host,
            port=settings.smtp_port,
            username=settings.smtp_username,
            password=password.get_secret_value() if password else None,
        )
    except aiosmtplib.SMTPResponseException as error:
        if str(error.code).startswith("5"):  # for good, as RFC 5321 says
            raise Discard(f"the mail server refuses: {error.code} {error.message}") from error
        raise


def write_to_outbox(settings: Settings, suffix: str, content: bytes) -> None:
    """Write what would be sent to a file in `data_dir`/outbox, for a developer to look at."""
    folder = settings.data_dir / "outbox"
    folder.mkdir(parents=True, exist_ok=True)
    name = f"{datetime.now(UTC):%Y%m%d-%H%M%S-%f}-{uuid4().hex[:8]}{suffix}"
    (folder / name).write_bytes(content)
