"""Flower, in a real Chromium: what it shows of a service's workers and jobs, and what it hides."""

import shutil
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import pytest
from conftest import run
from faults.harness import enqueue, free_port, until
from playwright.sync_api import Browser, HttpCredentials, Page, expect, sync_playwright

from .brokers import Broker
from .harness import Service, status

CHROMIUM = shutil.which("chromium")
LOGIN = ("admin", "password-of-flower")
SECRET = "an-argument-that-nobody-else-may-see"  # noqa: S105
pytestmark = [
    pytest.mark.skipif(not CHROMIUM, reason="Chromium is not installed"),
    pytest.mark.slow,
]


@pytest.fixture(scope="module")
def with_flower(home: Path) -> Path:
    """Install Flower beside the service, as `uv run --with flower` does."""
    python = home / ".venv" / "bin" / "python"
    run("uv", "pip", "install", "--quiet", "--python", python, "flower>=2.2,<3", cwd=home)
    return home


@pytest.fixture(scope="module")
def browser() -> Generator[Browser]:
    """A Chromium."""
    with (
        sync_playwright() as playwright,
        playwright.chromium.launch(executable_path=CHROMIUM) as browser,
    ):
        yield browser


def start_flower(service: Service) -> str:
    """Start Flower, and return its address when it answers and knows two workers."""
    port = free_port()
    options = ("--address=127.0.0.1", f"--port={port}", f"--basic-auth={':'.join(LOGIN)}")
    arguments = ("-A", "my_service.worker", "flower", *options)
    service.start("celery", *arguments, settings={}, keep=())
    address = f"http://127.0.0.1:{port}"

    def knows_workers() -> bool:
        try:
            workers = httpx2.get(f"{address}/api/workers?refresh=1", auth=LOGIN, timeout=30)
        except httpx2.TransportError:
            return False
        return workers.status_code == 200 and len(workers.json()) == 2

    until(knows_workers, "Flower does not find the workers")
    return address


def figures(page: Page, worker: str) -> list[str]:
    """Return what the page of the workers shows of one."""
    row = page.locator("#workers-table tbody tr").filter(has_text=worker)
    return [cell.strip() for cell in row.locator("td").all_inner_texts()]


def states(page: Page) -> dict[str, str]:
    """Return the state of each job by its id, as the page of the jobs shows them."""
    rows = page.locator("#tasks-table tbody tr")
    cells = [row.locator("td").all_inner_texts() for row in rows.all()]
    return {each[1].strip(): each[2].strip() for each in cells if len(each) > 2}


def test_flower_shows_workers_and_jobs_and_hides_arguments(
    browser: Browser, with_flower: Path, tmp_path: Path, broker: Broker
) -> None:
    with Service(with_flower, tmp_path, broker) as service:
        api, journal = service.start_api(), service.journal
        workers = service.start_workers(2)
        address = start_flower(service)
        assert httpx2.get(f"{address}/tasks").status_code == 401
        login: HttpCredentials = {"username": LOGIN[0], "password": LOGIN[1]}
        with browser.new_context(http_credentials=login) as context:
            page = context.new_page()

            for worker in workers:  # Flower asks for events every few seconds
                service.wait_for_log(worker, "Events of group {task} enabled")
            done = enqueue(api, "work", *[{"key": f"{SECRET}-{number}"} for number in range(5)])
            failed = enqueue(api, "fail", {"key": SECRET})
            failed += enqueue(api, "give_up", {"key": SECRET})
            expected = dict.fromkeys(done, "complete") | dict.fromkeys(failed, "failed")
            until(lambda: {each: status(api, each) for each in expected} == expected, "no end")

            def all_are_shown() -> bool:
                page.goto(f"{address}/tasks?limit=100")
                expect(page.locator("#tasks-table tbody tr").first).to_be_visible()
                expected = dict.fromkeys(done, "SUCCESS") | dict.fromkeys(failed, "FAILURE")
                return states(page) == expected

            until(all_are_shown, "jobs are missing")
            assert SECRET not in page.content()
            for job_id in (done[0], failed[0]):
                page.goto(f"{address}/task/{job_id}")
                expect(page.get_by_text(job_id).filter(visible=True).first).to_be_visible()
                assert SECRET not in page.content()
            expect(page.get_by_text("FAILURE").filter(visible=True).first).to_be_visible()
            expect(page.get_by_text("retried", exact=False).first).to_be_visible()

            def all_are_counted() -> bool:
                page.goto(f"{address}/workers")
                table = page.locator("#workers-table tbody")
                expect(table.get_by_text("Online")).to_have_count(2)
                rows = [figures(page, f"worker-{worker.pid}@") for worker in workers]
                # Worker, status, active, processed, failed, succeeded, load average
                sums = [sum(int(row[column]) for row in rows) for column in (4, 5)]
                return sums == [2, 5]

            until(all_are_counted, "jobs are not counted")
        assert SECRET not in service.logs()
        assert len(journal.notes("begin")) == 5 + 2 + 1


def test_flower_does_not_deadlock(with_flower: Path, tmp_path: Path, broker: Broker) -> None:
    with Service(with_flower, tmp_path, broker) as service:
        service.start_workers(2)
        address = start_flower(service)

        def refresh(_number: int) -> int:
            # It asks the workers seven things at once, each on a connection of its own.
            answer = httpx2.get(f"{address}/api/workers?refresh=1", auth=LOGIN, timeout=30)
            return answer.status_code

        with ThreadPoolExecutor(6) as threads:
            assert set(threads.map(refresh, range(24))) == {200}
