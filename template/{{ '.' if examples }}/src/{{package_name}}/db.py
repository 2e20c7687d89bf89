"""The database: its tables, and how it is opened."""

import enum
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar
from uuid import UUID, uuid4

from sqlalchemy import JSON, DateTime, Enum, event
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.schema import CreateTable

from .settings import Settings


class ReportFormat(enum.StrEnum):
    """What a report can be rendered as."""

    PDF = "pdf"
    CSV = "csv"


class ReportStatus(enum.StrEnum):
    """Whether a report's file can be fetched."""

    PENDING = "pending"
    READY = "ready"
    FAILED = "failed"


def _now() -> datetime:
    return datetime.now(UTC)


class Base(DeclarativeBase):
    """What all tables share: how Python's types are stored."""

    type_annotation_map: ClassVar[dict[Any, Any]] = {
        datetime: DateTime(timezone=True),
        enum.StrEnum: Enum(enum.StrEnum, native_enum=False, length=20),
        dict[str, Any]: JSON,
    }


class User(Base):
    """Someone who gets emails."""

    __tablename__ = "users"

    id: Mapped[UUID] = mapped_column(primary_key=True, default=uuid4)
    email: Mapped[str] = mapped_column(unique=True)
    name: Mapped[str]


class Report(Base):
    """A report that was asked for; its file lies in `data_dir`/reports once it is ready."""

    __tablename__ = "reports"

    id: Mapped[UUID] = mapped_column(primary_key=True, default=uuid4)
    title: Mapped[str]
    format: Mapped[ReportFormat]
    status: Mapped[ReportStatus] = mapped_column(default=ReportStatus.PENDING)
    size: Mapped[int | None]
    idempotency_key: Mapped[str | None] = mapped_column(unique=True)
    created_at: Mapped[datetime] = mapped_column(default=_now)

    def path(self, settings: Settings) -> Path:
        """Return where its file is, or will be."""
        return settings.data_dir / "reports" / f"{self.id}.{self.format}"


class WebhookEvent(Base):
    """A webhook that was processed."""

    __tablename__ = "webhook_events"

    source: Mapped[str] = mapped_column(primary_key=True)
    webhook_id: Mapped[str] = mapped_column(primary_key=True)
    payload: Mapped[dict[str, Any]]
    processed_at: Mapped[datetime] = mapped_column(default=_now)


def create_engine(settings: Settings) -> AsyncEngine:
    """Prepare the database's connections; none is opened yet."""
    engine = create_async_engine(settings.sqlalchemy_url(), pool_pre_ping=True)
    if engine.dialect.name == "sqlite":
        settings.data_dir.mkdir(parents=True, exist_ok=True)
        event.listen(engine.sync_engine, "connect", _share_sqlite)
    return engine


async def create_tables(engine: AsyncEngine) -> None:
    """Create the tables that are missing; move to Alembic when they begin to change."""
    try:
        await _create_missing(engine)
    except DBAPIError:  # PostgreSQL's word for: another process is creating them just now
        await _create_missing(engine)


async def _create_missing(engine: AsyncEngine) -> None:
    async with engine.begin() as connection:
        for table in Base.metadata.sorted_tables:
            await connection.execute(CreateTable(table, if_not_exists=True))


def _share_sqlite(connection: DBAPIConnection, _record: object) -> None:
    """Let the API and the worker write to one file: readers never wait, writers take turns."""
    connection.execute("PRAGMA busy_timeout = 10000")
    connection.execute("PRAGMA journal_mode = WAL")
