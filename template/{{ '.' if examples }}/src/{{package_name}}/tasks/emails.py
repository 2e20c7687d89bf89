"""Emails, by SMTP or into the outbox."""

from datetime import UTC, datetime
from email.message import EmailMessage
from email.utils import formatdate, make_msgid
from uuid import UUID, uuid4

import aiosmtplib

from ..db import User
from ..resources import Context
from ..settings import Settings
from ..task import Discard, task


@task(retries=5, timeout=30)
async def send_email(ctx: Context, to: str, subject: str, body: str) -> None:
    """Send an email; without `SMTP_HOST`, write it to the outbox as an .eml file."""
    settings = ctx["settings"]
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


@task(retries=5)
async def send_welcome_email(ctx: Context, user_id: UUID) -> None:
    """Greet a new user."""
    async with ctx["sessions"]() as session:
        user = await session.get_one(User, user_id)
    body = f"Hello {user.name},\n\nwelcome! Your account is ready.\n"
    await send_email(ctx, to=user.email, subject=f"Welcome, {user.name}", body=body)


def write_to_outbox(settings: Settings, suffix: str, content: bytes) -> None:
    """Write what would be sent to a file in `data_dir`/outbox, for a developer to look at."""
    folder = settings.data_dir / "outbox"
    folder.mkdir(parents=True, exist_ok=True)
    name = f"{datetime.now(UTC):%Y%m%d-%H%M%S-%f}-{uuid4().hex[:8]}{suffix}"
    (folder / name).write_bytes(content)
