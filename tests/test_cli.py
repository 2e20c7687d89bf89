"""The commands, run as a user runs them: options, output, errors, exit codes, signals."""

import json
import os
import re
import select
import signal
import stat
import subprocess
from pathlib import Path, PurePath
from unittest.mock import ANY

import pytest
import yaml
from conftest import BIN, CHECKOUT, ENVIRONMENT, contents, fake_program, run, taskgen

from taskgen import overview

ORIGIN = (b"_commit: ", b"_src_path: ")
QUICK = ("--yes", "--no-git", "--no-sync")
CONFIG = yaml.safe_load((CHECKOUT / "copier.yml").read_text())
HIDDEN = [
    key
    for key, details in CONFIG.items()
    if not key.startswith("_") and details.get("when") is False
]


def is_whole(service: Path, package: str) -> bool:
    names = ("pyproject.toml", ".copier-answers.yml", f"src/{package}/__init__.py")
    return all((service / name).is_file() for name in names)


def without(program: str, folder: Path) -> dict[str, str]:
    """Make a PATH on which everything is but one program."""
    folder.mkdir()
    for directory in map(Path, os.environ["PATH"].split(":")):
        for other in directory.iterdir() if directory.is_dir() else ():
            if other.name != program and not (folder / other.name).is_symlink():
                (folder / other.name).symlink_to(other)
    return {"PATH": str(folder)}


# What is created


def test_makes_a_service_with_its_repository_and_its_environment(tmp_path: Path) -> None:
    # As under `uv run`, in an activated environment, and from a git hook.
    misleading = {"VIRTUAL_ENV": str(tmp_path / "other"), "GIT_DIR": str(tmp_path / "hook")}
    done = taskgen("new", "my-service", cwd=tmp_path, env=misleading)
    service = tmp_path / "my-service"
    assert done.returncode == 0, done.stderr
    assert is_whole(service, "my_service")
    assert run("git", "branch", "--show-current", cwd=service).stdout == "main\n"
    package = run(service / ".venv/bin/python", "-c", "import my_service", cwd=tmp_path)
    assert package.returncode == 0
    tree, _, steps = done.stdout.partition("\n\n")
    assert tree.splitlines()[0] == "my-service/"
    *_, change_folder, dev, suite = (line.strip() for line in steps.splitlines())
    assert (change_folder, dev, suite) == ("cd my-service", "uv run dev", "uv run pytest")
    assert not (tmp_path / "other").exists()
    assert not (tmp_path / "hook").exists()


@pytest.mark.parametrize(
    "answers",
    [
        {},
        {"backend": "background", "examples": "false", "ci": "none", "docker": "false"},
        {"backend": "celery", "broker": "rabbitmq"},
        {"package_name": "other", "python_version": "3.13", "description": 'Says "hi" \\ {{ x }}'},
    ],
    ids=["defaults", "least", "celery", "unusual"],
)
def test_makes_what_copier_copy_makes(
    tmp_path: Path, repository: Path, answers: dict[str, str]
) -> None:
    given = [f"{key}={value}" for key, value in answers.items()]
    for folder in ("ours", "theirs"):
        (tmp_path / folder).mkdir()
    new: list[str | Path] = [BIN / "python", "-m", "taskgen", "new", "svc", *QUICK]
    settings = [f"--set={assignment}" for assignment in given]
    env = {"PYTHONPATH": str(repository / "src")}
    run(*new, *settings, cwd=tmp_path / "ours", env=env)
    copier: list[str | Path] = [BIN / "copier", "copy", "--quiet", "--defaults"]
    data = [f"--data={assignment}" for assignment in given]
    run(*copier, *data, repository, "svc", cwd=tmp_path / "theirs")
    ours, theirs = (contents(tmp_path / folder / "svc") for folder in ("ours", "theirs"))
    for made in (ours, theirs):
        mode, recorded = made[".copier-answers.yml"]
        lines = [line for line in recorded.splitlines() if not line.startswith(ORIGIN)]
        made[".copier-answers.yml"] = (mode, b"\n".join(lines))
    assert ours == theirs
    assert ours["executable.sh"][0] & stat.S_IXUSR


