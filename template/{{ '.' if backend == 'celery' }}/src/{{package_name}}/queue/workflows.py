"""Workflows: Celery's chain, group and chord, whose jobs have records and whose state is known."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from celery import chain, chord, group
from pydantic_core import to_json

from .models import Job, JobStatus, Workflow
from .publisher import Publisher
from .settings import QueueSettings
from .store import UNKNOWN_CANVAS, NewJob, Store
from .task import Step


@dataclass(frozen=True, slots=True)
class Part:
    """A step, the id of its job, and the trace that the workflow is sent in."""

    step: Step[Any, Any]
    job_id: str
    trace: str


@dataclass(frozen=True, slots=True)
class Draft:
    """A workflow that is not published: the first `at_once` of its parts are enqueued at once."""

    kind: str
    parts: list[Part]
    at_once: int
    canvas: Any


Kind = Callable[["Workflows", list[Part]], Draft]


class Workflows:
    """Starts workflows, and reports their state.

    Args:
        app: The Celery app.
        publisher: Sends their messages.
        store: Has the records.
        settings: The queue's settings.
    """

    def __init__(
        self, app: Any, publisher: Publisher, store: Store, settings: QueueSettings
    ) -> None:
        self._app = app
        self._publisher = publisher
        self._store = store
        self._settings = settings

    def chain(self, parts: list[Part]) -> Draft:
        """Draft a chain."""
        _check(parts[:1])
        signatures = [self._signature(part) for part in parts]
        return Draft("chain", parts, 1, chain(*signatures, app=self._app))

    def group(self, parts: list[Part]) -> Draft:
        """Draft a group."""
        _check(parts)
        signatures = [self._signature(part) for part in parts]
        return Draft("group", parts, len(parts), group(*signatures, app=self._app))

    def chord(self, parts: list[Part]) -> Draft:
        """Draft a chord; the last part is its body."""
        *header, body = parts
        _check(header)
        signatures = [self._signature(part) for part in header]
        canvas = chord(signatures, self._signature(body), app=self._app)
        return Draft("chord", parts, len(header), canvas)

    def start(self, workflow_id: str, draft: Draft) -> None:
        """Store a workflow and its first jobs, and publish it.

        Raises:
            QueueUnavailableError: The broker did not confirm it; what may have been sent never runs.
        """
        names = [(part.step.task.name, part.job_id) for part in draft.parts]
        first = [
            NewJob(
                part.job_id,
                part.step.task.name,
                part.step.task.queue,
                to_json(part.step.arguments).decode(),
                canvas=UNKNOWN_CANVAS,
                trace=part.trace,
            )
            for part in draft.parts[: draft.at_once]
        ]
        self._store.add_workflow(workflow_id, draft.kind, names)
        self._store.add(first)
        try:
            self._publisher.send(lambda options: draft.canvas.apply_async(**options))
        except BaseException:
            self._store.withdraw([job.id for job in first])
            self._store.drop_workflow(workflow_id)
            raise

    def state(self, workflow_id: str) -> Workflow | None:
        """Return the state of a workflow."""
        found = self._store.workflow(workflow_id)
        if found is None:
            return None
        kind, tasks, job_ids = found
        jobs = self._store.jobs_of(job_ids)
        status = _status(jobs, len(tasks))
        return Workflow(workflow_id=workflow_id, kind=kind, status=status, tasks=tasks, jobs=jobs)

    def _signature(self, part: Part) -> Any:
        step = part.step
        headers = {"result_argument": step.result_argument, "trace": part.trace}
        return self._app.signature(
            step.task.name,
            kwargs=json.loads(to_json(step.arguments)),
            task_id=part.job_id,
            queue=self._settings.celery_queue(step.task.queue),
            headers=headers,
        )


def _check(parts: list[Part]) -> None:
    for part in parts:
        part.step.task.arguments.decode((), part.step.arguments)


def _status(jobs: list[Job], steps: int) -> JobStatus:
    statuses = {job.status for job in jobs}
    for status in (JobStatus.FAILED, JobStatus.ABORTED):
        if status in statuses:
            return status
    if statuses == {JobStatus.COMPLETE} and len(jobs) == steps:
        return JobStatus.COMPLETE
    begun = {JobStatus.COMPLETE, JobStatus.IN_PROGRESS} & statuses
    return JobStatus.IN_PROGRESS if begun else JobStatus.QUEUED
