"""Where a service says that it comes from, and what Copier does with it later."""

import json
import os
import re
from collections.abc import Mapping
from importlib.metadata import Distribution
from pathlib import Path

import pytest
import yaml
from conftest import BIN, CHECKOUT, contents, run

from taskgen import template

# The owner of that name on GitHub is not this project.
STRANGERS = "github.com/taskgen"


def install(requirement: str | Path, folder: Path, *options: str) -> Path:
    """Install taskgen into a new environment, and return its command."""
    run("uv", "venv", "--quiet", "--python", BIN / "python", "env", cwd=folder)
    python = folder / "env/bin/python"
    run("uv", "pip", "install", "--quiet", "--python", python, *options, requirement, cwd=folder)
    return folder / "env/bin/taskgen"


def recorded_by(command: Path, folder: Path) -> dict[str, str]:
    """Create a service, and read its answers file."""
    done = run(command, "new", "svc", "--yes", "--no-git", "--no-sync", "--json", cwd=folder)
    text = (folder / "svc/.copier-answers.yml").read_text()
    answers: dict[str, str] = yaml.safe_load(text)
    result = json.loads(done.stdout)
    assert result["template"] == {
        "source": answers.get("_src_path"),
        "version": answers.get("_commit"),
    }
    assert "site-packages" not in text
    assert STRANGERS not in text
    notes = [note for note in result["notes"] if "copier update" in note]
    assert len(notes) == ("_src_path" not in answers)
    assert all(note in done.stderr for note in notes)
    return answers


def commit(folder: Path, message: str) -> None:
    """Commit everything in a folder, which becomes a repository if it is none."""
    run("git", "init", "--quiet", cwd=folder)
    run("git", "add", "--all", cwd=folder)
    run("git", "commit", "--quiet", "--message", message, cwd=folder)


def update(service: Path, *options: str) -> None:
    run(BIN / "copier", "update", "--quiet", "--defaults", *options, cwd=service)


def release(source: Path, tag: str) -> None:
    """Release a template that has one more file."""
    (source / "template/theirs.txt").write_text("theirs")
    commit(source, "Theirs")
    run("git", "tag", tag, cwd=source)


# The origin


def test_a_git_install_records_its_repository_and_commit(tmp_path: Path, repository: Path) -> None:
    source = f"git+{repository.as_uri()}"
    taskgen = install(f"{template.DISTRIBUTION} @ {source}@v0.1.0", tmp_path)
    answers = recorded_by(taskgen, tmp_path)
    assert answers["_src_path"] == source
    assert answers["_commit"] == run("git", "rev-parse", "HEAD", cwd=repository).stdout.strip()
    # There Copier finds it again.
    service = tmp_path / "svc"
    commit(service, "Created")
    update(service)
    assert yaml.safe_load((service / ".copier-answers.yml").read_text())["_commit"] == "v0.1.0"


def test_a_checkout_records_its_path_and_what_git_describes(
    tmp_path: Path, repository: Path
) -> None:
    checkout = tmp_path / "a long way/to a checkout/with spaces in its name" / ("x" * 60)
    run("git", "clone", "--quiet", repository, checkout, cwd=tmp_path)
    # Its remote is not recorded: it may need credentials, or contain them.
    run("git", "remote", "set-url", "origin", "https://me:secret@example.org/it", cwd=checkout)
    taskgen = install(checkout, tmp_path, "--editable")
    answers = recorded_by(taskgen, tmp_path)
    assert answers["_src_path"] == str(checkout)
    assert answers["_commit"] == "v0.1.0"
    # An unpacked archive has no history, and the repository that it lies in has another.
    (checkout / ".git").rename(tmp_path / "history")
    run("git", "init", "--quiet", cwd=tmp_path)
    run("git", "commit", "--quiet", "--allow-empty", "--message", "Other", cwd=tmp_path)
    (tmp_path / "again").mkdir()
    answers = recorded_by(taskgen, tmp_path / "again")
    assert answers["_src_path"] == str(checkout)
    assert "_commit" not in answers


