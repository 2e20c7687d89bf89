"""Values that a stranger writes to Redis."""

import json
import os
import pickle
import random
from collections.abc import Callable
from pathlib import Path

from .harness import Server, Service, enqueue, finish, free_port, stored_job, until


class Bomb:
    """What would make a folder where it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self._marker = marker

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        """Have `os.mkdir` called."""
        return os.mkdir, (str(self._marker),)


def hostile_jobs(marker: Path) -> dict[str, bytes]:
    """List what a stranger may leave where a job is expected; none of it may run."""
    return {
        "bomb": pickle.dumps(Bomb(marker)),
        "bomb-in-job": pickle.dumps({"f": "work", "a": Bomb(marker), "k": {}, "t": 1, "et": 1}),
        "empty": b"",
        "random": random.Random(1).randbytes(1000),  # noqa: S311
        "list": b"[]",
        "null": b"null",
        "text": b'"work"',
        "number": b"1e999",
        "cut": stored_job()[:-5],
        "deep": b"[" * 200_000,
        "no-function": stored_job(f=None),
        "positional": stored_job(a={"key": "hostile"}),
        "named": stored_job(k=["hostile", 0]),
        "too-many": stored_job(a=["hostile", 0, "more"]),
        "wrong-type": stored_job(k={"key": 1, "seconds": "x"}),
        "unknown-name": stored_job(k={"key": "hostile", "seconds": 0, "ctx": {}}),
        "wrong-try": stored_job(t="first"),
        "wrong-time": stored_job(et="now"),
        "late-time": stored_job(et=10**30),
        "unknown": stored_job(f="unknown"),
        "dunder": stored_job(f="__class__"),
        "surrogate": stored_job(f="\ud800"),
        "20-MB": random.Random(2).randbytes(20_000_000),  # noqa: S311
        "20-MB-of-JSON": json.dumps({"f": "x" * 20_000_000}).encode(),
    }


def test_a_hostile_writer(skeleton: Path, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    jobs = hostile_jobs(marker)
    with (
        Server(port=free_port()) as server,
        Service(skeleton, tmp_path, server.connection_url, JOB_LEASE=2, MAX_ATTEMPTS=3) as service,
    ):
        api, journal, redis = service.start_api(), service.journal, server.client()
        worker = service.start_worker()
        enqueue(api, "work", {"key": "before", "seconds": 0})
        for name, value in jobs.items():
            redis.set(f"arq:job:{name}", value)
            redis.zadd("my-service", {name: 1})
        for member in (b"\xff\xfe", b"\x80" * 1000, b"", b"with a job that is gone", b"a\nb {}"):
            redis.zadd("my-service", {member: 1})
        redis.set(b"arq:job:\xff\xfe", stored_job())
        for number in range(10):
            enqueue(api, "work", {"key": str(number), "seconds": 0.1})
        for number in range(10):
            journal.wait("end", str(number))
        for name in jobs:
            assert finish(api, name)["status"] == "failed", name
        [after] = enqueue(api, "work", {"key": "after", "seconds": 0})
        assert finish(api, after)["status"] == "complete"
        assert worker.poll() is None
        assert not marker.exists()
        # None but the jobs of the service ran. One is stored under a name that is no text, and
        # is otherwise as the service would have written it.
        names = {"before", "after", *map(str, range(10))}
        assert set(journal.runs()) <= names | {"hostile"}
        assert len(journal.notes("begin", "hostile")) <= 1
        assert {note.pid for note in journal.notes()} == {worker.pid}
        assert api.get("/dead").status_code == 200
        until(lambda: redis.zcard("my-service") == 0, f"left: {redis.zrange('my-service', 0, -1)}")


def test_hostile_values_where_the_api_reads(skeleton: Path, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    result = {"f": "work", "t": 1, "et": 1, "s": True, "r": 1, "st": 1, "ft": 1}
    hostile = {
        "result": [
            pickle.dumps(Bomb(marker)),
            b"[]",
            b"",
            *(json.dumps(result | {name: 10**18}).encode() for name in ("et", "st", "ft")),
            json.dumps(result | {"s": False, "r": "no error"}).encode(),
            json.dumps(result | {"r": [[]] * 1000, "f": "\ud800"}).encode(),
        ],
        "job": [
            pickle.dumps(Bomb(marker)),
            stored_job(et=10**18),
            stored_job(et=-(10**18)),
            b"\xff",
        ],
        "in-progress": [b"\xff", b"9" * 30, b"-1e5", b"9" * 5000],
        "retry": [b"\xff", b"9" * 30, b"9" * 5000],
    }
    with (
        Server(port=free_port()) as server,
        Service(skeleton, tmp_path, server.connection_url) as service,
    ):
        api, redis = service.start_api(), server.client()
        for kind, values in hostile.items():
            for number, value in enumerate(values):
                name = f"{kind}-{number}"
                redis.set(f"arq:{kind}:{name}", value)
                redis.zadd("my-service", {name: 1e15})
                answer = api.get(f"/faults/jobs/{name}")
                assert answer.status_code == 200, (name, answer.text)
        for kind in hostile:
            redis.rpush(f"arq:{kind}:a-list", "of another type")
            redis.zadd("my-service", {"a-list": 1e15})
            answer = api.get("/faults/jobs/a-list")
            assert answer.status_code in {200, 503}, (kind, answer.text)
            redis.delete(f"arq:{kind}:a-list")
        assert not marker.exists()
