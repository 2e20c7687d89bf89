"""Reports: requested here, rendered by a task."""

import enum
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Depends, HTTPException
from fastapi.responses import FileResponse
from pydantic import BaseModel
from sqlalchemy import select
from sqlalchemy.exc import IntegrityError

from ..db import Report, ReportFormat
from ..queue import QueueUnavailableError
from ..tasks.reports import generate_report
from .deps import AppResources, CurrentClient, IdempotencyKey, Line, Queue, Session
from .jobs import Accept, JobAccepted

MEDIA_TYPES = {ReportFormat.PDF: "application/pdf", ReportFormat.CSV: "text/csv; charset=utf-8"}
FILE: dict[int | str, Any] = {200: {"content": {each: {} for each in MEDIA_TYPES.values()}}}
router = APIRouter(tags=["reports"])


class ReportStatus(enum.StrEnum):
    """The state of a report: its file exists, will exist, or will not."""

    PENDING = "pending"
    READY = "ready"
    FAILED = "failed"


class ReportRequest(BaseModel):
    """A report to render."""

    title: Line
    format: ReportFormat


class ReportAccepted(JobAccepted):
    """A report that will be rendered."""

    report_id: UUID


class ReportInfo(ReportRequest):
    """A report without its file; `size` is in bytes."""

    id: UUID
    status: ReportStatus
    size: int | None


async def get_report(report_id: str, session: Session, client: CurrentClient) -> Report:
    """Return a report of the client by an id that may not be one."""
    try:
        report = await session.get(Report, UUID(report_id))
    except ValueError:
        report = None
    if report is None or report.owner != client.owner:
        raise HTTPException(404, "There is no such report.")
    return report


@router.post("/reports", status_code=202)
async def request_report(  # noqa: PLR0913, PLR0917 - what FastAPI is to pass
    body: ReportRequest,
    client: CurrentClient,
    session: Session,
    queue: Queue,
    accept: Accept,
    idempotency_key: IdempotencyKey = None,
) -> ReportAccepted:
    """Render a report; for a known Idempotency-Key, answer with the report of the first request."""
    report = Report(
        owner=client.owner, title=body.title, format=body.format, idempotency_key=idempotency_key
    )
    session.add(report)
    try:
        # The worker may look for the row as soon as the job is in the queue.
        await session.commit()
    except IntegrityError:
        await session.rollback()
        known = select(Report).where(
            Report.owner == client.owner, Report.idempotency_key == idempotency_key
        )
        report = (await session.scalars(known)).one()
        if (report.title, report.format) != (body.title, body.format):
            raise HTTPException(422, "The Idempotency-Key was used with another request.") from None
    try:
        receipt = await queue.once(idempotency_key).enqueue(generate_report, report_id=report.id)
    except QueueUnavailableError as error:
        if not (error.maybe_enqueued or idempotency_key):
            await session.delete(report)
            await session.commit()
        raise
    report.job_id = receipt.job_id
    await session.commit()
    return ReportAccepted(report_id=report.id, job_id=accept(receipt).job_id)


@router.get("/reports/{report_id}")
async def describe_report(
    report: Annotated[Report, Depends(get_report)], session: Session, queue: Queue
) -> ReportInfo:
    """Return a report's status and size; a report without a file has failed with its job."""
    status = ReportStatus.PENDING
    if report.size is None and report.job_id is not None:
        job = await queue.job(report.job_id)
        if job is None or job.finished_at is not None:
            status = ReportStatus.FAILED
            await session.refresh(report)  # the job may have finished since the row was read
    if report.size is not None:
        status = ReportStatus.READY
    return ReportInfo(
        id=report.id, title=report.title, format=report.format, status=status, size=report.size
    )


@router.get("/reports/{report_id}/file", response_class=FileResponse, responses=FILE)
async def fetch_report(
    report: Annotated[Report, Depends(get_report)], resources: AppResources
) -> FileResponse:
    """Send a report's file once it is ready."""
    path = report.path(resources.settings)
    if report.size is None or not path.is_file():
        raise HTTPException(404, "The report has no file: see its status.")
    return FileResponse(path, media_type=MEDIA_TYPES[report.format], filename=path.name)
