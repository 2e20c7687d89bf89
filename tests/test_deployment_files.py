"""What a service is deployed and checked with: its Dockerfile, compose.yaml and CI workflow.

No Docker engine is needed. The files go through the linters that their owners would use, the
promises that matter are read from them, and what can run without an engine is run: the commands
that fill the image, the probe that tells whether the API is well, and Valkey with its users.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import threading
import tomllib
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import copier
import pytest
import yaml
from conftest import COMPOSE_KEYS, interpolate

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "parcel_service"
WORKFLOW = ".github/workflows/ci.yml"


@dataclass(frozen=True)
class Service:
    """A generated service, and the answers that matter here."""

    path: Path
    backend: str
    examples: bool
    python_version: str
    broker: str

    @property
    def has_data(self) -> bool:
        """Whether it has a database."""
        return self.examples or self.backend == "celery"

    @property
    def keys(self) -> dict[str, str]:
        """Return the keys that its compose.yaml needs."""
        passwords = {"redis": "VALKEY_PASSWORD", "rabbitmq": "RABBITMQ_PASSWORD", "sqs": ""}
        password = passwords[self.broker] if self.backend != "background" else ""
        names = {"API_KEYS", "ADMIN_TOKEN", password} - {""}
        return {name: key for name, key in COMPOSE_KEYS.items() if name in names}

    def read(self, name: str) -> str:
        """Return the text of one of its files."""
        return (self.path / name).read_text(encoding="utf-8")

    def module(self, target: str) -> str:
        """Return the code of the module in "package.module:attribute"."""
        module = target.partition(":")[0].replace(".", "/")
        return self.read(f"src/{module}.py")

    def compose(self) -> dict[str, Any]:
        """Return the parsed compose.yaml, with keys in its places."""
        compose = yaml.safe_load(self.read("compose.yaml"))
        content: dict[str, Any] = interpolate(compose, COMPOSE_KEYS)
        return content

    def built(self) -> list[dict[str, Any]]:
        """Return the containers that run the image built here."""
        return [c for c in self.compose()["services"].values() if "build" in c]

    def instructions(self) -> list[tuple[str, str]]:
        """Return the Dockerfile's instructions, each as its keyword and its arguments."""
        text = re.sub(r"^#.*\n", "", self.read("Dockerfile"), flags=re.MULTILINE)
        lines = re.sub(r"\s*\\\n\s*", " ", text).splitlines()
        words = (line.split(maxsplit=1) for line in lines if line)
        return [(keyword, arguments) for keyword, arguments in words]

    def instruction(self, keyword: str) -> str:
        """Return the arguments of the last instruction with this keyword: those in force."""
        return [arguments for word, arguments in self.instructions() if word == keyword][-1]

    def copied(self) -> list[str]:
        """Return the names that its Dockerfile copies from its folder."""
        copies = [arguments.split() for word, arguments in self.instructions() if word == "COPY"]
        return [n for names in copies if names[0][:2] != "--" for n in names[:-1]]


Render = Callable[..., Service]

KINDS = {
    "arq-examples": ("arq", True, "3.11", "redis"),
    "arq-skeleton": ("arq", False, "3.12", "redis"),
    "background-examples": ("background", True, "3.13", "redis"),
    "background-skeleton": ("background", False, "3.14", "redis"),
    "celery-redis": ("celery", True, "3.14", "redis"),
    "celery-rabbitmq": ("celery", False, "3.13", "rabbitmq"),
    "celery-sqs": ("celery", True, "3.12", "sqs"),
}


@pytest.fixture(scope="session")
def render(tmp_path_factory: pytest.TempPathFactory) -> Render:
    """Return a function that generates a service with the given answers."""
    source = tmp_path_factory.mktemp("source")
    shutil.copy(ROOT / "copier.yml", source)
    for name in ("fragments", "template"):
        shutil.copytree(ROOT / name, source / name)

    @cache
    def generate(
        backend: str = "arq",
        *,
        examples: bool = True,
        python_version: str = "3.11",
        broker: str = "redis",
        **others: str | bool,
    ) -> Service:
        answers = (
            {"project_name": "parcel-service"}
            | others
            | {
                "package_name": PACKAGE,
                "backend": backend,
                "examples": examples,
                "python_version": python_version,
                "broker": broker,
            }
        )
        path = tmp_path_factory.mktemp("service")
        copier.run_copy(str(source), path, data=answers, defaults=True, quiet=True)
        return Service(path, backend, examples, python_version, broker)

    return generate


