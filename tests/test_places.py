"""Where a service is created: odd paths, links, other repositories, workspaces, and races."""

import json
import os
import signal
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml
from conftest import BIN, ENVIRONMENT, contents, fake_program, run, taskgen

QUICK = ("--yes", "--no-git", "--no-sync")
ODD = 'it\'s a "#1" 100%41 place; 🎉 {{ 7*7 }} $HOME \\n [x] *'


# Paths


@pytest.mark.parametrize("folder", [ODD, "c:\\colon: "])
def test_creates_a_service_in_a_folder_of_any_name(tmp_path: Path, folder: str) -> None:
    place = tmp_path / folder
    place.mkdir()
    done = taskgen("new", "svc", "--json", cwd=place)
    result = json.loads(done.stdout)
    service = place / "svc"
    assert (done.returncode, result["path"]) == (0, str(service))
    assert (result["git"], result["synced"]) == (True, True)
    run("git", "add", ".", cwd=service)
    assert set(run("git", "ls-files", cwd=service).stdout.split()) == {*result["files"], "uv.lock"}
    # What the user is told to do works there.
    change_folder, _, suite = result["next_steps"]
    shown = run("bash", "-ec", f"{change_folder} && {suite} --collect-only", cwd=place)
    assert "test_health.py" in shown.stdout
    assert ("`uv run` does not work" in done.stderr) is (":" in folder)
    assert suite == (".venv/bin/pytest" if ":" in folder else "uv run pytest")


@pytest.mark.parametrize("folder", [ODD, "c:\\colon: "])
def test_copier_works_in_a_folder_of_any_name(
    tmp_path: Path, repository: Path, folder: str
) -> None:
    place = tmp_path / folder
    place.mkdir()
    run(BIN / "copier", "copy", "--quiet", "--defaults", repository, "svc", cwd=place)
    taskgen("new", "svc", *QUICK, cwd=tmp_path)
    names = (set(contents(root / "svc")) - {"executable.sh"} for root in (place, tmp_path))
    assert len({frozenset(each) for each in names}) == 1


@pytest.mark.parametrize("committed", [True, False])
def test_a_service_in_a_clone_is_no_part_of_the_template(
    tmp_path: Path, repository: Path, *, committed: bool
) -> None:
    clone = tmp_path / "clone"
    run("git", "clone", "--quiet", repository, clone, cwd=tmp_path)
    env = {"PYTHONPATH": str(clone / "src")}
    for new in (["svc", "--no-sync"], ["unversioned", *QUICK]):
        run(BIN / "python", "-m", "taskgen", "new", *new, cwd=clone, env=env)
    if committed:
        run("git", "add", ".", cwd=clone / "svc")
        run("git", "commit", "--quiet", "--message", "Created", cwd=clone / "svc")
    assert run("git", "status", "--porcelain", cwd=clone).stdout == ""
    run(BIN / "copier", "copy", "--quiet", "--defaults", clone, "other", cwd=tmp_path)
    assert not (tmp_path / "other" / "svc").exists()


def test_works_from_a_checkout_in_a_folder_of_any_name(tmp_path: Path, repository: Path) -> None:
    # Copier takes a path that ends so for the address of a repository.
    checkout = tmp_path / ODD / "taskgen.git"
    run("git", "clone", "--quiet", repository, checkout, cwd=tmp_path)
    env = {"PYTHONPATH": str(checkout / "src")}
    run(BIN / "python", "-m", "taskgen", "new", "svc", "--no-sync", cwd=tmp_path, env=env)
    service = tmp_path / "svc"
    recorded = yaml.safe_load((service / ".copier-answers.yml").read_text())
    assert recorded["_src_path"] == str(checkout)
    run("git", "add", ".", cwd=service)
    run("git", "commit", "--quiet", "--message", "Created", cwd=service)
    run(BIN / "copier", "update", "--defaults", cwd=service)
    assert run("git", "status", "--porcelain", cwd=service).stdout == ""


@pytest.mark.parametrize("character", ["\n", "\r", "\x1b", "\x85", "\u2028", "\udcff"], ids=ascii)
def test_refuses_a_path_that_no_environment_works_in(tmp_path: Path, character: str) -> None:
    place = tmp_path / f"a{character}b"
    place.mkdir()
    for arguments in ([place / "svc"], [place / "svc", *QUICK]):
        done = taskgen("new", *arguments, cwd=tmp_path)
        assert done.returncode == 2
        assert "The path" in done.stderr
        assert "Traceback" not in done.stderr
    assert list(place.iterdir()) == []


# Links


