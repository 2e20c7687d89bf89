"""The wheel and the sdist: what they contain, and that a wheel alone is enough."""

import json
import re
import tarfile
import zipfile
from pathlib import Path

import pytest
import yaml
from conftest import BIN, CHECKOUT, contents, run, taskgen

from taskgen import template


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from the sdist, in one folder with it."""
    built = tmp_path_factory.mktemp("dist")
    run("uv", "build", "--quiet", CHECKOUT, "--out-dir", built, cwd=built)
    return next(built.glob("*.whl"))


def template_files() -> set[str]:
    paths = [path for name in ("template", "fragments") for path in (CHECKOUT / name).rglob("*")]
    files = {
        str(path.relative_to(CHECKOUT))
        for path in paths
        if path.is_file() and "__pycache__" not in path.parts
    }
    return {"copier.yml", *files}


def test_the_wheel_has_the_package_and_the_template_and_nothing_else(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    source = {f"taskgen/_source/{name}" for name in template_files()}
    package = {
        str(path.relative_to(CHECKOUT / "src"))
        for path in (CHECKOUT / "src/taskgen").iterdir()
        if path.is_file()
    }
    assert "taskgen/py.typed" in package
    assert {name for name in names if ".dist-info/" not in name} == source | package
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_the_sdist_has_what_the_wheel_is_built_from(wheel: Path) -> None:
    with tarfile.open(next(wheel.parent.glob("*.tar.gz"))) as sdist:
        names = {name.partition("/")[2] for name in sdist.getnames()}
    assert names >= {"pyproject.toml", "src/taskgen/cli.py", *template_files()}


def test_the_metadata_names_a_free_distribution_and_no_home(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    [metadata] = [name for name in archive.namelist() if name.endswith("dist-info/METADATA")]
    # What follows the first empty line is the README.
    fields, _, _ = archive.read(metadata).decode().partition("\n\n")
    # `taskgen` is somebody else's.
    assert re.findall("^Name: (.*)$", fields, re.MULTILINE) == [template.DISTRIBUTION]
    assert "Home-Page" not in fields
    assert "Project-URL" not in fields
    assert wheel.name.startswith(f"{template.DISTRIBUTION.replace('-', '_')}-")


def test_the_wheel_alone_makes_the_service_that_the_checkout_makes(
    wheel: Path, tmp_path: Path
) -> None:
    run("uv", "venv", "--quiet", "--python", BIN / "python", "env", cwd=tmp_path)
    install = ["uv", "pip", "install", "--quiet", "--python", "env/bin/python"]
    # Compiled as pip does it: the template's modules too, which must not end up in a service.
    run(*install, "--compile-bytecode", wheel, cwd=tmp_path)
    assert list((tmp_path / "env").rglob("_source/template/**/__pycache__"))

    (tmp_path / "elsewhere").mkdir()
    done = run(tmp_path / "env/bin/taskgen", "new", "svc", "--json", cwd=tmp_path / "elsewhere")
    result = json.loads(done.stdout)
    assert result["synced"] is True
    assert not [name for name in result["files"] if "__pycache__" in name]
    service = tmp_path / "elsewhere/svc"
    recorded = yaml.safe_load((service / ".copier-answers.yml").read_text())
    assert "_src_path" not in recorded
    assert recorded["_commit"] == f"v{wheel.name.split('-')[1]}"
    assert "set _src_path in its .copier-answers.yml" in done.stderr
    assert not [
        name
        for name in result["files"]
        if b"site-packages" in (service / name).read_bytes()
        or str(tmp_path).encode() in (service / name).read_bytes()
    ]
    taskgen("new", "svc", "--yes", "--no-git", "--no-sync", cwd=tmp_path)
    made, expected = contents(service), contents(tmp_path / "svc")
    different = {name for name in expected if made[name] != expected[name]}
    assert (set(made), different) == ({*expected, "uv.lock"}, {".copier-answers.yml"})
    suite = run("uv", "run", "pytest", "tests/test_health.py", cwd=service)
    assert " passed" in suite.stdout
