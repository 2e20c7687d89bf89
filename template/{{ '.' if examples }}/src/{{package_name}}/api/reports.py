"""Reports: asked for here, rendered by a task."""

from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Depends, HTTPException, Response
from fastapi.responses import FileResponse
from pydantic import BaseModel
from sqlalchemy import select
from sqlalchemy.exc import IntegrityError

from ..db import Report, ReportFormat, ReportStatus
from ..queue import QueueUnavailableError
from ..tasks.reports import generate_report
from .deps import AppResources, IdempotencyKey, Line, Queue, Session
from .jobs import JobAccepted, accept

MEDIA_TYPES = {ReportFormat.PDF: "application/pdf", ReportFormat.CSV: "text/csv; charset=utf-8"}
router = APIRouter(tags=["reports"])


class ReportRequest(BaseModel):
    """Which report to render."""

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


async def get_report(report_id: str, session: Session) -> Report:
    """Find a report by what may or may not be its id."""
    try:
        report = await session.get(Report, UUID(report_id))
    except ValueError:
        report = None
    if report is None:
        raise HTTPException(404, "There is no such report.")
    return report


@router.post("/reports", status_code=202)
async def request_report(
    body: ReportRequest,
    session: Session,
    queue: Queue,
    response: Response,
    idempotency_key: IdempotencyKey = None,
) -> ReportAccepted:
    """Render a report; for a known Idempotency-Key, answer with the report of the first request."""
    report = Report(title=body.title, format=body.format, idempotency_key=idempotency_key)
    session.add(report)
    try:
        # The worker may look for the row as soon as the job is in the queue.
        await session.commit()
    except IntegrityError:
        await session.rollback()
        known = select(Report).where(Report.idempotency_key == idempotency_key)
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
    return ReportAccepted(report_id=report.id, **accept(receipt, response).model_dump())


@router.get("/reports/{report_id}", response_model=ReportInfo)
async def describe_report(report: Annotated[Report, Depends(get_report)]) -> Report:
    """Tell a report's status and size."""
    return report


@router.get("/reports/{report_id}/file", response_class=FileResponse)
async def fetch_report(report: Annotated[Report, Depends(get_report)], resources: AppResources) -> FileResponse:
    """Send a report's file once it is ready."""
    path = report.path(resources.settings)
    if report.status is not ReportStatus.READY or not path.is_file():
        raise HTTPException(404, f"The report's file cannot be fetched: it is {report.status}.")
    return FileResponse(path, media_type=MEDIA_TYPES[report.format], filename=path.name)