def test_refuses_a_loop_of_links(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    (tmp_path / "self").symlink_to("self")
    before = set(tmp_path.iterdir())
    for target in ("a", "self", "a/svc", "self/deep/svc"):
        for option in ("--dry-run", "--force"):
            done = taskgen("new", target, *QUICK, option, "--set=project_name=svc", cwd=tmp_path)
            assert done.returncode == 1, (target, option)
            assert "symbolic links" in done.stderr
            assert "Traceback" not in done.stderr
    assert set(tmp_path.iterdir()) == before


def test_follows_a_link_and_keeps_its_name(tmp_path: Path) -> None:
    (tmp_path / "volume-1").mkdir()
    (tmp_path / "svc").symlink_to("volume-1")
    result = json.loads(taskgen("new", "svc", *QUICK, "--json", cwd=tmp_path).stdout)
    assert result["project_name"] == "svc"
    assert (tmp_path / "volume-1/src/svc/__init__.py").is_file()


# Repositories


def test_creates_no_repository_inside_another(tmp_path: Path) -> None:
    run("git", "init", "--quiet", cwd=tmp_path)
    done = taskgen("new", "services/svc", "--no-sync", cwd=tmp_path)
    assert done.returncode == 0
    assert not (tmp_path / "services/svc/.git").exists()
    assert f"{tmp_path} is a git repository" in done.stderr


def test_creates_no_repository_inside_a_bare_one(tmp_path: Path) -> None:
    run("git", "init", "--quiet", "--bare", "shared.git", cwd=tmp_path)
    for folder in ("shared.git", "shared.git/hooks"):
        done = taskgen("new", "svc", "--no-sync", cwd=tmp_path / folder)
        assert done.returncode == 0
        assert not (tmp_path / folder / "svc/.git").exists()
        assert f"{tmp_path / 'shared.git'} is a git repository without a work tree" in done.stderr


@pytest.mark.parametrize("language", ["C", "de_DE.UTF-8"])
def test_creates_no_repository_inside_one_that_git_does_not_trust(
    tmp_path: Path, language: str
) -> None:
    run("git", "init", "--quiet", cwd=tmp_path)
    env = {"GIT_TEST_ASSUME_DIFFERENT_OWNER": "1", "LC_ALL": language}
    done = taskgen("new", "svc", "--no-sync", cwd=tmp_path, env=env)
    assert done.returncode == 0
    assert not (tmp_path / "svc/.git").exists()
    assert "detected dubious ownership" in done.stderr
    assert "none was created" in done.stderr


def test_creates_no_repository_inside_a_broken_one(tmp_path: Path) -> None:
    (tmp_path / ".git").write_text("gitdir: /nowhere/.git/worktrees/gone\n")
    done = taskgen("new", "svc", "--no-sync", cwd=tmp_path)
    assert done.returncode == 0
    assert not (tmp_path / "svc/.git").exists()
    assert "/nowhere/.git/worktrees/gone" in done.stderr


def test_creates_a_repository_inside_its_own_checkout(repository: Path) -> None:
    env = {"PYTHONPATH": str(repository / "src")}
    python = BIN / "python"
    run(python, "-m", "taskgen", "new", "mine", "--no-sync", cwd=repository, env=env)
    top = run("git", "rev-parse", "--show-toplevel", cwd=repository / "mine").stdout.strip()
    assert top == str(repository / "mine")
    # What lies about in the checkout is neither copied nor warned about.
    done = run(python, "-m", "taskgen", "new", "two", *QUICK, cwd=repository, env=env)
    assert not (repository / "two/mine").exists()
    assert "dirty" not in done.stderr.lower()


# Workspaces


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    """A uv workspace with a package of its own, locked and synced."""
    root = tmp_path / "workspace"
    root.mkdir()
    (root / "pyproject.toml").write_text(
        '[project]\nname = "workspace"\nversion = "1"\nrequires-python = ">=3.11"\n'
        'dependencies = ["six"]\n'
        '[tool.uv.workspace]\nmembers = ["services/*"]\nexclude = ["services/apart"]\n'
    )
    run("uv", "sync", "--quiet", cwd=root)
    return root


def locked(folder: Path) -> set[str]:
    lock = tomllib.loads((folder / "uv.lock").read_text(encoding="utf-8"))
    return {package["name"] for package in lock["package"]}


def test_a_service_in_a_workspace_becomes_a_member_and_says_so(workspace: Path) -> None:
    before = (workspace / "pyproject.toml").read_text()
    done = taskgen("new", "services/svc", cwd=workspace)
    assert done.returncode == 0, done.stderr
    assert f"member of the uv workspace {workspace}" in done.stderr
    assert "Dockerfile needs a uv.lock" in done.stderr
    assert '"services/svc" to `exclude`' in done.stderr
    service = workspace / "services/svc"
    assert not {".venv", "uv.lock"} & {path.name for path in service.iterdir()}
    assert locked(workspace) > {"workspace", "svc", "fastapi"}
    # The workspace's own dependencies are still installed.
    run(workspace / ".venv/bin/python", "-c", "import six, svc", cwd=workspace)
    run("uv", "run", "--locked", "python", "-c", "import svc", cwd=service)
    assert (workspace / "pyproject.toml").read_text() == before
    # Excluded, as the note says, it is a project of its own.
    excluded = before.replace('["services/apart"]', '["services/svc"]')
    (workspace / "pyproject.toml").write_text(excluded)
    run("uv", "sync", "--quiet", cwd=service)
    assert (service / ".venv").is_dir()
    assert locked(service) > {"svc", "fastapi"}


@pytest.mark.parametrize("target", ["services/apart", "elsewhere/svc"])
def test_a_service_that_no_workspace_claims_is_a_project_of_its_own(
    workspace: Path, target: str
) -> None:
    before = (workspace / "uv.lock").read_bytes()
    done = taskgen("new", target, cwd=workspace)
    assert done.returncode == 0, done.stderr
    assert "workspace" not in done.stderr.replace(str(workspace), "")
    assert (workspace / target / ".venv").is_dir()
    assert locked(workspace / target) > {"fastapi"}
    assert (workspace / "uv.lock").read_bytes() == before


def test_a_failed_sync_restores_the_lock_of_the_workspace(workspace: Path) -> None:
    before = contents(workspace)
    script = "mkdir -p ../../.venv && echo half > ../../uv.lock && exit 1"
    env = fake_program(workspace.parent / "bin", "uv", script)
    done = taskgen("new", "services/svc", cwd=workspace, env=env)
    assert done.returncode == 1
    assert contents(workspace) == before
    assert f"{workspace / '.venv'} existed before and may have changed" in done.stderr
    assert not (workspace / "services").exists()


# Races


class Paused:
    """A `taskgen new` that has found its folder free, and is stopped before it writes."""

    def __init__(self, *arguments: str, cwd: Path) -> None:
        self.process = subprocess.Popen(
            [BIN / "taskgen", "new", *arguments],
            cwd=cwd,
            env=ENVIRONMENT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stderr is not None
        assert self.process.stderr.readline() == "Rendering the template...\n"
        self.process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, self.process.pid, os.WSTOPPED)

    def resume(self) -> tuple[int, str]:
        """Let it run to its end, and return its exit code and its errors."""
        self.process.send_signal(signal.SIGCONT)
        _, errors = self.process.communicate(timeout=60)
        return self.process.returncode, errors


@pytest.mark.parametrize("exists", [True, False], ids=["empty", "absent"])
def test_of_two_for_one_folder_one_succeeds_and_the_other_says_so(
    tmp_path: Path, *, exists: bool
) -> None:
    if exists:
        (tmp_path / "svc").mkdir()
    first = Paused("svc", *QUICK, "--set=ci=none", "--set=description=First", cwd=tmp_path)
    second = Paused("svc", *QUICK, "--backend=background", cwd=tmp_path)
    assert second.resume()[0] == 0
    made = contents(tmp_path / "svc")
    status, errors = first.resume()
    assert status == 1
    assert "created by another program in the meantime" in errors
    assert "Traceback" not in errors
    assert contents(tmp_path / "svc") == made
    assert b"background" in made[".copier-answers.yml"][1]


def test_many_at_once_make_one_service(tmp_path: Path) -> None:
    descriptions = [f"Number {number}" for number in range(6)]
    racing = [
        subprocess.Popen(
            [BIN / "taskgen", "new", "svc", *QUICK, f"--set=description={description}"],
            cwd=tmp_path,
            env=ENVIRONMENT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for description in descriptions
    ]
    codes = [process.wait(60) for process in racing]
    assert sorted(codes) == [0, *[1] * 5]
    winner = descriptions[codes.index(0)]
    readme = (tmp_path / "svc/README.md").read_text()
    assert [each for each in descriptions if each in readme] == [winner]


@pytest.mark.parametrize("name", ["README.md", "src/svc/__init__.py", ".copier-answers.yml"])
def test_does_not_overwrite_what_appears_in_the_meantime(tmp_path: Path, name: str) -> None:
    paused = Paused("svc", *QUICK, cwd=tmp_path)
    (tmp_path / "svc" / name).parent.mkdir(parents=True)
    (tmp_path / "svc" / name).write_text("mine")
    (tmp_path / "svc/other.txt").write_text("mine")
    status, errors = paused.resume()
    assert status == 1
    assert str(tmp_path / "svc" / name) in errors
    files = {name: content for name, (_, content) in contents(tmp_path / "svc").items()}
    assert files == {name: b"mine", "other.txt": b"mine"}


def test_keeps_what_appears_in_the_meantime(tmp_path: Path) -> None:
    script = "echo mine > mine.txt; mkdir .venv; exit 1"
    done = taskgen("new", "svc", cwd=tmp_path, env=fake_program(tmp_path / "bin", "uv", script))
    assert done.returncode == 1
    assert f"Left behind: {tmp_path / 'svc/mine.txt'}." in done.stderr
    assert [path.name for path in (tmp_path / "svc").iterdir()] == ["mine.txt"]
