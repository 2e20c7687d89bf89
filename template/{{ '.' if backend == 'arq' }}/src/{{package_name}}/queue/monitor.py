"""The monitor: what operators see of the jobs in Redis, and what they do with them."""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from itertools import chain
from operator import itemgetter
from typing import TypeVar

from arq import ArqRedis
from pydantic import ValidationError
from pydantic_core import to_json

from .dead import DeadJobs, dead_job
from .documents import StoredBeginning, StoredJob, read_number, to_datetime
from .indexes import FINAL, MOST_ENTRIES, Entry, Indexes, as_text, pairs, read_token
from .keys import ATTEMPTS, IN_PROGRESS, JOB, RESULT
from .models import JobStatus
from .monitoring import (
    MINUTES,
    Histogram,
    JobDetails,
    ListedJob,
    Minute,
    Overview,
    PeriodicTask,
    QueueState,
    RunningJob,
    TaskFigures,
    WorkerState,
)
from .settings import LIFETIME, QueueSettings
from .task import DEFAULT_QUEUE

T = TypeVar("T")
RUNNING_SHOWN = 200  # of all workers
MOST_FIELDS = 20_000  # of the figures
BESIDE = 100_000  # bytes of a document beside its arguments and its result
HISTOGRAMS = ("duration", "wait")


