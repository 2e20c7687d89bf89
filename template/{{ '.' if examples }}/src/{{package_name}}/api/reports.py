"""Reports: asked for here, rendered by a task."""

from contextlib import suppress
from typing import Annotated
from uuid import NAMESPACE_URL, UUID, uuid4, uuid5

from fastapi import APIRouter, Depends, HTTPException, Response
from fastapi.responses import FileResponse
from pydantic import BaseModel
from sqlalchemy import delete
from sqlalchemy.exc import IntegrityError

from ..db import Report, ReportFormat, ReportStatus
from ..job import QueueUnavailableError
from ..tasks.reports import generate_report
from .deps import Ctx, Line, Queue, Session
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
    body: ReportRequest, session: Session, queue: Queue, response: Response
) -> ReportAccepted:
    """Have a report rendered; for a known Idempotency-Key, the one that was asked for first."""
    report_id = uuid5(NAMESPACE_URL, queue.key) if queue.key else uuid4()
    # The worker may look for the row as soon as the job is in the queue.
    with suppress(IntegrityError):
        session.add(Report(id=report_id, title=body.title, format=body.format))
        await session.commit()
    try:
        job = await queue.enqueue(generate_report, report_id=report_id)
    except QueueUnavailableError:
        if not queue.key:
            await session.execute(delete(Report).where(Report.id == report_id))
            await session.commit()
        raise
    return ReportAccepted(report_id=report_id, **accept(job, response).model_dump())


@router.get("/reports/{report_id}", response_model=ReportInfo)
async def describe_report(report: Annotated[Report, Depends(get_report)]) -> Report:
    """Tell a report's status and size."""
    return report


@router.get("/reports/{report_id}/file", response_class=FileResponse)
async def fetch_report(report: Annotated[Report, Depends(get_report)], ctx: Ctx) -> FileResponse:
    """Send a report's file once it is ready."""
    path = report.path(ctx["settings"])
    if report.status is not ReportStatus.READY or not path.is_file():
        raise HTTPException(404, f"The report's file cannot be fetched: it is {report.status}.")
    return FileResponse(path, media_type=MEDIA_TYPES[report.format], filename=path.name)