def test_a_plain_install_records_no_origin_and_says_what_to_do(
    tmp_path: Path, repository: Path
) -> None:
    source = tmp_path / "taskgen"
    run("git", "clone", "--quiet", repository, source, cwd=tmp_path)
    answers = recorded_by(install(source, tmp_path), tmp_path)
    assert "_src_path" not in answers
    assert answers["_commit"] == "v0.1.0"
    # What its answers file says works.
    service = tmp_path / "svc"
    answers_file = service / ".copier-answers.yml"
    text = answers_file.read_text()
    assert text.count("# _src_path:\n") == 1
    answers_file.write_text(text.replace("# _src_path:\n", f"_src_path: {source}\n"))
    commit(service, "Created")
    release(source, "v0.2.0")
    update(service)
    assert (service / "theirs.txt").read_text() == "theirs"
    assert yaml.safe_load(answers_file.read_text())["_commit"] == "v0.2.0"


class Installed(Distribution):
    """An installation with a given record of its origin (PEP 610)."""

    def __init__(self, direct_url: Mapping[str, object] | None) -> None:
        self._direct_url = direct_url

    def read_text(self, filename: str) -> str | None:
        """Return the record, the only file that there is."""
        assert filename == "direct_url.json"
        return json.dumps(self._direct_url) if self._direct_url else None

    def locate_file(self, path: str | os.PathLike[str]) -> Path:
        """Not needed here."""
        raise NotImplementedError

    @property
    def version(self) -> str:
        """Return a version."""
        return "1.2.3"


@pytest.mark.parametrize(
    ("url", "source"),
    [
        ("https://github.com/me/taskgen", "https://github.com/me/taskgen"),
        ("https://example.org/taskgen.git", "https://example.org/taskgen.git"),
        ("https://example.org/taskgen", "git+https://example.org/taskgen"),
        ("https://me:secret@example.org:8443/a.git", "https://example.org:8443/a.git"),
        ("https://token@example.org/a.git?x=1", "git+https://example.org/a.git?x=1"),
        ("ssh://git@example.org/a.git", "ssh://git@example.org/a.git"),
        ("ssh://git:secret@example.org:22/a", "git+ssh://git@example.org:22/a"),
        ("file:///home/me/taskgen", "git+file:///home/me/taskgen"),
    ],
)
def test_the_address_of_a_git_install_is_for_copier_and_without_secrets(
    url: str, source: str
) -> None:
    vcs = {"url": url, "vcs_info": {"vcs": "git", "commit_id": "abc"}}
    assert template.installed_origin(Installed(vcs)) == template.Origin(source, "abc")


@pytest.mark.parametrize(
    "direct_url",
    [
        None,
        {"url": "file:///home/me/taskgen", "dir_info": {}},
        {"url": "file:///home/me/taskgen.whl", "archive_info": {}},
        {"url": "https://x.org", "vcs_info": {"vcs": "git", "commit_id": "a"}, "subdirectory": "b"},
        {"url": "https://x.org", "vcs_info": {"vcs": "hg", "commit_id": "a"}},
    ],
)
def test_an_install_that_copier_cannot_fetch_has_the_home_of_the_project(
    monkeypatch: pytest.MonkeyPatch, direct_url: Mapping[str, object] | None
) -> None:
    installed = Installed(direct_url)
    assert template.installed_origin(installed) == template.Origin(None, "v1.2.3")
    monkeypatch.setattr(template, "HOME", "https://example.org/home")
    home = template.Origin("git+https://example.org/home", "v1.2.3")
    assert template.installed_origin(installed) == home


def test_nothing_that_is_packaged_or_generated_names_a_repository_of_strangers() -> None:
    packaged = [CHECKOUT / "pyproject.toml", CHECKOUT / "copier.yml"]
    for folder in ("src", "template", "fragments"):
        packaged += [path for path in (CHECKOUT / folder).rglob("*") if path.is_file()]
    assert not [path for path in packaged if STRANGERS.encode() in path.read_bytes()]


