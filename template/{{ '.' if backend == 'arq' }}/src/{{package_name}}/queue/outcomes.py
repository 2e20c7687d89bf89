"""Outcomes of attempts: what Redis is told of each, in one step with the end of its lease."""

import logging
from dataclasses import dataclass
from typing import Any

from arq import ArqRedis
from pydantic_core import from_json, to_json
from redis.exceptions import RedisError, ResponseError

from .attempt import Again, Failure, Interrupted, Interruption, Outcome, Success, log_failure
from .batching import Batcher
from .connection import Outage, Script, code, passes
from .documents import (
    ABORTED,
    STORED_MS,
    ChainLink,
    StoredError,
    StoredJob,
    job_document,
    result_document,
)
from .keys import Keys
from .settings import QueueSettings

logger = logging.getLogger(__name__)


@dataclass(slots=True)  # not frozen, which would make each take a microsecond more
class Held:
    """A job that a worker holds.

    Attributes:
        queue: The key of its queue.
        raw_id: Its id, as Redis has it.
        token: What proves that the worker holds it.
        attempt: The number of the attempt.
        started_ms: When the attempt began, in milliseconds since 1970; 0 if it never did.
        waited_ms: How long it was due before.
    """

    queue: str
    raw_id: bytes
    token: bytes
    attempt: int
    started_ms: int
    waited_ms: int = 0

    @property
    def job_id(self) -> str:
        """Its id as text."""
        return self.raw_id.decode(errors="replace")


@dataclass(slots=True)  # as above
class Report:
    """What the finishing script is told of one attempt.

    Attributes:
        held: The job.
        kind: "end", "dead", "retry" or "release".
        document: The result to store.
        milliseconds: How long the result is kept, or until the job is due again.
        chain: What becomes of the job's chain, as JSON.
        group: The task and the status that a job which ends is counted under.
        took_ms: How long its attempt took; -1 if it never began.
    """

    held: Held
    kind: str
    document: bytes = b""
    milliseconds: int = 0
    chain: bytes = b""
    group: str = ""
    took_ms: int = -1


class Reporter(Batcher[Report, None]):
    """Reports to Redis, each until it is known there or the worker ends.

    Args:
        redis: The client.
        settings: The queue's settings.
        outage: Waits for Redis.
    """

    def __init__(self, redis: ArqRedis, settings: QueueSettings, outage: Outage) -> None:
        super().__init__(self._report)
        self._script = Script(redis, "finish")
        self._outage = outage
        self._first_arguments = (
            settings.queue_name,
            STORED_MS,
            settings.max_dead,
            settings.keep_dead * 1000,
            settings.max_finished,
        )

    async def send(self, reports: list[Report]) -> list[Any]:
        """Report once; the replies are those of the script."""
        arguments: list[Any] = [*self._first_arguments]
        for each in reports:
            held = each.held
            arguments += (held.queue, held.raw_id, held.token, each.kind, each.document)
            arguments += (each.milliseconds, each.chain)
            arguments += (each.group, each.took_ms, held.waited_ms)
        replies: list[Any] = await self._script(*arguments)
        return replies

    async def _report(self, reports: list[Report]) -> list[None]:
        async def send() -> list[Any]:
            try:
                return await self.send(reports)
            except ResponseError as error:
                if passes(error):
                    raise
                return [code(error).encode()] * len(reports)

        try:
            replies = await self._outage.persist(send)
        except (RedisError, OSError):
            replies = []  # the worker ends without Redis; the jobs run again after their leases
        for report, reply in zip(reports, replies, strict=False):
            job_id = report.held.job_id
            if reply == 0:
                logger.warning("job %s is held by another worker: its outcome is dropped", job_id)
            elif reply != 1:
                problem = reply.decode(errors="replace")[:200]
                logger.error("the outcome of job %s was not stored: %s", job_id, problem)
        return [None] * len(reports)


def report_of(  # noqa: PLR0913 - all that is known of an attempt
    held: Held,
    stored: StoredJob,
    outcome: Outcome,
    settings: QueueSettings,
    *,
    task: str,
    now_ms: int,
) -> Report | None:
    """Return what Redis is told of an attempt; None if another worker holds the job."""
    name = f"job {held.job_id} ({stored.f})"
    error: StoredError | None = None
    result = b""
    match outcome:
        case Again(delay, reason):
            logger.warning("%s runs again in %.1f s: %s", name, delay, reason)
            return Report(held, "retry", milliseconds=int(delay * 1000))
        case Interrupted(Interruption.SHUTDOWN):
            logger.info("%s goes back to the queue", name)
            return Report(held, "release")
        case Interrupted(Interruption.LEASE_LOST):
            logger.warning("%s lost its lease and was cancelled", name)
            return Report(held, "release")  # dropped if another worker holds it by now
        case Interrupted():
            status, error = "aborted", StoredError(type=ABORTED, message="")
        case Failure(type_, message, traceback, public):
            status = "failed"
            error = StoredError(type=type_, message=message, traceback=traceback, public=public)
            log_failure(held.job_id, stored.f, held.attempt, outcome)
        case Success(document):
            status, result = "complete", document
    took_ms = max(0, now_ms - held.started_ms) if held.started_ms else -1
    if status != "failed":
        logger.info("%s %s in %.3f s", name, status, max(0, took_ms) / 1000)
    result = to_json(error) if error else result
    return Report(
        held,
        "dead" if status == "failed" else "end",
        result_document(
            stored,
            job_id=held.job_id,
            succeeded=error is None,
            result=result,
            attempts=held.attempt,
            started_ms=held.started_ms,
            finished_ms=now_ms,
        ),
        settings.keep_result * 1000,
        _chain(stored, status, result, settings.queue_name, now_ms),
        f"{task} {status}",
        took_ms,
    )


def _chain(job: StoredJob, status: str, result: bytes, service: str, now_ms: int) -> bytes:
    """Return the end of a job's chain, or its next step; nothing where it is in no chain."""
    link = job.c
    if link is None:
        return b""
    if status != "complete" or not link.steps:
        return to_json({"id": link.id, "state": f"{link.index} {status}", "job_id": ""})
    step, *rest = link.steps
    arguments = dict(step.arguments)
    if step.result_argument is not None:
        arguments[step.result_argument] = from_json(result)
    following = ChainLink(id=link.id, index=link.index + 1, steps=rest)
    given, chain = to_json(arguments), to_json(following)
    payload = job_document(step.task, given, now_ms, step.queue, chain=chain, trace=job.tc)
    return to_json(
        {
            "id": link.id,
            "state": f"{following.index} queued",
            "job_id": step.job_id,
            "queue": Keys(service).queue(step.queue),
            "payload": payload,
        }
    )