def test_records_the_checkout_that_it_runs_from(tmp_path: Path) -> None:
    taskgen("new", "svc", *QUICK, cwd=tmp_path)
    recorded = yaml.safe_load((tmp_path / "svc/.copier-answers.yml").read_text())
    assert recorded["_src_path"] == str(CHECKOUT)
    described = run("git", "describe", "--tags", "--always", cwd=CHECKOUT).stdout.strip()
    assert recorded["_commit"] == described


def test_names_the_service_after_its_folder(tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    result = json.loads(taskgen("new", ".", *QUICK, "--json", cwd=tmp_path / "here").stdout)
    assert result["project_name"] == "here"
    assert result["path"] == str(tmp_path / "here")
    assert result["next_steps"] == ["uv sync", "uv run dev", "uv run pytest"]
    taskgen("new", "deep/down/there", *QUICK, cwd=tmp_path)
    assert is_whole(tmp_path / "deep/down/there", "there")
    taskgen("new", "1 odd folder", *QUICK, "--set", "project_name=even", cwd=tmp_path)
    assert is_whole(tmp_path / "1 odd folder", "even")


@pytest.mark.parametrize("backend", ["arq", "background"])
def test_shows_the_folders_of_a_service_and_what_they_hold(tmp_path: Path, backend: str) -> None:
    done = taskgen("new", "svc", *QUICK, "--backend", backend, cwd=tmp_path)
    tree, _, _ = done.stdout.partition("\n\n")
    lines = tree.splitlines()
    assert len(lines) <= 20
    assert max(map(len, lines)) <= 80
    package = tmp_path / "svc/src/svc"
    shown = {name for line in lines for name in re.findall(r"[\w.]+/", line)}
    assert {f"{path.name}/" for path in package.iterdir() if path.is_dir()} <= shown
    for folder, holds in [("api/", "your routes"), ("tasks/", "your tasks"), ("tests/", "tests")]:
        [line] = [line for line in lines if f"{folder}  " in line]
        assert holds in line
    for path in [*package.glob("*.py"), *(tmp_path / "svc").glob("*.toml")]:
        assert (path.name in tree) is (path.name != "__init__.py")


def test_the_overview_fits_whatever_a_template_holds() -> None:
    names = ["main.py", "queue/task.py", "queue/scripts/claim.lua", "api/deps.py", "tasks/a.py"]
    files = [PurePath("src/pkg", name) for name in names]
    files += [PurePath("tests/queue/test_task.py"), PurePath(".github/workflows/ci.yml")]
    summary = overview.summarize("svc", files, "pkg", width=80)
    tests = overview.Entry("tests/", "your tests", (overview.Entry("queue/", ANY),))
    [workflows, package, folder] = summary.entries
    assert (workflows.name, package.name) == (".github/workflows/", "src/pkg/")
    assert [entry.name for entry in package.entries] == ["api/", "queue/", "tasks/", "main.py"]
    assert package.entries[1].description == "the queue: works as it is"
    assert folder == tests
    files += [PurePath(f"src/pkg/part{n}/deeper{m}/file.py") for n in range(9) for m in range(9)]
    assert overview.summarize("svc", files, "pkg", width=80).lines() <= overview.MAX_LINES
    files += [PurePath(f"src/pkg/{'long_name' * 5}{n}.py") for n in range(50)]
    assert overview.summarize("svc", files, "pkg", width=80).lines() <= overview.MAX_LINES


def test_backend_chooses_the_backend(tmp_path: Path) -> None:
    done = taskgen("new", "svc", *QUICK, "--backend", "background", "--json", cwd=tmp_path)
    assert json.loads(done.stdout)["backend"] == "background"
    recorded = yaml.safe_load((tmp_path / "svc/.copier-answers.yml").read_text())
    assert recorded["backend"] == "background"


def test_json_is_one_document_that_says_what_was_made(tmp_path: Path) -> None:
    done = taskgen("new", "my svc", "--json", "--set", "project_name=svc", cwd=tmp_path)
    result = json.loads(done.stdout)
    service = tmp_path / "my svc"
    assert result["path"] == str(service)
    assert result["package_name"] == "svc"
    assert result["answers"]["docker"] is True
    assert result["files"] == sorted(result["files"])
    assert set(result["files"]) == set(contents(service)) - {"uv.lock"}
    assert set(result["template"]) == {"source", "version"}
    assert (result["git"], result["synced"], result["dry_run"]) == (True, True, False)
    assert result["next_steps"] == ["cd 'my svc'", "uv run dev", "uv run pytest"]
    assert "uv" in done.stderr


def test_dry_run_shows_every_file_and_writes_nothing(tmp_path: Path) -> None:
    done = taskgen("new", "deep/svc", "--dry-run", cwd=tmp_path)
    assert done.returncode == 0
    assert "Nothing was written" in done.stdout
    listed = json.loads(taskgen("new", "svc", "--dry-run", "--json", cwd=tmp_path).stdout)["files"]
    shown = [line.rpartition(" ")[2] for line in done.stdout.partition("\n\n")[0].splitlines()]
    names = [name for name in shown if not name.endswith("/")]
    assert sorted(names) == sorted(Path(file).name for file in listed)
    done = taskgen("new", "svc", "--dry-run", "--json", cwd=tmp_path)
    result = json.loads(done.stdout)
    assert result["dry_run"] is True
    assert "src/svc/__init__.py" in result["files"]
    assert (result["git"], result["synced"]) == (False, False)
    assert list(tmp_path.iterdir()) == []


def test_dry_run_refuses_what_the_real_run_would(tmp_path: Path) -> None:
    (tmp_path / "svc").mkdir()
    (tmp_path / "svc/mine").touch()
    assert taskgen("new", "svc", "--dry-run", cwd=tmp_path).returncode == 1
    assert taskgen("new", "class", "--dry-run", cwd=tmp_path).returncode == 2
    (tmp_path / "svc/README.md").symlink_to(tmp_path / "elsewhere")
    assert taskgen("new", "svc", "--dry-run", "--force", cwd=tmp_path).returncode == 1


# Git and uv


def test_no_git_and_no_sync_leave_their_steps_out(tmp_path: Path) -> None:
    done = taskgen("new", "svc", *QUICK, cwd=tmp_path)
    names = {path.name for path in (tmp_path / "svc").iterdir()}
    assert not names & {".git", ".venv", "uv.lock"}
    assert "uv sync" in done.stdout


@pytest.mark.parametrize("program", ["git", "uv"])
def test_goes_without_a_program_that_is_not_there(tmp_path: Path, program: str) -> None:
    done = taskgen("new", "svc", "--json", cwd=tmp_path, env=without(program, tmp_path / "bin"))
    result = json.loads(done.stdout)
    assert result["git"] is (program != "git")
    assert result["synced"] is (program != "uv")
    assert f"{program} is not installed" in done.stderr
    assert ("pip install uv" in result["next_steps"]) is (program == "uv")


# Refusals


@pytest.mark.parametrize("arguments", [(), ("--json",)])
def test_refuses_a_folder_that_is_not_empty(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    service = tmp_path / "svc"
    service.mkdir()
    (service / "pyproject.toml").write_text("mine")
    before = (contents(service), service.stat().st_mtime_ns)
    done = taskgen("new", "svc", *arguments, cwd=tmp_path)
    assert done.returncode == 1
    assert (contents(service), service.stat().st_mtime_ns) == before
    if arguments:
        error = json.loads(done.stdout)["error"]
        assert "not empty" in error["message"]
        assert "--force" in error["hint"]
    else:
        assert done.stdout == ""
        assert "not empty" in done.stderr
        assert "--force" in done.stderr


@pytest.mark.parametrize(
    ("target", "sentence"),
    [("file", "is a file"), ("file/svc", "Not a directory"), ("/proc/svc", "No such file")],
)
def test_refuses_a_place_where_no_folder_can_be(tmp_path: Path, target: str, sentence: str) -> None:
    (tmp_path / "file").write_text("mine")
    done = taskgen("new", target, "--yes", cwd=tmp_path)
    assert done.returncode == 1
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr
    assert contents(tmp_path) == {"file": (0o644, b"mine")}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["svc", "--set", "backand=arq"], ['"backand"', 'Did you mean "backend"?', "description"]),
        *((["svc", "--set", f"{key}=x"], [f'"{key}"', "project_name"]) for key in HIDDEN),
        (["svc", "--set", "_subdirectory=/"], ['"_subdirectory"']),
        (["svc", "--set", "backend=rq"], ['"rq"', '"backend"', "arq, celery, background"]),
        (["svc", "--backend", "rq"], ['"rq"', "arq, celery, background"]),
        (["svc", "--set", "docker=maybe"], ['"maybe"', "docker=true"]),
        (["svc", "--set", "docker"], ['"docker"', "KEY=VALUE"]),
        (["svc", "--set", "ci=none", "--set", "ci=github"], ["ci", "twice", "none", "github"]),
        (["svc", "--backend", "arq", "--set", "backend=background"], ["backend", "twice"]),
        (["svc", "--set", "package_name=class"], ["class", "keyword", "--set package_name="]),
        (["class"], ["class", "keyword"]),
        (["-y", "--", "-svc"], ["-svc", "begin"]),
        ([""], ["empty"]),
        ([], ["NAME_OR_PATH"]),
        (["svc", "--unknown"], ["--unknown", "--help"]),
    ],
)
def test_refuses_what_no_service_can_be_made_from(
    tmp_path: Path, arguments: list[str], words: list[str]
) -> None:
    for as_json in ([], ["--json"]):
        done = taskgen("new", *as_json, *arguments, cwd=tmp_path)
        assert done.returncode == 2
        assert "Traceback" not in done.stderr
        said = " ".join(json.loads(done.stdout)["error"].values()) if as_json else done.stderr
        for word in words:
            assert word in said
    assert list(tmp_path.iterdir()) == []


