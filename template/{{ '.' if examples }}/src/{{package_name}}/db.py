"""The database: its tables, and how it is opened."""

import asyncio
import enum
import logging
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar
from uuid import UUID, uuid4

from sqlalchemy import JSON, DateTime, Enum, event
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError
from sqlalchemy.ext.asyncio import (
    AsyncEngine,
    AsyncSession,
    async_sessionmaker,
    create_async_engine,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.schema import CreateIndex, CreateTable

from .settings import Settings

DATABASE_TIMEOUT = 1.7  # seconds that the API waits for a database that answers nothing
# Of libpq: a connection whose packets are swallowed ends within 15 s.
CONNECT_ARGS = {"connect_timeout": 5, "keepalives_idle": 5, "tcp_user_timeout": 15_000}
logger = logging.getLogger(__name__)


class ReportFormat(enum.StrEnum):
    """A format that a report is rendered in."""

    PDF = "pdf"
    CSV = "csv"


def _now() -> datetime:
    return datetime.now(UTC)


class Base(DeclarativeBase):
    """The base of all tables: how Python's types are stored."""

    type_annotation_map: ClassVar[dict[Any, Any]] = {
        datetime: DateTime(timezone=True),
        enum.StrEnum: Enum(enum.StrEnum, native_enum=False, length=20),
        dict[str, Any]: JSON,
    }


class User(Base):
    """A recipient of emails."""

    __tablename__ = "users"

    id: Mapped[UUID] = mapped_column(primary_key=True, default=uuid4)
    email: Mapped[str] = mapped_column(unique=True)
    name: Mapped[str]


class Report(Base):
    """A requested report; its file is in `data_dir`/reports once it has a `size`, in bytes."""

    __tablename__ = "reports"

    id: Mapped[UUID] = mapped_column(primary_key=True, default=uuid4)
    title: Mapped[str]
    format: Mapped[ReportFormat]
    size: Mapped[int | None]
    job_id: Mapped[str | None]
    idempotency_key: Mapped[str | None] = mapped_column(unique=True)
    created_at: Mapped[datetime] = mapped_column(default=_now, index=True)

    def path(self, settings: Settings) -> Path:
        """Return the path of its file."""
        return settings.data_dir / "reports" / f"{self.id}.{self.format}"


class WebhookEvent(Base):
    """A webhook; `processed_at` is set once all its effects have happened."""

    __tablename__ = "webhook_events"

    source: Mapped[str] = mapped_column(primary_key=True)
    webhook_id: Mapped[str] = mapped_column(primary_key=True)
    payload: Mapped[dict[str, Any]]
    processed_at: Mapped[datetime | None]


class Sessions(async_sessionmaker[AsyncSession]):
    """Opens sessions. `answered_at` is when the database last answered, in monotonic seconds."""

    answered_at = 0.0

    def note_answer(self, *_: object) -> None:
        """Note that the database has just answered."""
        self.answered_at = time.monotonic()


@asynccontextmanager
async def open_database(settings: Settings, *, wait: bool) -> AsyncGenerator[Sessions]:
    """Open the database, and create the tables that are missing as soon as it answers.

    Args:
        settings: The service's settings.
        wait: Wait until then, as a worker does, instead of at most `DATABASE_TIMEOUT`.
    """
    engine = create_engine(settings)
    sessions = Sessions(engine, expire_on_commit=False)
    event.listen(engine.sync_engine, "after_cursor_execute", sessions.note_answer)
    creating = asyncio.create_task(create_tables(engine))
    try:
        await asyncio.wait({creating}, timeout=None if wait else DATABASE_TIMEOUT)
        if creating.done():
            creating.result()
        yield sessions
    finally:
        creating.cancel()
        await engine.dispose()


def create_engine(settings: Settings) -> AsyncEngine:
    """Prepare the database's connections; none is opened yet."""
    url = settings.sqlalchemy_url()
    engine = create_async_engine(
        url,
        pool_pre_ping=True,
        hide_parameters=True,
        connect_args=CONNECT_ARGS if "+psycopg:" in url else {},
    )
    if engine.dialect.name == "sqlite":
        settings.data_dir.mkdir(parents=True, exist_ok=True)
        event.listen(engine.sync_engine, "connect", _share_sqlite)
    return engine


async def create_tables(engine: AsyncEngine) -> None:
    """Create the tables that are missing, as soon as the database answers.

    Move to Alembic when the tables begin to change.
    """
    available = True
    while True:
        try:
            await _create_missing(engine)
        except (InterfaceError, OperationalError) as error:
            if available:
                logger.warning("the database is unavailable, retrying: %s", error.orig)
            available = False
            await asyncio.sleep(1)
        except DBAPIError:  # PostgreSQL's word for: another process is creating them just now
            await _create_missing(engine)
            return
        else:
            if not available:
                logger.info("the database is available")
            return


async def _create_missing(engine: AsyncEngine) -> None:
    async with engine.begin() as connection:
        for table in Base.metadata.sorted_tables:
            await connection.execute(CreateTable(table, if_not_exists=True))
            for index in table.indexes:
                await connection.execute(CreateIndex(index, if_not_exists=True))


def _share_sqlite(connection: DBAPIConnection, _record: object) -> None:
    """Let the API and the worker write to one file: readers never wait, writers take turns."""
    connection.execute("PRAGMA busy_timeout = 10000")
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = NORMAL")
