"""Emails, by SMTP or into the outbox."""

from datetime import UTC, datetime
from email.headerregistry import Address
from email.message import EmailMessage
from email.policy import SMTPUTF8
from email.utils import formatdate, make_msgid, parseaddr
from uuid import UUID, uuid4

import aiosmtplib
import idna
from pydantic import EmailStr

from ..db import User
from ..queue import Discard, task
from ..resources import Context, Resources
from ..settings import Settings

SMTPS_PORT = 465
PERMANENT = 500  # RFC 5321: replies from here on are the same at the next attempt


@task(retries=5, timeout=30)
async def send_email(ctx: Context, to: EmailStr, subject: str, body: str) -> None:
    """Send an email."""
    await deliver_email(ctx.resources, to, subject, body)


async def greet(resources: Resources, user_id: UUID) -> None:
    """Send a new user a welcome email, here and now."""
    async with resources.sessions() as session:
        user = await session.get_one(User, user_id)
    body = f"Hello {user.name},\n\nwelcome! Your account is ready.\n"
    await deliver_email(resources, user.email, f"Welcome, {user.name}", body)


async def deliver_email(resources: Resources, to: str, subject: str, body: str) -> None:
    """Send an email here and now; without `SMTP_HOST`, write it to the outbox as an .eml file."""
    settings = resources.settings
    name, sender = parseaddr(settings.mail_from)
    message = EmailMessage()
    message["From"] = Address(name, addr_spec=_ascii_domain(sender))
    message["To"] = _ascii_domain(to)
    # One line, in which nothing looks like an encoded word: `email` would decode it into a header.
    message["Subject"] = " ".join(subject.splitlines()).replace("=?", "= ?")
    message["Date"] = formatdate()
    message["Message-ID"] = make_msgid()
    message.set_content(body)
    if settings.smtp_host is None:
        write_to_outbox(settings, ".eml", message.as_bytes(policy=SMTPUTF8))
        return
    password, tls = settings.smtp_password, settings.smtp_tls
    try:
        await aiosmtplib.send(
            message,
            hostname=settings.smtp_host,
            port=settings.smtp_port,
            username=settings.smtp_username,
            password=password.get_secret_value() if password else None,
            use_tls=tls == "implicit" or (tls is None and settings.smtp_port == SMTPS_PORT),
            start_tls=True if tls == "starttls" else None,
            cert_bundle=str(settings.smtp_ca_file) if settings.smtp_ca_file else None,
            timeout=settings.smtp_timeout,
        )
    except aiosmtplib.SMTPException as error:
        if isinstance(error, aiosmtplib.SMTPRecipientsRefused):
            reply: aiosmtplib.SMTPException = error.recipients[0]
        else:
            reply = error
        if getattr(reply, "code", 0) >= PERMANENT or isinstance(reply, aiosmtplib.SMTPNotSupported):
            raise Discard(f"the mail server refuses the email: {reply.message}") from error
        raise


def _ascii_domain(address: str) -> str:
    """Encode the domain of an address with IDNA, for servers without SMTPUTF8."""
    local, at, domain = address.rpartition("@")
    if domain.isascii():
        return address
    return f"{local}{at}{idna.encode(domain, uts46=True).decode()}"


def write_to_outbox(settings: Settings, suffix: str, content: bytes) -> None:
    """Write what would be sent to a file in `data_dir`/outbox, for a developer to look at."""
    folder = settings.data_dir / "outbox"
    folder.mkdir(parents=True, exist_ok=True)
    name = f"{datetime.now(UTC):%Y%m%d-%H%M%S-%f}-{uuid4().hex[:8]}{suffix}"
    (folder / name).write_bytes(content)