# Force


def test_force_writes_only_the_files_of_the_template(tmp_path: Path) -> None:
    service = tmp_path / "svc"
    (service / "src").mkdir(parents=True)
    (service / "src/mine.py").write_text("mine")
    (service / "README.md").write_text("overwritten")
    done = taskgen("new", "svc", *QUICK, "--force", "--json", cwd=tmp_path)
    files = json.loads(done.stdout)["files"]
    assert "README.md" in files
    assert (service / "README.md").read_text().startswith("# svc")
    assert set(contents(service)) == {*files, "src/mine.py"}
    assert (service / "src/mine.py").read_text() == "mine"


def test_force_does_not_write_through_a_symbolic_link(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    for number, name in enumerate(("src", "README.md")):
        service = tmp_path / f"svc{number}"
        service.mkdir()
        (service / name).symlink_to(tmp_path / "elsewhere")
        done = taskgen("new", service.name, *QUICK, "--force", cwd=tmp_path)
        assert done.returncode == 1
        assert "symbolic link" in done.stderr
        assert [path.name for path in service.iterdir()] == [name]
    service = tmp_path / "svc"
    service.mkdir()
    (service / ".venv").symlink_to(tmp_path / "elsewhere")
    assert taskgen("new", "svc", "--force", cwd=tmp_path).returncode == 1
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_force_refuses_a_folder_in_the_way_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "svc/pyproject.toml").mkdir(parents=True)
    done = taskgen("new", "svc", *QUICK, "--force", cwd=tmp_path)
    assert done.returncode == 1
    assert "in the way" in done.stderr
    assert [path.name for path in (tmp_path / "svc").iterdir()] == ["pyproject.toml"]


