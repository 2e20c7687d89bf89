"""Retention: removes old reports and webhooks."""

import asyncio
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path

from sqlalchemy import delete, select

from ..db import Report, WebhookEvent
from ..queue import task
from ..resources import Context

BATCH = 1000  # reports in one transaction


@task(cron="0 3 * * *", retries=3)
async def remove_old_reports(ctx: Context) -> int:
    """Remove reports older than `report_retention_days`, and return their number."""
    settings = ctx.resources.settings
    oldest = datetime.now(UTC) - timedelta(days=settings.report_retention_days)
    removed = 0
    while True:
        async with ctx.resources.sessions.begin() as session:
            old = select(Report).where(Report.created_at < oldest).limit(BATCH)
            reports = (await session.scalars(old)).all()
            # The files first: what a crash leaves over has a row, and is removed next time.
            await asyncio.to_thread(_remove, [report.path(settings) for report in reports])
            rows = delete(Report).where(Report.id.in_([report.id for report in reports]))
            await session.execute(rows.execution_options(synchronize_session=False))
        removed += len(reports)
        if len(reports) < BATCH:
            return removed


@task(cron="15 3 * * *", retries=3)
async def remove_old_webhooks(ctx: Context) -> None:
    """Remove webhooks that were processed more than `webhook_retention_days` ago.

    One that is sent again after that is processed again.
    """
    days = ctx.resources.settings.webhook_retention_days
    oldest = datetime.now(UTC) - timedelta(days=days)
    async with ctx.resources.sessions.begin() as session:
        await session.execute(delete(WebhookEvent).where(WebhookEvent.processed_at < oldest))


def _remove(paths: Iterable[Path]) -> None:
    for path in paths:
        path.unlink(missing_ok=True)
