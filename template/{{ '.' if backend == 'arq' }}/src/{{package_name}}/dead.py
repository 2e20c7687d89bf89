"""Dead letters: jobs that have failed for good, kept for whoever looks after them.

`uv run dead list`, `uv run dead retry JOB_ID` and `uv run dead delete JOB_ID` do from a shell what
the API does under `/api/v1/dead`.
"""

import argparse
import asyncio
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from arq import constants
from pydantic import Field, ValidationError

from .broker import DEAD_KEY_PREFIX
from .encoding import StoredError, StoredJob, StoredResult, encode
from .job import JobInfo
from .queue import TaskQueue, answering, connect, finished
from .settings import Settings

TAKE = Path(__file__).with_name("take.lua").read_text()


class DeadLetter(JobInfo):
    """A job that has failed for good, with what is needed to see why."""

    positional: tuple[Any, ...] = ()
    arguments: dict[str, Any] = Field(default_factory=dict)
    traceback: str = ""


class DeadLetters:
    """The dead letters of a queue."""

    def __init__(self, queue: TaskQueue) -> None:
        self._redis, self._settings = queue.redis, queue.settings
        self._index = f"{queue.settings.queue_name}:dead"

    async def newest(self, count: int = 100) -> list[DeadLetter]:
        """Return the letters that came last, the newest first."""
        async with answering(self._settings.enqueue_timeout):
            ids = await self._redis.zrevrange(self._index, 0, count - 1)
            keys = [DEAD_KEY_PREFIX + job_id.decode() for job_id in ids]
            documents: list[bytes | None] = await self._redis.mget(keys) if keys else []
        found = zip(ids, documents, strict=True)
        return [_letter(job_id.decode(), document) for job_id, document in found if document]

    async def retry(self, job_id: str) -> bool:
        """Run a job again under its id; False if there is no such letter.

        It raises a `ValueError` if what the job was to do was never known.
        """
        async with answering(self._settings.enqueue_timeout):
            document = await self._redis.get(DEAD_KEY_PREFIX + job_id)
        if document is None:
            return False
        stored = StoredResult.model_validate_json(document)
        if stored.f == "<unknown>":
            raise ValueError("what this job was to do is not known")
        job = StoredJob(f=stored.f, a=stored.a, k=stored.k, t=None, et=int(time.time() * 1000))
        return await self._take(job_id, encode(dict(job)))

    async def delete(self, job_id: str) -> bool:
        """Forget a letter; False if there is no such letter."""
        return await self._take(job_id, b"")

    async def _take(self, job_id: str, job: bytes) -> bool:
        prefixes = (DEAD_KEY_PREFIX, constants.result_key_prefix, constants.job_key_prefix)
        name = self._settings.queue_name
        keys = [*(prefix + job_id for prefix in prefixes), self._index, name]
        values = [job_id, job, self._redis.expires_extra_ms, int(time.time() * 1000)]
        async with answering(self._settings.enqueue_timeout):
            take: Any = self._redis.register_script(TAKE)
            return bool(await take(keys, values))


def main() -> None:
    """Look after dead letters from a shell."""
    parser = argparse.ArgumentParser(description="Look after jobs that have failed for good.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="the newest, as JSON, a line each")
    for name in ("retry", "delete"):
        commands.add_parser(name).add_argument("job_id")
    asyncio.run(_run(**vars(parser.parse_args())))


async def _run(command: str, job_id: str = "") -> None:
    settings = Settings()
    redis = connect(settings)
    letters = DeadLetters(TaskQueue(redis, settings))
    try:
        if command == "list":
            for letter in await letters.newest():
                print(letter.model_dump_json())
        elif not await (letters.retry if command == "retry" else letters.delete)(job_id):
            sys.exit(f"There is no dead letter {job_id}.")
    except ValueError as error:
        sys.exit(f"{error}.")
    finally:
        await redis.aclose(close_connection_pool=True)


def _letter(job_id: str, document: bytes) -> DeadLetter:
    letter = DeadLetter(**finished(job_id, document).model_dump())
    with suppress(ValidationError):
        stored = StoredResult.model_validate_json(document)
        letter.positional, letter.arguments = stored.a, stored.k
        letter.traceback = StoredError.model_validate(stored.r).traceback
    return letter
