"""ARQ's keys holding other types than they should: the job is dead, and no other is harmed."""

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from .harness import Server, Service, enqueue, finish, free_port, gone, until


def other_types(redis: Any, key: str) -> dict[str, Callable[[], Any]]:  # noqa: ANN401 - no types
    """Return ways to write something to a key that does not belong there."""
    return {
        "list": lambda: redis.rpush(key, "x"),
        "set": lambda: redis.sadd(key, "x"),
        "hash": lambda: redis.hset(key, "x", "y"),
        "zset": lambda: redis.zadd(key, {"x": 1}),
        "stream": lambda: redis.xadd(key, {"x": "y"}),
        "empty": lambda: redis.set(key, b""),
        "binary": lambda: redis.set(key, b"\xff\x00\xfe"),
        "text": lambda: redis.set(key, "nonsense"),
        "huge": lambda: redis.set(key, "9" * 400),
        "negative": lambda: redis.set(key, -5),
        "json": lambda: redis.set(key, '{"f": {}}'),
    }


KEYS = ("job", "in-progress", "retry", "result")


def test_keys_of_other_types(skeleton: Path, tmp_path: Path) -> None:
    settings = {"JOB_LEASE": 2, "QUEUES": '{"default": 10}'}
    with (
        Server(port=free_port()) as server,
        Service(skeleton, tmp_path, server.connection_url, **settings) as service,
    ):
        api, journal, redis = service.start_api(), service.journal, server.client()
        kinds = list(other_types(redis, ""))
        ids: dict[str, str] = {}
        for key, kind in itertools.product(KEYS, kinds):
            name = f"{key}-{kind}"
            [job_id] = enqueue(api, "work", {"key": name, "seconds": 0})
            enqueue(api, "work", {"key": f"beside-{name}", "seconds": 0})
            redis.delete(f"arq:{key}:{job_id}")
            other_types(redis, f"arq:{key}:{job_id}")[kind]()
            ids[name] = job_id
        workers = service.start_workers(2)
        journal.wait_for("end", {f"beside-{name}" for name in ids})
        for name, job_id in ids.items():
            until(gone(redis, job_id), f"{name} stays")
            status = finish(api, job_id)["status"]
            key = name.rpartition("-")[0]
            # What a lease or a result held before tells nothing about the job: it may run.
            allowed = {"failed"} if key == "job" else {"failed", "complete"}
            assert status in allowed, name
            buried = redis.zscore("my-service:dead", job_id) is not None
            assert buried == (status == "failed"), name
        assert redis.zcard("my-service") == 0
        assert redis.hlen("my-service:running") == 0
        assert all(worker.poll() is None for worker in workers)
        assert all(len(journal.notes("begin", f"beside-{name}")) == 1 for name in ids)
        assert api.get("/dead").status_code == 200


def test_types_that_change_while_jobs_run(skeleton: Path, tmp_path: Path) -> None:
    with (
        Server(port=free_port()) as server,
        Service(skeleton, tmp_path, server.connection_url, JOB_LEASE=1) as service,
    ):
        api, journal, redis = service.start_api(), service.journal, server.client()
        [worker] = service.start_workers(1)
        ids: dict[str, str] = {}
        kinds = list(other_types(redis, ""))
        for name in (f"{key}-{kind}" for key in KEYS for kind in kinds):
            [ids[name]] = enqueue(api, "work", {"key": name, "seconds": 2})
        beside = {f"beside-{number}" for number in range(20)}
        others = enqueue(api, "work", *[{"key": key, "seconds": 2} for key in sorted(beside)])
        journal.wait_for("begin", beside | set(ids))
        for name, job_id in ids.items():
            key, _, kind = name.rpartition("-")
            redis.delete(f"arq:{key}:{job_id}")
            other_types(redis, f"arq:{key}:{job_id}")[kind]()
        for job_id in others:
            assert finish(api, job_id)["status"] == "complete"
        for name, job_id in ids.items():
            until(gone(redis, job_id), f"{name} stays")
        assert all(len(journal.notes("begin", key)) == 1 for key in beside)
        assert redis.hlen("my-service:running") == 0
        assert worker.poll() is None
        [after] = enqueue(api, "work", {"key": "after", "seconds": 0})
        assert finish(api, after)["status"] == "complete"


SHARED = ("arq:abort", "my-service:running", "my-service:dead", "my-service:workers")


@pytest.mark.parametrize("key", SHARED)
def test_indexes_of_other_types(skeleton: Path, tmp_path: Path, key: str) -> None:
    with (
        Server(port=free_port()) as server,
        Service(skeleton, tmp_path, server.connection_url, JOB_LEASE=1) as service,
    ):
        api, journal, redis = service.start_api(), service.journal, server.client()
        [worker] = service.start_workers(1)
        for kind in ("list", "text"):
            redis.delete(key)
            other_types(redis, key)[kind]()
            ids = enqueue(api, "work", *[{"key": f"{kind}-{n}", "seconds": 0.1} for n in range(9)])
            ids += enqueue(api, "give_up", {"key": f"{kind}-fails"})
            journal.wait_for("end", {f"{kind}-{number}" for number in range(9)})
            ends = [finish(api, job_id)["status"] for job_id in ids]
            assert ends == ["complete"] * 9 + ["failed"]
        assert worker.poll() is None
        until(lambda: redis.zcard("my-service") == 0, "jobs are left in the queue")
