"""Dead letters: what has failed for good, and running it again."""

from fastapi import APIRouter, HTTPException, Response

from ..dead import DeadLetter, DeadLetters
from ..job import Job
from .deps import Queue
from .jobs import JobAccepted, accept

router = APIRouter(tags=["dead letters"])
NO_LETTER = HTTPException(404, "There is no such dead letter.")


@router.get("/dead")
async def list_dead(queue: Queue) -> list[DeadLetter]:
    """List the jobs that have failed for good last, the newest first."""
    return await DeadLetters(queue).newest()


@router.post("/dead/{job_id}/retry", status_code=202)
async def retry_dead(job_id: str, queue: Queue, response: Response) -> JobAccepted:
    """Run a job again under its id."""
    try:
        if not await DeadLetters(queue).retry(job_id):
            raise NO_LETTER
    except ValueError as error:
        raise HTTPException(409, f"{error}.") from error
    return accept(Job(job_id), response)


@router.delete("/dead/{job_id}", status_code=204)
async def delete_dead(job_id: str, queue: Queue) -> None:
    """Forget a job."""
    if not await DeadLetters(queue).delete(job_id):
        raise NO_LETTER