# Updates


def test_an_edit_survives_an_update_of_the_template(tmp_path: Path, repository: Path) -> None:
    source = tmp_path / "taskgen"
    run("git", "clone", "--quiet", repository, source, cwd=tmp_path)
    service = tmp_path / "svc"
    run(BIN / "copier", "copy", "--defaults", "--quiet", source, service, cwd=tmp_path)
    module = service / "src/svc/__init__.py"
    module.write_text(module.read_text() + "\nMINE = True\n")
    (service / "mine.txt").write_text("mine")
    commit(service, "Mine")

    package = source / "template/src/{{package_name}}/__init__.py.jinja"
    package.write_text("# Theirs.\n" + package.read_text())
    release(source, "v0.2.0")
    update(service)

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
    commit(service, "Created")
    release(source, "v0.2.0")
    update(service)
    assert (service / "theirs.txt").read_text() == "theirs"


def test_an_overlay_is_copied_updated_and_exchanged(tmp_path: Path, repository: Path) -> None:
    # Folders whose names render to "." lie over the one that they are in. Copier does not promise
    # it: this is the proof, with the newest Copier that the project allows.
    source = tmp_path / "taskgen"
    run("git", "clone", "--quiet", repository, source, cwd=tmp_path)

    def copied(backend: str, name: str) -> Path:
        folder = tmp_path / name / "svc"
        answer = f"--data=backend={backend}"
        run(BIN / "copier", "copy", "--quiet", "--defaults", answer, source, folder, cwd=tmp_path)
        return folder

    in_arq, in_background = (contents(copied(name, name)) for name in ("arq", "background"))
    arq, background = set(in_arq), set(in_background)
    assert arq - background
    assert not [name for name in arq | background if re.search(r"[{}]|(^|/)\.(/|$)", name)]

    service = copied("arq", "mine")
    assert set(contents(service)) == arq
    (service / "src/svc/tasks/mine.py").write_text("MINE = True\n")
    # An edit where the backends are the same, in a file that differs and in one that does not.
    project = service / "pyproject.toml"
    project.write_text(project.read_text().replace('version = "0.1.0"', 'version = "9.9.9"'))
    shared = next(name for name in sorted(arq & background) if in_arq[name] == in_background[name])
    (service / shared).write_bytes(in_arq[shared][1] + b"# Mine.\n")
    commit(service, "Mine")

    # An update that merges: an overlay's file that its owner has changed, too.
    [overlay] = (source / "template").glob("*arq*")
    files = {
        path.relative_to(overlay).as_posix().replace("{{package_name}}", "svc"): path
        for path in overlay.rglob("*.py")
        if path.stat().st_size
    }
    name = min(files.keys() & (arq - background))
    theirs = files[name]
    (service / name).write_text(f"{(service / name).read_text()}\n# Mine.\n")
    commit(service, "Mine in an overlay")
    theirs.write_text(f"# Theirs.\n{theirs.read_text()}")
    (overlay / "theirs.md").write_text("theirs")
    release(source, "v0.2.0")
    update(service)
    assert (service / name).read_text().startswith("# Theirs.\n")
    assert (service / name).read_text().endswith("\n# Mine.\n")
    assert (service / "theirs.md").read_text() == "theirs"
    commit(service, "Updated")

    for backend in ("background", "celery", "arq"):
        update(service, f"--data=backend={backend}")
        fresh, made = contents(copied(backend, f"fresh {backend}")), contents(service)
        assert set(made) == {*fresh, "src/svc/tasks/mine.py"}
        assert made["src/svc/tasks/mine.py"][1] == b"MINE = True\n"
        assert made[shared][1].endswith(b"\n# Mine.\n")
        assert b'version = "9.9.9"' in made["pyproject.toml"][1]
        different = {name for name in fresh if made[name] != fresh[name]}
        assert different == {"pyproject.toml", shared}
        assert run("git", "diff", "--check", cwd=service).stdout == ""
        commit(service, f"Now with {backend}")
