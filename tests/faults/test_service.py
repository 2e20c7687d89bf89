"""The service as its operators see it."""

import asyncio
import sqlite3
import sys
import time
from pathlib import Path
from typing import Any

import httpx2
import pytest
from conftest import API_KEY, Authorization, run

from .harness import PATIENCE, Server, Service, enqueue, finish, free_port, until


def test_a_hundred_equal_requests_at_once(example: Path, tmp_path: Path) -> None:
    with (
        Server(port=free_port()) as server,
        Service(example, tmp_path, server.connection_url) as service,
    ):
        api = service.start_api()
        service.start_worker()
        body = {"title": "One of a hundred", "format": "csv"}
        # The API is up, its database is made.
        assert api.get("/jobs/none").status_code == 404

        async def request_all() -> list[httpx2.Response]:
            limits = httpx2.Limits(max_connections=100)
            async with httpx2.AsyncClient(
                base_url=str(api.base_url), limits=limits, timeout=PATIENCE, auth=Authorization()
            ) as client:
                requests = [
                    client.post("reports", json=body, headers={"Idempotency-Key": "the same"})
                    for _ in range(100)
                ]
                return await asyncio.gather(*requests)

        answers = asyncio.run(request_all())
        assert {answer.status_code for answer in answers} <= {200, 202}, answers
        [job_id] = {answer.json()["job_id"] for answer in answers}
        [report_id] = {answer.json()["report_id"] for answer in answers}
        assert finish(api, job_id)["status"] == "complete"
        late = api.post("/reports", json=body, headers={"Idempotency-Key": "the same"})
        assert late.json() == {"job_id": job_id, "report_id": report_id}
        [file] = (service.data / "reports").iterdir()
        assert file.stem == report_id
        with sqlite3.connect(service.data / "my_service.db") as database:
            [[count]] = database.execute("SELECT count(*) FROM reports").fetchall()
        assert count == 1
        other = api.post("/reports", json=body, headers={"Idempotency-Key": "another"})
        assert other.json()["job_id"] != job_id


def test_what_the_service_tells_of_its_queue(skeleton: Path, tmp_path: Path) -> None:
    with (
        Server(port=free_port()) as server,
        Service(
            skeleton, tmp_path, server.connection_url, HEALTH_INTERVAL=1, MAX_PAYLOAD=1000
        ) as service,
    ):
        api, journal = service.start_api(), service.journal

        def ready() -> dict[str, Any]:
            answer = api.get(str(api.base_url).replace("/api/v1/", "/readyz"))
            assert answer.status_code == 200, answer.text
            told: dict[str, Any] = answer.json()
            return told

        assert ready() == {"status": "ready", "depth": 0, "oldest_seconds": None, "workers": 0}
        assert api.post("/pings", json={"message": "x" * 1001}).status_code == 413
        enqueue(api, "work", *[{"key": str(number), "seconds": 0} for number in range(3)])
        enqueued = time.monotonic()
        until(lambda: (ready()["oldest_seconds"] or 0) > 0.5, f"{ready()}")
        told = ready()
        assert (told["depth"], told["workers"]) == (3, 0)
        assert told["oldest_seconds"] < time.monotonic() - enqueued + 1
        worker = service.start_worker()
        journal.wait("end", count=3)
        until(lambda: ready()["workers"] == 1 and ready()["depth"] == 0, f"{ready()}")
        service.run("arq", "--check", "my_service.worker.WorkerSettings")
        worker.kill()
        until(lambda: ready()["workers"] == 0, "a worker that is dead is said to live", patience=10)
        with pytest.raises(AssertionError):
            service.run("arq", "--check", "my_service.worker.WorkerSettings")


@pytest.mark.slow
def test_schemathesis_finds_no_error_of_the_server(example: Path, tmp_path: Path) -> None:
    with (
        Server(port=free_port()) as server,
        Service(example, tmp_path, server.connection_url) as service,
    ):
        api = service.start_api(DOCS="true")
        worker = service.start_worker()
        origin = str(api.base_url).removesuffix("/api/v1/")
        run(
            Path(sys.executable).with_name("schemathesis"),
            "run",
            f"{origin}/openapi.json",
            "--checks=not_a_server_error",
            f"--header=Authorization: Bearer {API_KEY}",
            "--exclude-path-regex=/faults/",
            "--max-time=30",
            "--max-examples=40",
            "--seed=1",
            cwd=tmp_path,
        )
        assert worker.poll() is None
