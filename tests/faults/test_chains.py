"""Chains whose workers are killed: the end of a step and the next step are one."""

import random
import time
from pathlib import Path

import pytest

from .harness import Server, Service, chain_has, dead, free_port, supervised, until


@pytest.mark.slow
def test_no_chain_stops_when_workers_are_killed(skeleton: Path, tmp_path: Path) -> None:
    chance = random.Random(7)  # noqa: S311
    chains, steps = 60, 25
    killed: dict[int, float] = {}
    settings = {"JOB_LEASE": 1, "MAX_ATTEMPTS": 50, "QUEUES": '{"default": 5}'}
    with (
        Server(port=free_port()) as server,
        Service(skeleton, tmp_path, server.connection_url, **settings) as service,
    ):
        api, journal, redis = service.start_api(), service.journal, server.client()
        workers = service.start_workers(3)
        ids = {
            number: api.post(
                "/faults", params={"number": number * 100, "steps": steps, "seconds": 0.1}
            ).json()
            for number in range(chains)
        }
        for _ in range(12):
            seen = len(journal.notes("end"))
            journal.wait("end", count=min(seen + 40, chains * steps))
            time.sleep(chance.uniform(0, 0.1))
            at_work = {note.pid for note in journal.notes("begin")[-20:]}
            victim = next(worker for worker in workers if worker.pid in at_work)
            workers.remove(victim)
            killed[victim.pid] = time.monotonic()
            victim.kill()
            workers.append(service.start_worker())
        for number, chain_id in ids.items():
            last = str(number * 100 + steps - 1)
            journal.wait("end", last)
            until(
                chain_has(api, chain_id, "complete"),
                f"chain {number} does not end",
            )
            status = api.get(f"/workflows/{chain_id}").json()
            assert len(status["jobs"]) == steps
            assert status["jobs"][-1]["result"] == number * 100 + steps
        journal.assert_never_twice_at_once(killed=killed)
        until(lambda: redis.zcard("my-service") == 0, "jobs are left in the queue")
        assert dead(api) == {}


def test_a_chain_that_fails_says_so(skeleton: Path, tmp_path: Path) -> None:
    with (
        Server(port=free_port()) as server,
        Service(skeleton, tmp_path, server.connection_url, JOB_LEASE=1, MAX_ATTEMPTS=2) as service,
        supervised(service),
    ):
        api = service.start_api()
        ids = {
            each: api.post(f"/faults/chains/{each}").json()
            for each in ("give_up", "fail", "hang", "crash")
        }
        for last, chain_id in ids.items():
            until(
                chain_has(api, chain_id, "failed"),
                f"the chain with {last} goes on",
            )
            status = api.get(f"/workflows/{chain_id}").json()
            assert [each["status"] for each in status["jobs"]] == ["complete", "failed"]
        assert len(dead(api)) == len(ids)
