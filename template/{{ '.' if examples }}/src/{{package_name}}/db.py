"""The database: its tables, and how it is opened."""

import asyncio
import enum
import logging
import re
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar
from uuid import UUID, uuid4

from sqlalchemy import JSON, DateTime, Enum, UniqueConstraint, event
from sqlalchemy.engine.interfaces import DBAPIConnection, ExceptionContext
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
TICK = 0.1  # seconds
# Of libpq: a connection whose packets are swallowed ends after 15 s.
CONNECT_ARGS = {"connect_timeout": 30, "keepalives_idle": 5, "tcp_user_timeout": 15_000}
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
    """A report of a client; its file is in `data_dir`/reports once it has a `size`, in bytes."""

    __tablename__ = "reports"
    __table_args__ = (UniqueConstraint("owner", "idempotency_key"),)

    id: Mapped[UUID] = mapped_column(primary_key=True, default=uuid4)
    owner: Mapped[str]
    title: Mapped[str]
    format: Mapped[ReportFormat]
    size: Mapped[int | None]
    job_id: Mapped[str | None]
    idempotency_key: Mapped[str | None]
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
    processed_at: Mapped[datetime | None] = mapped_column(index=True)


class Sessions(async_sessionmaker[AsyncSession]):
    """Opens sessions, and notices when the database hangs.

    Attributes:
        tables: Ends when all tables exist.
    """

    tables: asyncio.Task[None]

    def __init__(self, engine: AsyncEngine) -> None:
        super().__init__(engine, expire_on_commit=False)
        self._can_hang = engine.dialect.name != "sqlite"  # where writers wait for each other
        self._answers = 0
        self._waiting = set[asyncio.Future[None]]()
        self._watcher: asyncio.Task[None] | None = None
        event.listen(engine.sync_engine, "after_cursor_execute", self._count_answer)

    @contextmanager
    def watch(self, hanging: asyncio.Future[None]) -> Generator[None]:
        """Set a future if the database hangs while the block waits for it.

        A database that answers others does not hang: it is busy.
        """
        self._waiting.add(hanging)
        if self._can_hang and (self._watcher is None or self._watcher.done()):
            self._watcher = asyncio.create_task(self._watch())
        try:
            yield
        finally:
            self._waiting.discard(hanging)

    async def _watch(self) -> None:
        # Counted in turns of the event loop, since it may be the loop that is slow.
        silence = 0.0
        while self._waiting:
            answers = self._answers
            await asyncio.sleep(TICK)
            silence = silence + TICK if self._answers == answers else 0
            if silence >= DATABASE_TIMEOUT:
                for hanging in self._waiting:
                    hanging.set_result(None)
                self._waiting.clear()

    def _count_answer(self, *_: object) -> None:
        self._answers += 1


@asynccontextmanager
async def open_database(settings: Settings, *, wait: bool) -> AsyncGenerator[Sessions]:
    """Open the database, and create the tables that are missing as soon as it answers.

    Args:
        settings: The service's settings.
        wait: Wait until then, as a worker does, instead of at most `DATABASE_TIMEOUT`.
    """
    engine = create_engine(settings)
    sessions = Sessions(engine)
    sessions.tables = asyncio.create_task(create_tables(engine))
    try:
        await asyncio.wait({sessions.tables}, timeout=None if wait else DATABASE_TIMEOUT)
        if sessions.tables.done():
            sessions.tables.result()
        yield sessions
    finally:
        sessions.tables.cancel()
        await engine.dispose()


def create_engine(settings: Settings) -> AsyncEngine:
    """Prepare the database's connections; none is opened yet."""
    url = settings.sqlalchemy_url()
    options: dict[str, Any] = {"pool_pre_ping": True, "pool_timeout": None, "hide_parameters": True}
    if url.startswith("sqlite"):  # of which fewer connections wait shorter for each other
        settings.data_dir.mkdir(parents=True, exist_ok=True)
        engine = create_async_engine(url, max_overflow=0, **options)
        event.listen(engine.sync_engine, "connect", _share_sqlite)
        return engine
    engine = create_async_engine(url, connect_args=CONNECT_ARGS, **options)
    event.listen(engine.sync_engine, "handle_error", _hide_values)
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


def _hide_values(context: ExceptionContext) -> None:
    """Cut what `hide_parameters` leaves: PostgreSQL quotes values, as in "Key (email)=(...)"."""
    if getattr(context.original_exception, "sqlstate", None):
        for error in filter(None, (context.original_exception, context.sqlalchemy_exception)):
            error.args = tuple(re.split(r'\n|: "|value "', str(each))[0] for each in error.args)


def _share_sqlite(connection: DBAPIConnection, _record: object) -> None:
    """Let the API and the worker write to one file: readers never wait, writers take turns."""
    connection.execute("PRAGMA busy_timeout = 60000")
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = NORMAL")
