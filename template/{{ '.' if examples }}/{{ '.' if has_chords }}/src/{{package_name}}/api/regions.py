"""Users by region: a workflow, whose last job has the result."""

from typing import Annotated

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, Field, StringConstraints

from ..tasks.regions import merge_regions, report_region
from .deps import Queue

router = APIRouter(tags=["reports"])
Region = Annotated[str, StringConstraints(pattern=r"^[a-z]{2,20}$")]


class RegionsRequest(BaseModel):
    """The regions to report on, as top-level domains."""

    regions: Annotated[list[Region], Field(min_length=1, max_length=100)]


class WorkflowAccepted(BaseModel):
    """A workflow that will run."""

    workflow_id: str


@router.post("/regional-reports", status_code=202)
async def report_regions(
    body: RegionsRequest, queue: Queue, request: Request, response: Response
) -> WorkflowAccepted:
    """Report on each region at the same time, then merge what was found."""
    steps = [report_region.s(region=region) for region in dict.fromkeys(body.regions)]
    workflow_id = await queue.chord(steps, merge_regions.s())
    path = f"/api/v1/workflows/{workflow_id}"
    response.headers["Location"] = request.scope["root_path"] + path
    return WorkflowAccepted(workflow_id=workflow_id)