# Failures


FAILING_UV = """
mkdir -p .venv && echo half > .venv/half && echo half > uv.lock
echo 'Resolved 3 packages' >&2
echo 'error: the disk is full' >&2
exit 1
"""


def test_leaves_nothing_when_uv_fails(tmp_path: Path) -> None:
    env = fake_program(tmp_path / "bin", "uv", FAILING_UV)
    done = taskgen("new", "deep/svc", cwd=tmp_path, env=env)
    assert done.returncode == 1
    assert "`uv sync` failed" in done.stderr
    assert "error: the disk is full" in done.stderr
    assert "Resolved" not in done.stderr
    assert "--no-sync" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["bin"]
    (tmp_path / "empty").mkdir()
    assert taskgen("new", "empty", cwd=tmp_path, env=env).returncode == 1
    assert list((tmp_path / "empty").iterdir()) == []


def test_restores_what_force_overwrote_when_uv_fails(tmp_path: Path) -> None:
    service = tmp_path / "svc"
    (service / "src").mkdir(parents=True)
    (service / "README.md").write_text("mine")
    (service / "README.md").chmod(0o600)
    (service / "uv.lock").write_text("mine")
    (service / "src/mine.py").write_text("mine")
    before = contents(service)
    env = fake_program(tmp_path / "bin", "uv", FAILING_UV)
    done = taskgen("new", "svc", "--force", cwd=tmp_path, env=env)
    assert done.returncode == 1
    assert contents(service) == before
    assert {path.name for path in service.iterdir()} == {"src", "README.md", "uv.lock"}
    assert "Nothing was left behind" in done.stderr


