"""Reports: rendered to a file."""

import asyncio
import csv
import io
import os
from importlib.resources import files
from pathlib import Path
from uuid import UUID

from fpdf import FPDF
from fpdf.fonts import TTFFont
from sqlalchemy import func, select, update

from ..db import Report, ReportFormat, User
from ..queue import task
from ..resources import Context

# Latin, Greek and Cyrillic.
NOTO_SANS = Path(str(files("fontpkg_noto_sans"))) / "files" / "NotoSans[wdth,wght].ttf"
# A spreadsheet takes a cell that begins with one of these (some in a full-width form) for a formula.
FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")


@task(retries=3, timeout=60)
async def generate_report(ctx: Context, report_id: UUID) -> int:
    """Render a report, store its file, and return its size; safe to repeat."""
    settings = ctx.resources.settings
    async with ctx.resources.sessions() as session:
        report = await session.get_one(Report, report_id)
        users = await session.scalar(select(func.count()).select_from(User)) or 0
    requested = f"{report.created_at:%Y-%m-%d %H:%M} UTC"
    rows = [("Report", report.title), ("Requested", requested), ("Users", str(users))]
    if report.format is ReportFormat.PDF:
        content = await asyncio.to_thread(render_pdf, rows, settings.report_fonts)
    else:
        content = render_csv(rows)
    await asyncio.to_thread(_store, report.path(settings), content)
    async with ctx.resources.sessions.begin() as session:
        values = {"size": len(content)}
        await session.execute(update(Report).where(Report.id == report_id).values(values))
    return len(content)


def render_pdf(rows: list[tuple[str, str]], more_fonts: list[Path]) -> bytes:
    """Render a heading and a table.

    The text is set in Noto Sans, and in more fonts where a character needs one; U+FFFD stands for a
    character that no font has.
    """
    (_, title), *lines = rows
    pdf = FPDF()
    for path in (NOTO_SANS, *more_fonts):
        pdf.add_font(path.stem, fname=path)
    pdf.set_fallback_fonts([path.stem for path in more_fonts])
    pdf.set_title(title)
    pdf.add_page()
    pdf.set_font(NOTO_SANS.stem, size=20)
    pdf.multi_cell(0, 10, _printable(pdf, title), align="L", new_x="LMARGIN", new_y="NEXT")
    pdf.set_font(NOTO_SANS.stem, size=11)
    with pdf.table(first_row_as_headings=False) as table:
        for row in lines:
            table.row([_printable(pdf, cell) for cell in row])
    return bytes(pdf.output())


def render_csv(rows: list[tuple[str, str]]) -> bytes:
    """Render the table alone, with a byte order mark so that Excel reads it as UTF-8."""
    text = io.StringIO()
    csv.writer(text).writerows([_inert(cell) for cell in row] for row in rows)
    return text.getvalue().encode("utf-8-sig")


def _printable(pdf: FPDF, text: str) -> str:
    fonts = [font for font in pdf.fonts.values() if isinstance(font, TTFFont)]
    return "".join(c if any(ord(c) in font.cmap for font in fonts) else "\ufffd" for c in text)


def _inert(cell: str) -> str:
    """Return a cell that no spreadsheet takes for a formula."""
    return f"'{cell}" if cell.startswith(FORMULA_STARTS) else cell


def _store(path: Path, content: bytes) -> None:
    """Write a file whole or not at all: a reader never sees a part of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    part.write_bytes(content)
    part.replace(path)
