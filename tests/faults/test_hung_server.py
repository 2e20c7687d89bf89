"""A server that hangs: it has everybody's connections, and answers nobody."""

import asyncio
import itertools
import json
import threading
import time
from pathlib import Path
from typing import Any

import httpx2
import pytest
from conftest import Authorization

from .harness import PATIENCE, Server, Service, enqueue, free_port, ready, stopped, until


def request_all(
    api: httpx2.Client, requests: list[tuple[str, str, dict[str, Any]]]
) -> list[tuple[httpx2.Response, float]]:
    """Send requests at the same time; return each answer with the seconds it took."""

    async def send() -> list[tuple[httpx2.Response, float]]:
        limits = httpx2.Limits(max_connections=len(requests))
        async with httpx2.AsyncClient(
            base_url=str(api.base_url), limits=limits, timeout=PATIENCE, auth=Authorization()
        ) as client:

            async def one(
                method: str, path: str, options: dict[str, Any]
            ) -> tuple[httpx2.Response, float]:
                start = time.monotonic()
                answer = await client.request(method, path, **options)
                return answer, time.monotonic() - start

            return await asyncio.gather(*(one(*each) for each in requests))

    return asyncio.run(send())


def test_every_answer_of_a_hung_server_comes_in_time(skeleton: Path, tmp_path: Path) -> None:
    with (
        Server(port=free_port()) as server,
        Service(skeleton, tmp_path, server.connection_url, ENQUEUE_TIMEOUT=1) as service,
    ):
        api, journal = service.start_api(), service.journal
        [known] = enqueue(api, "work", {"key": "known", "seconds": 0})
        origin = str(api.base_url).removesuffix("/api/v1/")
        call = [{"key": "hung", "seconds": 0}]
        requests: list[tuple[str, str, dict[str, Any]]] = [
            ("POST", "/faults/work", {"json": call}),
            ("POST", "/faults/work", {"json": call, "params": {"idempotency_key": "k"}}),
            ("POST", "/faults", {"params": {"number": 1}}),
            ("GET", f"/jobs/{known}", {}),
            ("DELETE", f"/jobs/{known}", {}),
            ("GET", "/dead", {}),
            ("POST", f"/dead/{known}/retry", {}),
            ("DELETE", f"/dead/{known}", {}),
            ("GET", f"/workflows/{known}", {}),
            ("GET", f"{origin}/readyz", {}),
        ]
        request_all(api, requests)  # connections are open, the server's clock is known
        for _ in range(2):
            with stopped(server.pid):
                answers = request_all(api, requests * 6)
            assert {answer.status_code for answer, _ in answers} == {503}
            assert all("retry-after" in answer.headers for answer, _ in answers)
            slow = {f"{a.request.method} {a.request.url.path}": s for a, s in answers if s > 2}
            assert not slow
            assert request_all(api, [("GET", f"{origin}/healthz", {})])[0][0].status_code == 200
            # It goes on at once, with all the connections that it may have.
            answers = request_all(api, [("POST", "/faults/work", {"json": call})] * 100)
            assert {answer.status_code for answer, _ in answers} == {202}
            assert ready(api).status_code == 200
        service.start_worker()
        journal.wait("end", "hung", count=200)


def test_a_server_that_hangs_while_jobs_are_enqueued(skeleton: Path, tmp_path: Path) -> None:
    answers: dict[str, httpx2.Response] = {}
    slowest = 0.0
    numbers = itertools.count()
    stop = threading.Event()
    with (
        Server(port=free_port()) as server,
        Service(skeleton, tmp_path, server.connection_url, ENQUEUE_TIMEOUT=1) as service,
    ):
        api, journal = service.start_api(), service.journal
        service.start_workers(1)

        def post(key: str) -> httpx2.Response:
            call = [{"key": key, "seconds": 0}]
            return client.post("/faults/work", json=call, params={"idempotency_key": key})

        def request() -> None:
            nonlocal slowest
            while not stop.is_set():
                key = str(next(numbers))
                start = time.monotonic()
                answers[key] = post(key)
                slowest = max(slowest, time.monotonic() - start)

        with httpx2.Client(base_url=api.base_url, timeout=PATIENCE, auth=Authorization()) as client:
            threads = [threading.Thread(target=request) for _ in range(8)]
            for thread in threads:
                thread.start()
            try:
                for _ in range(4):
                    journal.wait("end", count=len(journal.notes("end")) + 50)
                    with stopped(server.pid):
                        time.sleep(2.5)
                journal.wait("end", count=len(journal.notes("end")) + 50)
            finally:
                stop.set()
                for thread in threads:
                    thread.join()
            assert {answer.status_code for answer in answers.values()} == {202, 503}
            assert slowest < 2
            refused = [key for key, answer in answers.items() if answer.status_code == 503]
            accepted = answers.keys() - set(refused)
            journal.wait_for("end", accepted)
            ran = {note.key for note in journal.notes("begin")}
            uncertain = {key for key in refused if "may have been enqueued" in answers[key].text}
            assert not (ran - accepted - uncertain), "a job that was refused has run"
            # Where it is uncertain, asking again with the same key is safe.
            for key in refused:
                assert post(key).status_code == 202
            journal.wait_for("end", set(refused))
            assert all(len(runs) == 1 for runs in journal.runs().values())


@pytest.mark.slow
def test_workers_of_a_hung_server(skeleton: Path, tmp_path: Path) -> None:
    lease = 5
    with (
        Server(port=free_port()) as server,
        Service(
            skeleton, tmp_path, server.connection_url, JOB_LEASE=lease, QUEUES='{"default": 10}'
        ) as service,
    ):
        api, journal, redis = service.start_api(), service.journal, server.client()
        workers = service.start_workers(2)
        long = {f"long-{number}" for number in range(3)}
        enqueue(api, "work", *[{"key": key, "seconds": lease + 2} for key in sorted(long)])
        keys = {f"short-{number}" for number in range(200)}
        enqueue(api, "work", *[{"key": key, "seconds": 0.2} for key in sorted(keys)])
        journal.wait("end", count=20)
        with stopped(server.pid):
            time.sleep(lease + 3)
        journal.wait_for("end", keys | long)
        until(lambda: redis.zcard("my-service") == 0, "jobs are left in the queue")
        assert not redis.hlen("my-service:running")
        journal.assert_never_twice_at_once()
        assert not redis.zcard("my-service:dead")
        assert all(worker.poll() is None for worker in workers)
        results = redis.mget(redis.keys("arq:result:*"))
        assert len(results) == len(keys | long)
        assert {json.loads(result)["t"] for result in results} <= {1, 2}
        for worker in workers:
            log = service.log(worker).read_text()
            assert log.count("Redis is unavailable") == log.count("Redis is back") == 1, log


@pytest.mark.slow
def test_a_short_hang_costs_no_lease(skeleton: Path, tmp_path: Path) -> None:
    with (
        Server(port=free_port()) as server,
        Service(skeleton, tmp_path, server.connection_url, JOB_LEASE=60) as service,
    ):
        api, journal, redis = service.start_api(), service.journal, server.client()
        service.start_workers(2, QUEUES='{"default": 10}')
        keys = {str(number) for number in range(300)}
        enqueue(api, "work", *[{"key": key, "seconds": 0.1} for key in sorted(keys)])
        journal.wait("end", count=20)
        # Every claim that the workers sent meanwhile is in the server's hands, and is run late.
        with stopped(server.pid):
            time.sleep(10)
        journal.wait_for("end", keys)
        assert all(len(runs) == 1 for runs in journal.runs().values())
        until(lambda: redis.zcard("my-service") == 0, "jobs are left in the queue")
