"""Clean-up of what is old."""

from datetime import UTC, datetime, timedelta

from sqlalchemy import delete, select

from ..db import Report
from ..queue import task
from ..resources import Context


@task(cron="0 3 * * *")
async def remove_old_reports(ctx: Context) -> int:
    """Remove reports older than `report_retention_days`, and return how many they were."""
    oldest = datetime.now(UTC) - timedelta(days=ctx.resources.settings.report_retention_days)
    async with ctx.resources.sessions.begin() as session:
        reports = (await session.scalars(select(Report).where(Report.created_at < oldest))).all()
        await session.execute(delete(Report).where(Report.id.in_([r.id for r in reports])))
    for report in reports:
        report.path(ctx.resources.settings).unlink(missing_ok=True)
    return len(reports)