def test_says_what_cannot_be_restored(tmp_path: Path) -> None:
    (tmp_path / "svc/.venv").mkdir(parents=True)
    env = fake_program(tmp_path / "bin", "uv", FAILING_UV)
    done = taskgen("new", "svc", "--force", "--json", cwd=tmp_path, env=env)
    assert done.returncode == 1
    hint = json.loads(done.stdout)["error"]["hint"]
    assert f"{tmp_path}/svc/.venv existed before and may have changed." in hint
    assert "Nothing was left behind" not in hint
    assert [path.name for path in (tmp_path / "svc").iterdir()] == [".venv"]


def test_ends_what_a_failed_uv_leaves_running(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    pipe = os.open(tmp_path / "fifo", os.O_RDONLY | os.O_NONBLOCK)
    script = f"sleep 300 3> {tmp_path}/fifo &\necho 'error: no' >&2\nexit 1"
    env = fake_program(tmp_path / "bin", "uv", script)
    done = taskgen("new", "svc", cwd=tmp_path, env=env)
    assert done.returncode == 1
    assert "error: no" in done.stderr
    assert read_when_ready(pipe) == b"", "the child of uv is still there"


def test_leaves_nothing_when_the_disk_takes_no_more(tmp_path: Path) -> None:
    script = f"ulimit -f 1 && {BIN}/taskgen new svc --yes"
    done = run("bash", "-c", script, cwd=tmp_path, check=False)
    assert done.returncode == 1
    assert "File too large" in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def read_when_ready(pipe: int) -> bytes:
    """Read what a pipe has, or nothing when all that could write to it has ended."""
    assert select.select([pipe], [], [], 60)[0], "nothing came"
    return os.read(pipe, 100)


@pytest.mark.parametrize(
    ("number", "another", "status"),
    [
        (signal.SIGHUP, signal.SIGINT, 129),
        (signal.SIGINT, signal.SIGTERM, 130),
        (signal.SIGTERM, signal.SIGTERM, 143),
    ],
)
def test_leaves_nothing_when_interrupted(
    tmp_path: Path, number: signal.Signals, another: signal.Signals, status: int
) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    pipe = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    # A uv that has a child, and does not end by itself.
    script = f"exec > {fifo}\nmkdir .venv\nsleep 300 &\necho started\nwait"
    with subprocess.Popen(
        [BIN / "taskgen", "new", "svc"],
        cwd=tmp_path,
        env=ENVIRONMENT | fake_program(tmp_path / "bin", "uv", script),
        stderr=subprocess.PIPE,
        text=True,
        # Whatever started the tests may have it ignored, as a shell does in the background. No
        # threads run here.
        preexec_fn=lambda: signal.signal(number, signal.SIG_DFL),  # noqa: PLW1509
    ) as process:
        assert read_when_ready(pipe) == b"started\n"
        assert (tmp_path / "svc/.venv").is_dir()
        process.send_signal(number)
        process.send_signal(another)
        _, said = process.communicate(timeout=60)
    assert process.returncode == status
    assert "Interrupted" in said
    assert "Traceback" not in said
    assert {path.name for path in tmp_path.iterdir()} == {"bin", "fifo"}
    assert read_when_ready(pipe) == b"", "uv or its child is still there"


IMPORTED = ["taskgen.errors", "typer", "taskgen.cli", "rich.console", "yaml", "copier", "jinja2"]
STEPS = ["Rendering the template", "Writing", "Creating the git repository"]


@pytest.mark.parametrize("sign", [*(rf"\| +{name}$" for name in IMPORTED), *STEPS])
def test_control_c_at_any_moment_shows_no_traceback(tmp_path: Path, sign: str) -> None:
    # Python names each module when its import is complete.
    with subprocess.Popen(
        [BIN / "python", "-X", "importtime", "-m", "taskgen", "new", "svc", "--no-sync"],
        cwd=tmp_path,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
    ) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if re.search(sign, line):
                break
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=60)
    assert "Traceback" not in errors
    assert "Exception ignored" not in errors
    assert process.returncode == 130
    assert "Interrupted." in errors
    # It may have come too late, and then the service is whole and the user knows.
    if list(tmp_path.iterdir()):
        assert is_whole(tmp_path / "svc", "svc")
        assert "uv run dev" in output
        assert f"The service in {tmp_path / 'svc'} is complete." in errors


