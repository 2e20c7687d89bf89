"""Workflows: the state of chains, groups and chords."""

from fastapi import APIRouter, HTTPException

from ..queue import Workflow
from .deps import Queue

router = APIRouter(tags=["workflows"])


@router.get("/workflows/{workflow_id}")
async def get_workflow(workflow_id: str, queue: Queue) -> Workflow:
    """Return a workflow's status and its jobs, of which a failed one says why it ended."""
    workflow = await queue.workflow(workflow_id)
    if workflow is None:
        raise HTTPException(404, "There is no such workflow, or it has expired.")
    return workflow
