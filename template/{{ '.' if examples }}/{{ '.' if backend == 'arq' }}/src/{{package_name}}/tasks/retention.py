"""What is removed when it is old; `worker.py` says when this runs."""

from datetime import UTC, datetime, timedelta

from sqlalchemy import delete, select

from ..db import Report
from ..resources import Context
from ..task import task


@task
async def remove_old_reports(ctx: Context) -> int:
    """Remove reports older than `report_retention_days`, and return how many they were."""
    oldest = datetime.now(UTC) - timedelta(days=ctx["settings"].report_retention_days)
    async with ctx["sessions"].begin() as session:
        reports = (await session.scalars(select(Report).where(Report.created_at < oldest))).all()
        await session.execute(delete(Report).where(Report.id.in_([r.id for r in reports])))
    for report in reports:
        report.path(ctx["settings"]).unlink(missing_ok=True)
    return len(reports)