# The other commands, and what is on the screen


def test_backends_compares_them(tmp_path: Path) -> None:
    listed = json.loads(taskgen("backends", "--json", cwd=tmp_path).stdout)
    assert [backend["name"] for backend in listed] == ["ARQ", "Celery", "BackgroundTasks"]
    assert [backend["generated"] for backend in listed] == [True, True, True]
    generated = [backend["key"] for backend in listed if backend["generated"]]
    assert generated == list(CONFIG["backend"]["choices"].values())
    for width in (40, 80, 200):
        shown = taskgen("backends", cwd=tmp_path, env={"COLUMNS": str(width)}).stdout
        assert max(map(len, shown.splitlines())) <= width
        for aspect in ("Async native", "Broker", "Monitoring", "When not", "Flower", "chord"):
            assert aspect in shown


@pytest.mark.parametrize("command", [["--help"], ["new", "--help"], ["backends", "--help"], []])
def test_help_shows_an_example(tmp_path: Path, command: list[str]) -> None:
    done = taskgen(*command, cwd=tmp_path)
    shown = done.stdout if command else done.stderr
    assert "Usage: taskgen" in shown
    assert done.returncode == (0 if command else 2)
    examples = [line for line in shown.partition("Example")[2].splitlines()[1:] if line.strip()]
    assert examples
    # Examples that work, with each of their words.
    for number, example in enumerate(examples):
        folder = tmp_path / str(number)
        folder.mkdir()
        start = example.partition(" && ")[0].split()[1:]
        quick = ["--no-sync", "--yes"] if start[0] == "new" else []
        assert taskgen(*start, *quick, cwd=folder).returncode == 0


def test_is_a_module_too_and_shows_its_version(tmp_path: Path) -> None:
    module = run(BIN / "python", "-m", "taskgen", "--version", cwd=tmp_path)
    assert module.stdout == taskgen("--version", cwd=tmp_path).stdout
    assert module.stdout.startswith("taskgen 0.")


def test_help_and_refusals_do_not_wait_for_copier(tmp_path: Path) -> None:
    for arguments in (["--help"], ["--version"], ["new", "svc", "--backend", "rq"], ["backends"]):
        program = (
            f"import sys; from taskgen.__main__ import main; sys.argv[1:] = {arguments}\n"
            "try: main()\nexcept SystemExit: sys.exit('copier' in sys.modules)"
        )
        run(BIN / "python", "-c", program, cwd=tmp_path)


