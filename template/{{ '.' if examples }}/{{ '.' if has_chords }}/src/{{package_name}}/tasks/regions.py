"""Users by region: a report for each, and one that merges them."""

from pydantic import BaseModel
from sqlalchemy import func, select

from ..db import User
from ..queue import task
from ..resources import Context


class RegionReport(BaseModel):
    """A region, and the number of users whose addresses end with its domain."""

    region: str
    users: int


class MergedReport(BaseModel):
    """The reports of all regions, the one with most users first."""

    users: int
    regions: list[RegionReport]


@task(retries=3, timeout=60)
async def report_region(ctx: Context, region: str) -> RegionReport:
    """Report on one region."""
    own = User.email.endswith(f".{region}", autoescape=True)
    async with ctx.resources.sessions() as session:
        users = await session.scalar(select(func.count()).select_from(User).where(own))
    return RegionReport(region=region, users=users or 0)


@task
async def merge_regions(_ctx: Context, reports: list[RegionReport]) -> MergedReport:
    """Merge the reports of all regions."""
    regions = sorted(reports, key=lambda report: (-report.users, report.region))
    return MergedReport(users=sum(report.users for report in reports), regions=regions)
