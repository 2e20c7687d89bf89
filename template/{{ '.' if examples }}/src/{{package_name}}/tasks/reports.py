"""Reports: rendered to a file."""

import asyncio
import csv
import io
import os
from pathlib import Path
from typing import Any
from uuid import UUID

from fpdf import FPDF
from sqlalchemy import func, select, update

from ..db import Report, ReportFormat, ReportStatus, User
from ..queue import task
from ..resources import Context


@task(retries=3, timeout=60)
async def generate_report(ctx: Context, report_id: UUID) -> int:
    """Render a report and store its file; to run it twice does no harm."""
    async with ctx.resources.sessions() as session:
        report = await session.get_one(Report, report_id)
        users = await session.scalar(select(func.count()).select_from(User)) or 0
    asked = f"{report.created_at:%Y-%m-%d %H:%M} UTC"
    rows = [("Report", report.title), ("Requested", asked), ("Users", str(users))]
    render = render_pdf if report.format is ReportFormat.PDF else render_csv
    try:
        content = await asyncio.to_thread(render, rows)
        await asyncio.to_thread(_store, report.path(ctx.resources.settings), content)
    except Exception:
        await _finish(ctx, report_id, status=ReportStatus.FAILED)
        raise
    await _finish(ctx, report_id, status=ReportStatus.READY, size=len(content))
    return len(content)


def render_pdf(rows: list[tuple[str, str]]) -> bytes:
    """Render a heading and a table, with "?" for what is not Latin: `pdf.add_font` has more."""
    (_, title), *lines = rows
    pdf = FPDF()
    pdf.set_title(title)
    pdf.add_page()
    pdf.set_font("Helvetica", "B", 20)
    pdf.multi_cell(0, 10, _latin(title), new_x="LMARGIN", new_y="NEXT")
    pdf.set_font("Helvetica", size=11)
    with pdf.table(first_row_as_headings=False) as table:
        for row in lines:
            table.row([_latin(cell) for cell in row])
    return bytes(pdf.output())


def render_csv(rows: list[tuple[str, str]]) -> bytes:
    """Render the table alone, with a byte order mark so that Excel reads it as UTF-8."""
    text = io.StringIO()
    csv.writer(text).writerows(rows)
    return text.getvalue().encode("utf-8-sig")


def _latin(text: str) -> str:
    return text.encode("latin-1", "replace").decode("latin-1")


def _store(path: Path, content: bytes) -> None:
    """Write a file whole or not at all: a reader never sees a part of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    part.write_bytes(content)
    part.replace(path)


async def _finish(ctx: Context, report_id: UUID, **changes: Any) -> None:
    async with ctx.resources.sessions.begin() as session:
        await session.execute(update(Report).where(Report.id == report_id).values(**changes))
