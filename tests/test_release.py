"""What is published: source archive and wheel install into clean environments; the service's files are valid."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path
from typing import Any

import pytest

import nearzip

ROOT = Path(__file__).parents[1]
SCHEMAS = {
    "github-workflows": [".github/workflows/tests.yml", ".github/workflows/wheels.yml"],
    "github-issue-forms": [".github/ISSUE_TEMPLATE/bug.yml", ".github/ISSUE_TEMPLATE/idea.yml"],
    "github-issue-config": [".github/ISSUE_TEMPLATE/config.yml"],
    "dependabot": [".github/dependabot.yml"],
    "citation-file-format": ["CITATION.cff"],
}


def load(path: str) -> Any:
    return pytest.importorskip("yaml").safe_load((ROOT / path).read_text(encoding="utf-8"))


def run(*command: str | Path, cwd: Path, **environment: str) -> str:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}
    done = subprocess.run(
        [str(word) for word in command], cwd=cwd, env=clean | environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.mark.parametrize("schema", SCHEMAS)
def test_files_of_the_hosting_service(schema: str):
    pytest.importorskip("check_jsonschema")
    run(sys.executable, "-m", "check_jsonschema", "--builtin-schema", f"vendor.{schema}", *SCHEMAS[schema], cwd=ROOT)


def test_every_such_file_is_checked():
    found = {path.relative_to(ROOT).as_posix() for path in (ROOT / ".github").rglob("*.yml")}
    assert found | {"CITATION.cff"} == {path for paths in SCHEMAS.values() for path in paths}


def test_workflows_name_what_exists():
    for path in SCHEMAS["github-workflows"]:
        text = (ROOT / path).read_text(encoding="utf-8")
        for word in re.findall(r"\b(?:tests|scripts)/[\w./]+", text):
            assert (ROOT / word).exists(), f"{path} names {word}"


def test_the_versions_agree():
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    stated = re.search(r'^version = "(.+)"$', project, re.MULTILINE)
    assert stated is not None
    assert stated[1] == nearzip.__version__ == load("CITATION.cff")["version"]


def test_pre_commit_calls_the_lint_script():
    hooks = [hook for repo in load(".pre-commit-config.yaml")["repos"] for hook in repo["hooks"]]
    assert [hook["entry"].split()[0] for hook in hooks] == ["scripts/lint"]


# ---- source archive and wheel ----------------------------------------------------------------------------------


def first_example() -> str:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    example = re.search(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert example is not None
    return example[1]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Source archive, and the wheel built from it, as `python -m build` makes them. Without downloads."""
    for module in ("build", "scikit_build_core", "nanobind"):
        pytest.importorskip(module)
    if shutil.which("cmake") is None:
        pytest.skip("needs cmake on PATH")
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, ROOT, cwd=folder)
    (source,), (wheel,) = folder.glob("*.tar.gz"), folder.glob("*.whl")
    return {"sdist": source, "wheel": wheel}


@pytest.mark.long
def test_the_wheel_holds_the_package_and_nothing_else(built: dict[str, Path]):
    names = zipfile.ZipFile(built["wheel"]).namelist()
    assert {name.split("/")[0] for name in names} == {"nearzip", f"nearzip-{nearzip.__version__}.dist-info"}
    assert not [name for name in names if name.endswith((".cpp", ".hpp"))]
    assert "nearzip/py.typed" in names
    assert "nearzip/report/store.html" in names
    assert len([name for name in names if name.startswith("nearzip/_core.") and name.endswith((".so", ".pyd"))]) == 1


@pytest.mark.long
@pytest.mark.parametrize("kind", ["sdist", "wheel"])
def test_installed_into_a_clean_environment(built: dict[str, Path], kind: str, tmp_path: Path):
    """Dependencies are those of this environment, without its nearzip."""
    venv.create(tmp_path / "env", with_pip=True)
    python = tmp_path / "env" / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    site = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=tmp_path).strip()
    # A path in a .pth file is searched after the environment's own packages, and its .pth files are not read, so an
    # editable install of nearzip is not found by it.
    (Path(site) / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    run(python, "-m", "pip", "install", "--no-index", "--no-deps", "--no-build-isolation", built[kind], cwd=tmp_path)

    where = run(python, "-c", "import nearzip; print(nearzip.__file__)", cwd=tmp_path).strip()
    assert Path(where).is_relative_to(tmp_path / "env")
    (tmp_path / "example.py").write_text(first_example(), encoding="utf-8")
    run(python, "example.py", cwd=tmp_path)
    command = python.with_name("nearzip.exe" if os.name == "nt" else "nearzip")
    assert "delta-dnn" in run(command, "methods", cwd=tmp_path)