def test_shell_completion(tmp_path: Path) -> None:
    env = {"_TASKGEN_COMPLETE": "complete_bash", "COMP_WORDS": "taskgen new svc --backend "}
    done = taskgen(cwd=tmp_path, env={**env, "COMP_CWORD": "4"})
    assert done.stdout.split() == ["arq", "celery", "background"]
    script = run("bash", "-c", f"{BIN}/taskgen --show-completion", cwd=tmp_path).stdout
    assert "_taskgen_completion" in script
    run("bash", "-c", f"{BIN}/taskgen --install-completion", cwd=tmp_path, env={"HOME": "."})
    installed = [path.read_text() for path in tmp_path.rglob("*.sh")]
    assert any("_taskgen_completion" in text for text in installed)


def test_speaks_ascii_where_nothing_else_is_understood(tmp_path: Path) -> None:
    env = {"PYTHONIOENCODING": "ascii"}
    done = taskgen("new", "svc", *QUICK, "--set", "description=Grüße 🎉", cwd=tmp_path, env=env)
    assert done.returncode == 0, done.stderr
    assert done.stdout.isascii()
    assert taskgen("backends", cwd=tmp_path, env=env).stdout.isascii()
    done = taskgen("new", "Grüße", *QUICK, "--set", "project_name=svc", cwd=tmp_path, env=env)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Gr\\xfc\\xdfe/\n")
    refused = taskgen("new", "früh", *QUICK, cwd=tmp_path, env=env)
    assert refused.returncode == 2
    assert "fr\\xfch" in refused.stderr


def test_does_not_let_an_answer_write_to_the_terminal(tmp_path: Path) -> None:
    for value in ("\x1b[2J", "\u202ereversed", "[bold]x[/bold] :boom:"):
        done = taskgen("new", "svc", "--set", f"ci={value}", cwd=tmp_path)
        assert done.returncode == 2
        assert value.isprintable() == (value in done.stderr)
    done = taskgen("new", "[red]x :boom:", *QUICK, "--set", "project_name=svc", cwd=tmp_path)
    assert "cd '[red]x :boom:'" in done.stdout


@pytest.mark.parametrize(
    ("reader", "status"), [("| true", 1), ("> /dev/full", 1), (">&-", 0), ("<&-", 0)]
)
@pytest.mark.parametrize("option", ["--no-git", "--json", "--dry-run"])
def test_says_what_was_done_when_its_output_cannot_be_written(
    tmp_path: Path, option: str, reader: str, status: int
) -> None:
    new = f"{BIN}/taskgen new svc {option} --no-git --no-sync"
    done = run("bash", "-c", f"{new} {reader}; exit ${{PIPESTATUS[0]}}", cwd=tmp_path, check=False)
    assert done.returncode == status
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr
    assert is_whole(tmp_path / "svc", "svc") is (option != "--dry-run")
    if status:
        assert "Standard output: " in done.stderr
        complete = f"The service in {tmp_path / 'svc'} is complete."
        assert ("Nothing was written." if option == "--dry-run" else complete) in done.stderr


@pytest.mark.parametrize("command", ["--help", "--version", "new --help", "backends"])
def test_other_commands_fail_when_their_output_cannot_be_written(
    tmp_path: Path, command: str
) -> None:
    done = run("bash", "-c", f"{BIN}/taskgen {command} > /dev/full", cwd=tmp_path, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("Error: Standard output: No space left on device.")
    # A reader that has seen enough is no error worth a message.
    script = f"{BIN}/taskgen {command} | true; exit ${{PIPESTATUS[0]}}"
    done = run("bash", "-c", script, cwd=tmp_path, check=False)
    assert (done.returncode, done.stderr) == (1, "")


def test_works_from_a_folder_that_is_gone(tmp_path: Path) -> None:
    script = f"mkdir gone && cd gone && rmdir ../gone && {BIN}/taskgen new --no-sync --yes"
    done = run("bash", "-c", f"{script} svc", cwd=tmp_path, check=False)
    assert done.returncode == 1
    assert "No such file or directory" in done.stderr
    assert "Traceback" not in done.stderr
    done = run("bash", "-c", f"{script} {tmp_path}/svc", cwd=tmp_path)
    assert f"cd {tmp_path}/svc" in done.stdout
