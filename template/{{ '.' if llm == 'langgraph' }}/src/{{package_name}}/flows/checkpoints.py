"""Checkpoints: what LangGraph stores after each step, in PostgreSQL or in a file of SQLite."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import aiosqlite
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver
from psycopg import AsyncConnection
from psycopg.rows import DictRow, dict_row
from psycopg_pool import AsyncConnectionPool

from ..db import CONNECT_ARGS
from ..settings import Settings

LOCK = 7_204_519_331_018_274_113  # any number that nobody else uses for an advisory lock
MOST_CONNECTIONS = 10
SQLITE_TIMEOUT = 60  # seconds that writers wait for each other
OPTIONS: dict[str, Any] = {"autocommit": True, "prepare_threshold": 0, "row_factory": dict_row}


def strict_serializer() -> JsonPlusSerializer:
    """Return a serializer that builds no objects but LangGraph's own and plain values.

    The default one calls whatever a checkpoint names: who can write to the database could run code.
    """
    return JsonPlusSerializer(allowed_msgpack_modules=None)


@asynccontextmanager
async def open_checkpoints(settings: Settings) -> AsyncGenerator[BaseCheckpointSaver[str]]:
    """Open the checkpoints where the service's tables are: PostgreSQL, or a file in `data_dir`."""
    url = settings.sqlalchemy_url()
    if url.startswith("postgresql"):
        async with _open_postgresql(url.replace("+psycopg", "", 1)) as saver:
            yield saver
        return
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    path = settings.data_dir / "checkpoints.db"
    async with aiosqlite.connect(path, timeout=SQLITE_TIMEOUT) as connection:
        file_saver = AsyncSqliteSaver(connection, serde=strict_serializer())
        await file_saver.setup()
        yield file_saver


@asynccontextmanager
async def _open_postgresql(url: str) -> AsyncGenerator[AsyncPostgresSaver]:
    pool = AsyncConnectionPool(
        url,
        connection_class=AsyncConnection[DictRow],
        kwargs=CONNECT_ARGS | OPTIONS,
        min_size=0,
        max_size=MOST_CONNECTIONS,
        open=False,
        check=AsyncConnectionPool[AsyncConnection[DictRow]].check_connection,
    )
    async with pool:
        async with pool.connection() as connection:
            await _create_tables(connection)
        yield AsyncPostgresSaver(pool, serde=strict_serializer())


async def _create_tables(connection: AsyncConnection[DictRow]) -> None:
    """Create the tables, one worker at a time.

    It builds indexes concurrently, which waits for every open statement. So a worker that waits for
    the lock asks again and again: a statement that waits would make the two wait for each other.
    """
    while True:
        cursor = await connection.execute("SELECT pg_try_advisory_lock(%s) AS mine", [LOCK])
        row = await cursor.fetchone()
        if row is not None and row["mine"]:
            break
        await asyncio.sleep(0.1)
    try:
        await AsyncPostgresSaver(connection).setup()
    finally:
        await connection.execute("SELECT pg_advisory_unlock(%s)", [LOCK])
