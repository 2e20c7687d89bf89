"""A ping, from the request to its answer."""

import httpx2

from .support import RunJobs


async def test_a_ping_is_answered(client: httpx2.AsyncClient, run_jobs: RunJobs) -> None:
    answer = await client.post("/api/v1/pings", json={"message": "hello"})
    assert answer.status_code == 202
    job_id = answer.json()["job_id"]
    assert answer.headers["location"] == f"/api/v1/jobs/{job_id}"
    await run_jobs()
    job = (await client.get(f"/api/v1/jobs/{job_id}")).json()
    assert job["status"] == "complete"
    assert job["result"].startswith("hello: pong, up since 20")


async def test_a_ping_that_is_not_valid(client: httpx2.AsyncClient) -> None:
    answer = await client.post("/api/v1/pings", json={"message": 1})
    assert answer.status_code == 422
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["errors"][0]["location"] == "body.message"