class Monitor:
    """Shows operators the jobs of this service, and retries, deletes and pauses for them.

    It knows the jobs of all owners, but not what ARQ's own worker runs and has run.

    Args:
        redis: The client.
        settings: The queue's settings.
        dead: The dead letter queue.
        timeout: Seconds to wait for Redis; None for as long as it takes to answer.
    """

    def __init__(
        self, redis: ArqRedis, settings: QueueSettings, dead: DeadJobs, timeout: float | None
    ) -> None:
        self._settings = settings
        self._dead = dead
        self._indexes = Indexes(redis, settings, timeout)
        self._keys = self._indexes.keys

    async def overview(self) -> Overview:
        """Return the state of the queue; of the running jobs, the 200 that began first."""
        now_ms, running = await self._indexes.read_running()
        queues, due = await self._read_queues(now_ms, running)
        keys = self._keys
        last = now_ms // 60_000
        minutes = range(last - MINUTES + 1, last + 1)
        lifetime_ms = LIFETIME * self._settings.health_interval * 1000
        keep_ms = self._settings.keep_dead * 1000
        dead, complete, failed, names, workers, schedules, raw_figures = await self._indexes.ask(
            ("ZCOUNT", keys.dead, f"{now_ms - keep_ms:.0f}", "+inf"),
            ("MGET", *(keys.minute(each, JobStatus.COMPLETE) for each in minutes)),
            ("MGET", *(keys.minute(each, JobStatus.FAILED) for each in minutes)),
            ("ZRANGE", keys.tasks, 0, MOST_ENTRIES - 1),
            ("ZRANGE", keys.workers, f"{now_ms - lifetime_ms:.0f}", "+inf", "BYSCORE"),
            ("HRANDFIELD", keys.cron, MOST_ENTRIES, "WITHVALUES"),
            ("HRANDFIELD", keys.figures, MOST_FIELDS, "WITHVALUES"),
        )
        figures = _read_figures(raw_figures)
        deferred = max(0, sum(each.waiting for each in queues) - due)
        return Overview(
            counts={
                JobStatus.DEFERRED: deferred,
                JobStatus.QUEUED: due,
                JobStatus.IN_PROGRESS: len(running),
                **{
                    status: sum(each.finished.get(status, 0) for each in figures.values())
                    for status in FINAL
                },
            },
            dead=dead or 0,
            minutes=[
                Minute(
                    start=datetime.fromtimestamp(60 * number, UTC),
                    complete=read_number(done),
                    failed=read_number(lost),
                )
                for number, done, lost in zip(minutes, complete, failed, strict=True)
            ],
            queues=queues,
            workers=await self._describe_workers(map(as_text, workers or []), running),
            periodic=list(_read_schedules(pairs(schedules))),
            tasks=sorted(figures.keys() | set(map(as_text, names or []))),
        )

    async def jobs(
        self,
        *,
        status: JobStatus | None = None,
        task: str | None = None,
        search: str = "",
        limit: int = 50,
    ) -> list[ListedJob]:
        """Return jobs without their results: running ones, waiting ones, then finished ones.

        Running jobs come in the order in which they began, waiting ones in that in which they are
        due, finished ones the newest first. It knows 1,000 jobs of each index: those of each queue
        that are due first, and those that have finished or died last. Finished jobs are listed while
        their results are kept; failed ones are the dead jobs.

        Args:
            status: Only jobs in this state.
            task: Only jobs of this task.
            search: Only the job of this id, and jobs that have this text in their id, the name of
                their task or their arguments as JSON, in upper or lower case. Of a stored job, the
                first 2,048 bytes are searched.
            limit: At most so many.
        """
        groups = await self._read_groups(status, all_dead=bool(task or search))
        if not (task or search):
            groups = _share(groups, limit)
        beginnings = iter(await self._indexes.read_beginnings(list(chain(*groups))))
        found: list[list[ListedJob]] = []
        known: set[str] = set()
        if search and (exact := await self.details(search)):
            known.add(exact.job_id)
            if status in (None, exact.status) and task in (None, exact.function):
                shown = ListedJob.model_fields.keys() - {"result"}
                found.append([ListedJob(**exact.model_dump(include=shown))])
        for group in groups:
            found.append([])
            for entry, document in zip(group, beginnings, strict=False):
                begins = StoredBeginning.read(document)
                expired = not document and entry.status in FINAL
                if expired or entry.job_id in known or not _is_wanted(entry, begins, task, search):
                    continue
                known.add(entry.job_id)
                found[-1].append(_describe(entry, begins))
        return list(chain(*_share(found, limit)))

    async def details(self, job_id: str) -> JobDetails | None:
        """Return all that is known of a job, or None if it is unknown or has expired."""
        most = self._settings.max_payload + self._settings.max_result + BESIDE
        prefixes = self._keys.dead_job(""), RESULT, JOB, IN_PROGRESS, ATTEMPTS
        queues = self._indexes.queues
        (seconds, micro), died, held, *found = await self._indexes.ask(
            ("TIME",),
            ("ZSCORE", self._keys.dead, job_id),
            ("HGET", self._keys.running, job_id),
            *(("GETRANGE", prefix + job_id, 0, most) for prefix in prefixes),
            *(("ZSCORE", key, job_id) for key in queues.values()),
        )
        dead, result, stored, token, attempts, *scores = found
        if document := dead or result:
            details = JobDetails(**dead_job(job_id, document).model_dump(), dead=died is not None)
            with suppress(ValidationError):
                details.queue = StoredJob.model_validate_json(document).q or DEFAULT_QUEUE
            return details
        details = JobDetails(job_id=job_id, status=JobStatus.QUEUED)
        due_ms = 0.0
        for queue, score in zip(queues, scores, strict=True):
            if score is not None:
                details.queue, due_ms = queue, float(score)
                details.due_at = to_datetime(due_ms)
        if details.queue is None:
            return None
        details.attempts = read_number(attempts)
        if token:
            details.status, details.due_at = JobStatus.IN_PROGRESS, None
            details.started_at = to_datetime(read_token(token)[2])
        elif due_ms > seconds * 1000 + micro / 1000 and not (held or b"").startswith(b"lost:"):
            details.status = JobStatus.DEFERRED
        with suppress(ValidationError):
            job = StoredJob.model_validate_json(stored or b"")
            details.function, details.enqueued_at = job.f, to_datetime(job.et)
            details.positional, details.arguments = job.a, job.k
        return details

    async def retry(self, job_id: str) -> bool:
        """Enqueue a dead job again, under its id; return False if there is no such dead job.

        Raises:
            ValueError: What the job was to do is not known.
        """
        return await self._dead.retry(job_id)

    async def delete(self, job_id: str) -> bool:
        """Forget a dead job; return False if there is no such dead job."""
        return await self._dead.delete(job_id)

    async def pause(self, queue: str) -> None:
        """Begin no more jobs of a queue; those that run go on.

        Raises:
            ValueError: There is no such queue.
        """
        await self._indexes.ask(("SADD", self._keys.paused, self._key(queue)))

    async def resume(self, queue: str) -> None:
        """Begin the jobs of a queue again.

        Raises:
            ValueError: There is no such queue.
        """
        key = self._key(queue)
        await self._indexes.ask(
            ("SREM", self._keys.paused, key),
            ("LPUSH", f"{key}:wake", 1),
            ("LTRIM", f"{key}:wake", 0, 0),
        )

    async def figures(self) -> dict[str, TaskFigures]:
        """Return the figures of each task by its name; jobs of unknown tasks are under "?"."""
        command = ("HRANDFIELD", self._keys.figures, MOST_FIELDS, "WITHVALUES")
        return _read_figures(*await self._indexes.ask(command))

    def _key(self, queue: str) -> str:
        if queue not in self._indexes.queues:
            raise ValueError(f"QUEUES does not name {queue!r}")
        return self._indexes.queues[queue]

    async def _read_queues(self, now_ms: int, running: list[Entry]) -> tuple[list[QueueState], int]:
        """Return the state of each queue, and how many jobs are due in all of them."""
        names, keys = [*self._indexes.queues], [*self._indexes.queues.values()]
        pauses, *replies = await self._indexes.ask(
            ("SMISMEMBER", self._keys.paused, *keys),
            *(("ZCARD", key) for key in keys),
            *(("ZCOUNT", key, "-inf", now_ms) for key in keys),
            *(
                ("ZRANGE", key, "-inf", now_ms, "BYSCORE", "LIMIT", 0, 1, "WITHSCORES")
                for key in keys
            ),
        )
        sizes, due, first = (replies[i : i + len(keys)] for i in range(0, 3 * len(keys), len(keys)))
        queues: list[QueueState] = []
        for place, name in enumerate(names):
            here = sum(each.queue == name for each in running)
            oldest = [now_ms - float(score) for _, score in pairs(first[place])]
            queues.append(
                QueueState(
                    name=name,
                    waiting=max(0, (sizes[place] or 0) - here),
                    running=here,
                    oldest_seconds=oldest[0] / 1000 if oldest else None,
                    paused=bool(pauses and pauses[place]),
                )
            )
        return queues, sum(each or 0 for each in due)

    async def _describe_workers(
        self, names: Iterable[str], running: list[Entry]
    ) -> list[WorkerState]:
        workers = {name: list[RunningJob]() for name in names}
        by_id = {name.rpartition(":")[2]: jobs for name, jobs in workers.items()}
        shown = [each for each in running if each.worker in by_id][:RUNNING_SHOWN]
        beginnings = await self._indexes.read_beginnings(shown)
        for entry, document in zip(shown, beginnings, strict=True):
            job = _describe(entry, StoredBeginning.read(document))
            by_id[entry.worker].append(
                RunningJob(job_id=job.job_id, function=job.function, started_at=job.started_at)
            )
        return [WorkerState(name=name, jobs=jobs) for name, jobs in workers.items()]

    async def _read_groups(self, status: JobStatus | None, *, all_dead: bool) -> list[list[Entry]]:
        """Return the jobs of one status, or those that run, wait and have finished."""
        now_ms, running = await self._indexes.read_running()
        if status is JobStatus.IN_PROGRESS:
            return [running]
        waiting, finished, dead = await self._indexes.read_others(now_ms, running)
        if status is JobStatus.FAILED:
            return [dead]
        if status is None:
            return [running, waiting, finished + dead if all_dead else finished]
        return [[each for each in waiting + finished if each.status is status]]