@pytest.fixture(scope="session", params=KINDS.values(), ids=list(KINDS))
def service(request: pytest.FixtureRequest, render: Render) -> Service:
    """Return each kind of service in turn, on each version of Python."""
    backend, examples, python_version, broker = request.param
    return render(backend, examples=examples, python_version=python_version, broker=broker)


@pytest.fixture(scope="session")
def arq_service(render: Render) -> Service:
    """Return the service that the defaults give."""
    return render()


def run(program: str, *arguments: str, cwd: Path, env: dict[str, str] | None = None) -> None:
    """Run a program of this environment; when it finds fault, fail with what it says."""
    path = os.pathsep.join([sysconfig.get_path("scripts"), os.environ["PATH"]])
    executable = shutil.which(program, path=path)
    assert executable, f"{program} is not installed: run `uv sync`"
    done = subprocess.run(
        [executable, *arguments],
        cwd=cwd,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{program} {' '.join(arguments)}\n{done.stdout}"


def seconds(duration: str) -> int:
    """Return a duration of the form "40s" as a number."""
    assert duration.endswith("s")
    return int(duration[:-1])


# The linters


def test_dockerfile_satisfies_hadolint(service: Service) -> None:
    run("hadolint", "--no-color", "--failure-threshold", "style", "Dockerfile", cwd=service.path)


def test_compose_file_satisfies_its_schema(service: Service) -> None:
    schema = ("--builtin-schema", "vendor.compose-spec")
    run("check-jsonschema", *schema, "compose.yaml", cwd=service.path)


def test_workflow_satisfies_its_schema(service: Service) -> None:
    schema = ("--builtin-schema", "vendor.github-workflows")
    run("check-jsonschema", *schema, WORKFLOW, cwd=service.path)


def test_workflow_satisfies_zizmor(service: Service) -> None:
    options = ("--offline", "--strict-collection", "--persona", "pedantic")
    run("zizmor", *options, ".", cwd=service.path)


# The image


def test_image_runs_the_chosen_python(service: Service) -> None:
    images = [arguments.split()[0] for word, arguments in service.instructions() if word == "FROM"]
    assert images[1:] == [f"python:{service.python_version}-slim"] * 2


def test_image_does_not_run_as_root(service: Service) -> None:
    user, group = service.instruction("USER").split(":")
    assert int(user) > 0
    assert int(group) > 0


def test_image_starts_the_app_without_a_shell(service: Service) -> None:
    command: list[str] = json.loads(service.instruction("CMD"))
    app = f"{PACKAGE}.main:app"
    assert " ".join(command).startswith(f"uvicorn {app} --host 0.0.0.0 --port 8000 ")
    assert "def __getattr__" in service.module(app)


def test_image_has_its_data_on_a_volume(service: Service) -> None:
    dockerfile = service.read("Dockerfile")
    assert ("VOLUME /data" in dockerfile) is service.has_data
    assert ("ENV DATA_DIR=/data" in dockerfile) is service.has_data


def test_dockerignore_lets_in_what_is_copied_and_nothing_else(service: Service) -> None:
    rules = re.findall(r"^[^#\n].*", service.read(".dockerignore"), re.MULTILINE)
    assert rules[0] == "*"
    assert [rule[1:] for rule in rules if rule.startswith("!")] == service.copied()


@pytest.mark.parametrize(
    "answers",
    [{}, *({"backend": "celery", "broker": broker} for broker in ("redis", "rabbitmq", "sqs"))],
    ids=["arq", "redis", "rabbitmq", "sqs"],
)
def test_dockerfile_installs_a_service_that_runs(
    render: Render, tmp_path: Path, answers: dict[str, str]
) -> None:
    """Its `uv sync` commands, with the files that are copied before each, as in the build."""
    service = render(**answers)
    outer = {name: value for name, value in os.environ.items() if name != "VIRTUAL_ENV"}
    run("uv", "lock", "--quiet", cwd=service.path, env=outer)
    variables = re.findall(r"\b(UV_\w+)=(\w+)", service.read("Dockerfile"))
    image = tmp_path / "app"
    image.mkdir()
    for word, arguments in service.instructions():
        if word == "COPY" and not arguments.startswith("--from"):
            for name in arguments.split()[:-1]:
                source = service.path / name
                copy = shutil.copytree if source.is_dir() else shutil.copyfile
                copy(source, image / name)
        elif "uv sync" in arguments:
            command = re.sub(r"^.*?uv sync", "sync", arguments).split()
            run("uv", *command, "--quiet", cwd=image, env=outer | dict(variables))
    shutil.rmtree(image / "src")
    assert list(image.glob(f".venv/lib/*/site-packages/{PACKAGE}/__pycache__/main.*.pyc"))

    inner = {"PATH": str(image / ".venv/bin"), "DATA_DIR": str(tmp_path / "data")}
    python = str(image / ".venv/bin/python")
    script = f"import {PACKAGE}.main, {PACKAGE}.worker; assert {PACKAGE}.main.app"
    run(python, "-c", script, cwd=tmp_path, env=inner)
    names = {path.name for path in (image / ".venv/bin").iterdir()}
    worker, *_ = service.compose()["services"]["worker"]["command"]
    assert {"uvicorn", worker} <= names
    assert not {"pytest", "ruff", "mypy"} & names


# The composition


def test_services_of_the_composition(service: Service) -> None:
    brokers = {"redis": {"valkey"}, "rabbitmq": {"rabbitmq"}, "sqs": set[str]()}
    broker = brokers[service.broker]
    expected = {
        "arq": {"api", "worker"} | broker,
        "celery": {"api", "worker", "beat"} | broker,
        "background": {"api"},
    }
    assert set(service.compose()["services"]) == expected[service.backend]


def test_nothing_is_published_beyond_this_host(service: Service) -> None:
    published = {
        name: content["ports"]
        for name, content in service.compose()["services"].items()
        if "ports" in content
    }
    assert published == {"api": ["127.0.0.1:8000:8000"]}


def test_every_container_comes_back_and_tells_its_health(service: Service) -> None:
    for name, content in service.compose()["services"].items():
        assert content["restart"] == "unless-stopped", name
        assert content["healthcheck"]["test"][0] == "CMD", name


def test_our_containers_reap_children_and_read_the_settings(service: Service) -> None:
    assert service.built()
    for content in service.built():
        assert content["init"] is True
        assert content["env_file"] == [{"path": ".env", "required": False}]


def test_every_container_is_confined(service: Service) -> None:
    for content in service.compose()["services"].values():
        assert content["read_only"] is True
        assert content["tmpfs"] == ["/tmp"]  # noqa: S108 - of a container
        assert content["mem_limit"] == "1g"
        assert content["pids_limit"] == 512
        assert content["cap_drop"] == ["ALL"]
        assert content["security_opt"] == ["no-new-privileges:true"]
        assert "build" in content or content["user"] in {"valkey", "rabbitmq"}, "it runs as root"


def test_compose_refuses_to_start_without_keys(service: Service) -> None:
    compose = yaml.safe_load(service.read("compose.yaml"))
    needed = service.keys
    for name in needed:
        with pytest.raises(KeyError, match=rf"{name}: set it in \.env"):
            interpolate(compose, {**needed, name: ""})
        assert f"#{name}=" in service.read(".env.example")
    containers = interpolate(compose, needed)["services"]
    for name in ("API_KEYS", "ADMIN_TOKEN"):
        assert containers["api"]["environment"][name] == needed[name]


def test_keys_reach_neither_git_nor_the_image(service: Service) -> None:
    (service.path / ".env").touch()
    run("git", "init", "--quiet", cwd=service.path)
    run("git", "check-ignore", "--quiet", ".env", cwd=service.path)
    assert ".env" not in service.copied()
    assert not [line for line in service.read(".dockerignore").splitlines() if "!.env" in line]


def test_api_and_worker_share_their_data(service: Service) -> None:
    compose = service.compose()
    for content in service.built():
        folder = content.get("environment", {}).get("DATA_DIR")
        assert folder == ("/data" if service.has_data else None)
        assert content.get("volumes", []) == (["data:/data"] if service.has_data else [])
    assert ("data" in compose.get("volumes", {})) is service.has_data


def test_every_named_volume_is_declared(service: Service) -> None:
    compose = service.compose()
    used = {
        volume.split(":")[0]
        for content in compose["services"].values()
        for volume in content.get("volumes", [])
    }
    assert used == set(compose.get("volumes", {}))


def test_containers_are_given_the_time_that_they_need_to_stop(service: Service) -> None:
    containers = service.compose()["services"]
    command: list[str] = json.loads(service.instruction("CMD"))
    requests = int(command[command.index("--timeout-graceful-shutdown") + 1])
    settings = service.module(f"{PACKAGE}.queue.settings")
    setting = re.search(r"shutdown_grace: \w+ = (\d+)", settings)
    assert setting
    jobs = int(setting[1])
    stubborn = 6
    api = seconds(containers["api"]["stop_grace_period"])
    if service.backend != "background":
        assert api > requests
        worker = containers["worker"]
        assert worker["environment"]["SHUTDOWN_GRACE"] == jobs, "a longer one in .env is cut off"
        assert seconds(worker["stop_grace_period"]) > jobs + stubborn
    else:
        assert api > requests + jobs


def test_worker_is_one_that_exists(arq_service: Service) -> None:
    worker = arq_service.compose()["services"]["worker"]
    scripts = tomllib.loads(arq_service.read("pyproject.toml"))["project"]["scripts"]
    program, *arguments = worker["command"]
    assert scripts[program] == f"{PACKAGE}.cli:main"
    assert arguments == ["worker"]
    assert worker["healthcheck"]["test"] == ["CMD", *worker["command"], "--check"]


@pytest.mark.parametrize("name", ["1.5", "0x1f", "1e3", "no", "parcel.service"])
def test_worker_is_started_whatever_the_service_is_called(render: Render, name: str) -> None:
    service = render(project_name=name)
    worker = service.compose()["services"]["worker"]
    assert worker["command"] == [name, "worker"]
    assert name in tomllib.loads(service.read("pyproject.toml"))["project"]["scripts"]


@pytest.mark.parametrize("backend", ["arq", "celery"])
def test_valkey_loses_no_jobs(render: Render, backend: str) -> None:
    containers = render(backend).compose()["services"]
    valkey = containers["valkey"]
    config = valkey["command"][-1].splitlines()
    assert "appendonly yes" in config
    assert "maxmemory-policy noeviction" in config
    assert valkey["volumes"] == ["valkey:/data"]
    for name in set(containers) - {"valkey"}:
        url = f"redis://app:{COMPOSE_KEYS['VALKEY_PASSWORD']}@valkey:6379/0"
        setting = {"arq": "REDIS_URL", "celery": "BROKER_URL"}[backend]
        assert containers[name]["environment"][setting] == url
        assert containers[name]["depends_on"] == {"valkey": {"condition": "service_healthy"}}


def test_rabbitmq_keeps_its_data_under_a_name_of_its_own(render: Render) -> None:
    containers = render("celery", broker="rabbitmq").compose()["services"]
    password = COMPOSE_KEYS["RABBITMQ_PASSWORD"]
    rabbitmq = containers["rabbitmq"]
    assert rabbitmq["hostname"] == "rabbitmq", "its folder has the host's name"
    assert rabbitmq["volumes"] == ["rabbitmq:/var/lib/rabbitmq"]
    assert rabbitmq["environment"] == {
        "RABBITMQ_DEFAULT_USER": "app",
        "RABBITMQ_DEFAULT_PASS": password,
    }
    for name in ("api", "worker", "beat"):
        url = f"amqp://app:{password}@rabbitmq:5672//"
        assert containers[name]["environment"]["BROKER_URL"] == url
        assert containers[name]["depends_on"] == {"rabbitmq": {"condition": "service_healthy"}}


@pytest.mark.parametrize("backend", ["arq", "celery"])
def test_valkey_is_probed_as_the_user_that_it_knows(render: Render, backend: str) -> None:
    valkey = render(backend).compose()["services"]["valkey"]
    assert valkey["healthcheck"]["test"] == ["CMD", "valkey-cli", "--user", "app", "-e", "ping"]
    assert valkey["environment"] == {"VALKEYCLI_AUTH": COMPOSE_KEYS["VALKEY_PASSWORD"]}


@contextmanager
def answering(status: HTTPStatus) -> Generator[int]:
    """Answer every request with `status`, on the port that is given."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status if self.path == "/readyz" else HTTPStatus.NOT_FOUND)
            self.end_headers()

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        try:
            yield server.server_port
        finally:
            server.shutdown()


def test_api_probe_tells_well_from_ill(service: Service) -> None:
    _, program, option, script = service.compose()["services"]["api"]["healthcheck"]["test"]
    assert (program, option) == ("python", "-c")

    def probe(port: int) -> int:
        proxied = os.environ | {"http_proxy": "http://127.0.0.1:9"}
        here = script.replace("8000", str(port))
        done = subprocess.run(
            [sys.executable, "-c", here], env=proxied, stderr=subprocess.DEVNULL, check=False
        )
        return done.returncode

    with answering(HTTPStatus.OK) as port:
        assert probe(port) == 0
    assert probe(port) == 1
    with answering(HTTPStatus.SERVICE_UNAVAILABLE) as port:
        assert probe(port) == 1


# The workflow


def test_workflow_runs_every_check(service: Service) -> None:
    workflow = yaml.safe_load(service.read(WORKFLOW))
    job = workflow["jobs"]["test"]
    steps = [step["run"] for step in job["steps"] if "run" in step]
    assert steps == [
        "uv sync --locked",
        "uv run ruff check",
        "uv run ruff format --check",
        "uv run mypy",
        "uv run pyright",
        "uv run pytest",
    ]
    assert job["steps"][1]["with"]["python-version"] == service.python_version
    assert workflow["concurrency"]["group"] == "${{ github.workflow }}-${{ github.ref }}"


def test_workflow_pins_its_actions(service: Service) -> None:
    used = re.findall(r"uses: (.*)", service.read(WORKFLOW))
    assert used
    for action in used:
        assert re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", action)


def test_workflow_leaves_no_token_behind(service: Service) -> None:
    for job in yaml.safe_load(service.read(WORKFLOW))["jobs"].values():
        checkout = job["steps"][0]
        assert checkout["uses"].startswith("actions/checkout@")
        assert checkout["with"] == {"persist-credentials": False}


# The answers that leave files out


@pytest.mark.parametrize("backend", ["arq", "celery", "background"])
def test_workflow_audits_what_is_locked_and_keeps_a_bill_of_materials(
    render: Render, backend: str
) -> None:
    service = render(backend)
    job = yaml.safe_load(service.read(WORKFLOW))["jobs"]["dependencies"]
    export, audit = [step["run"].split() for step in job["steps"] if "run" in step]
    [upload] = [step for step in job["steps"] if "upload-artifact" in step.get("uses", "")]
    assert job["steps"].index(upload) < len(job["steps"]) - 1, "it is kept, whatever is found"
    outer = {name: value for name, value in os.environ.items() if name != "VIRTUAL_ENV"}
    run("uv", "lock", "--quiet", cwd=service.path, env=outer)
    run(*export, "--quiet", cwd=service.path, env=outer)
    sbom = json.loads(service.read(upload["with"]["path"]))
    assert (sbom["bomFormat"], sbom["specVersion"]) == ("CycloneDX", "1.5")
    names = {component["name"] for component in sbom["components"]}
    assert "fastapi" in names
    assert "pytest" not in names
    assert audit[:2] == ["uv", "audit"]
    run(*audit, "--help", cwd=service.path, env=outer)


def test_workflow_gives_compose_the_keys_that_it_needs(service: Service) -> None:
    job = yaml.safe_load(service.read(WORKFLOW))["jobs"]["image"]
    interpolate(yaml.safe_load(service.read("compose.yaml")), job["env"])
    for key in (*json.loads(job["env"]["API_KEYS"]).values(), job["env"]["ADMIN_TOKEN"]):
        assert len(key) >= 32


@pytest.mark.parametrize("backend", ["arq", "celery", "background"])
def test_nothing_of_docker_without_docker(render: Render, backend: str) -> None:
    service = render(backend, docker=False)
    names = {path.name for path in service.path.iterdir()}
    assert not names & {"Dockerfile", ".dockerignore", "compose.yaml"}
    assert "docker" not in service.read(WORKFLOW)


def test_nothing_of_ci_without_ci(render: Render) -> None:
    names = {path.name for path in render(ci="none").path.iterdir()}
    assert ".github" not in names
    assert names >= {"Dockerfile", ".dockerignore", "compose.yaml"}
