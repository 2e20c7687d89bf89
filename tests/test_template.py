"""Where the template comes from, and what `copier update` makes of it later."""

import json
import os
from pathlib import Path

import yaml
from conftest import BIN, run


def install(requirement: str | Path, folder: Path, *options: str) -> Path:
    """Install taskgen into a new environment, and return its command."""
    run("uv", "venv", "--quiet", "--python", BIN / "python", "env", cwd=folder)
    python = folder / "env/bin/python"
    run("uv", "pip", "install", "--quiet", "--python", python, *options, requirement, cwd=folder)
    return folder / "env/bin/taskgen"


def recorded_by(command: Path, folder: Path) -> dict[str, str]:
    """Make a service, and read its answers file."""
    done = run(command, "new", "svc", "--yes", "--no-git", "--no-sync", "--json", cwd=folder)
    answers: dict[str, str] = yaml.safe_load((folder / "svc/.copier-answers.yml").read_text())
    assert json.loads(done.stdout)["template"] == {
        "source": answers["_src_path"],
        "version": answers.get("_commit"),
    }
    assert "site-packages" not in (folder / "svc/.copier-answers.yml").read_text()
    return answers


def test_a_git_install_records_its_repository_and_commit(tmp_path: Path, repository: Path) -> None:
    taskgen = install(f"taskgen @ git+{repository.as_uri()}@v0.1.0", tmp_path)
    answers = recorded_by(taskgen, tmp_path)
    assert answers["_src_path"] == f"git+{repository.as_uri()}"
    assert answers["_commit"] == run("git", "rev-parse", "HEAD", cwd=repository).stdout.strip()
    # Which is where Copier finds it again.
    service = tmp_path / "svc"
    run("git", "init", "--quiet", cwd=service)
    run("git", "add", "--all", cwd=service)
    run("git", "commit", "--quiet", "--message", "Made", cwd=service)
    run(BIN / "copier", "update", "--defaults", cwd=service)
    assert yaml.safe_load((service / ".copier-answers.yml").read_text())["_commit"] == "v0.1.0"


def test_a_checkout_records_itself_as_git_describes_it(tmp_path: Path, repository: Path) -> None:
    checkout = tmp_path / "a long way/to a checkout/with spaces in its name" / ("x" * 60)
    run("git", "clone", "--quiet", repository, checkout, cwd=tmp_path)
    taskgen = install(checkout, tmp_path, "--editable")
    answers = recorded_by(taskgen, tmp_path)
    assert answers["_src_path"] == str(checkout)
    assert answers["_commit"] == "v0.1.0"
    # An unpacked archive has no history to tell of, and what it lies in has another.
    (checkout / ".git").rename(tmp_path / "history")
    run("git", "init", "--quiet", cwd=tmp_path)
    run("git", "commit", "--quiet", "--allow-empty", "--message", "Other", cwd=tmp_path)
    (tmp_path / "again").mkdir()
    answers = recorded_by(taskgen, tmp_path / "again")
    assert answers["_src_path"] == str(checkout)
    assert "_commit" not in answers


def test_a_plain_install_records_the_source_of_its_release(
    tmp_path: Path, repository: Path
) -> None:
    taskgen = install(repository, tmp_path)
    answers = recorded_by(taskgen, tmp_path)
    assert answers["_src_path"] == "https://github.com/taskgen/taskgen"
    assert answers["_commit"] == "v0.1.0"


def test_an_edit_survives_an_update_of_the_template(tmp_path: Path, repository: Path) -> None:
    source = tmp_path / "taskgen"
    run("git", "clone", "--quiet", repository, source, cwd=tmp_path)
    service = tmp_path / "svc"
    run(BIN / "copier", "copy", "--defaults", "--quiet", source, service, cwd=tmp_path)
    run("git", "init", "--quiet", cwd=service)
    module = service / "src/svc/__init__.py"
    module.write_text(module.read_text() + "\nMINE = True\n")
    (service / "mine.txt").write_text("mine")
    run("git", "add", "--all", cwd=service)
    run("git", "commit", "--quiet", "--message", "Mine", cwd=service)

    package = source / "template/src/{{package_name}}/__init__.py.jinja"
    package.write_text("# Theirs.\n" + package.read_text())
    (source / "template/theirs.txt").write_text("theirs")
    run("git", "add", "--all", cwd=source)
    run("git", "commit", "--quiet", "--message", "Theirs", cwd=source)
    run("git", "tag", "v0.2.0", cwd=source)
    run(BIN / "copier", "update", "--defaults", cwd=service)

    text = module.read_text()
    assert text.startswith("# Theirs.\n")
    assert text.endswith("\nMINE = True\n")
    assert "<<<<" not in text
    assert (service / "mine.txt").read_text() == "mine"
    assert (service / "theirs.txt").read_text() == "theirs"
    recorded = yaml.safe_load((service / ".copier-answers.yml").read_text())
    assert recorded["_commit"] == "v0.2.0"
    changed = run("git", "status", "--porcelain", cwd=service).stdout.split()[1::2]
    assert set(changed) == {".copier-answers.yml", "src/svc/__init__.py", "theirs.txt"}


def test_a_service_of_taskgen_can_be_updated_too(tmp_path: Path, repository: Path) -> None:
    source = tmp_path / "taskgen"
    run("git", "clone", "--quiet", repository, source, cwd=tmp_path)
    env = os.environ | {"PYTHONPATH": str(source / "src")}
    new = (BIN / "python", "-m", "taskgen", "new", "svc", "--yes", "--no-sync")
    run(*new, cwd=tmp_path, env=env)
    service = tmp_path / "svc"
    run("git", "add", "--all", cwd=service)
    run("git", "commit", "--quiet", "--message", "Made", cwd=service)
    (source / "template/theirs.txt").write_text("theirs")
    run("git", "add", "--all", cwd=source)
    run("git", "commit", "--quiet", "--message", "Theirs", cwd=source)
    run("git", "tag", "v0.2.0", cwd=source)
    run(BIN / "copier", "update", "--defaults", cwd=service)
    assert (service / "theirs.txt").read_text() == "theirs"