def _share(groups: list[list[T]], limit: int) -> list[list[T]]:
    """Cut groups to a number of items in all, each to the same number where it has so many."""
    shared: list[list[T]] = []
    for place, group in enumerate(groups):
        others = groups[place + 1 :]
        share = max(limit // (1 + len(others)), limit - sum(map(len, others)))
        shared.append(group[:share])
        limit -= len(shared[-1])
    return shared


def _is_wanted(entry: Entry, stored: StoredBeginning | None, task: str | None, search: str) -> bool:
    function = stored.f if stored else entry.task
    if task not in (None, function, entry.task):
        return False
    arguments = to_json((stored.a, stored.k)).decode() if stored else ""
    texts = entry.job_id, function or "", arguments
    return not search or any(search.casefold() in each.casefold() for each in texts)


def _describe(entry: Entry, stored: StoredBeginning | None) -> ListedJob:
    stored = stored or StoredBeginning(f=entry.task)
    job = ListedJob(
        job_id=entry.job_id,
        status=entry.status,
        function=stored.f,
        error=stored.error(),
        attempts=entry.attempts or stored.t or 0,
        enqueued_at=to_datetime(stored.et),
        started_at=to_datetime(stored.st),
        finished_at=to_datetime(stored.ft),
    )
    if entry.status is JobStatus.IN_PROGRESS:
        job.started_at = to_datetime(entry.moment_ms)
    elif entry.status is JobStatus.FAILED:
        job.finished_at = job.finished_at or to_datetime(entry.moment_ms)
    elif entry.status not in FINAL:
        job.due_at = to_datetime(entry.moment_ms)
    return job


def _read_schedules(entries: Iterable[tuple[bytes, bytes]]) -> Iterator[PeriodicTask]:
    for name, entry in sorted(entries, key=itemgetter(1)):
        due_ms, _, fields = as_text(entry).partition(" ")
        if next_run := to_datetime(read_number(due_ms.encode())):
            yield PeriodicTask(function=as_text(name), schedule=fields, next_run=next_run)


def _read_figures(reply: list[bytes] | None) -> dict[str, TaskFigures]:
    figures: dict[str, TaskFigures] = defaultdict(TaskFigures)
    for field, raw_value in pairs(reply):
        first, _, last = as_text(field).rpartition(":")
        value = read_number(raw_value)
        task, _, kind = first.rpartition(":")
        if last in FINAL:
            figures[first].finished[JobStatus(last)] = value
        elif kind in HISTOGRAMS:
            histogram: Histogram = getattr(figures[task], kind)
            if last == "sum":
                histogram.sum = value / 1000
            elif last.isdecimal() and int(last) < len(histogram.counts):
                histogram.counts[int(last)] = value
    return dict(figures)
