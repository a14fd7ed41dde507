"""Imports point one way: each module imports only rows above its own. And nothing in them runs code from a file."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import nearzip

ROOT = Path(nearzip.__file__).parent

#: From the ground up. `blocks` stands below the container because it knows nothing of bytes; `plots` is
#: drawn by the demo alone.
ROWS = (
    "errors",
    "strictjson",
    "plugins",
    "caching",
    "buffers",
    "parallel",
    "childprocess",
    "limits",
    "version",
    "statistics",
    "display",
    "tensors",
    "names",
    "attached",
    "frameworks",
    "digests",
    "matching",
    "moments",
    "changes",
    "bounds",
    "stages",
    "choice",
    "codec",
    "recipes",
    "coding",
    "ties",
    "blocks",
    "fileio",
    "sources",
    "framing",
    "index",
    "container",
    "updates",
    "coding_index",
    "sparse",
    "archive",
    "writing",
    "reading",
    "checkpoints",
    "inputs",
    "api",
    "estimates",
    "similarity",
    "figures",
    "comparison",
    "budget",
    "network",
    "measures",
    "store",
    "federated",
    "flower",
    "nvflare",
    "torch",
    "calibrate",
    "condense",
    "datasets",
    "testing",
    "plots",
    "report",
    "correctness",
    "demo",
    "cli",
)
#: They gather what others define.
EXCEPTED = ("__init__.py", "__main__.py", "registry.py")

MODULES = sorted(path for path in ROOT.rglob("*.py"))


def row_of(module: str) -> int:
    """`module`: dotted, without the package's name."""
    return ROWS.index(module.split(".")[0])


def imports_of(path: Path) -> set[str]:
    """Modules of ours that a file imports, wherever in the file, without the package's name."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module is not None:
            names = [node.module] if node.module != "nearzip" else [f"nearzip.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = ["nearzip.relative import"]
        found |= {name.removeprefix("nearzip.") for name in names if name.startswith("nearzip.")}
    return found - {"_core", "__version__"}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_one_way(path):
    module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    if path.name in EXCEPTED:
        return
    for imported in imports_of(path):
        assert imported.split(".")[0] in ROWS, f"{module} imports {imported}, which has no row in {Path(__file__).name}"
        same_package = "." in module and imported.split(".")[0] == module.split(".")[0]
        assert same_package or row_of(imported) < row_of(module), f"{module} imports {imported}, which is not above it"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_module_has_a_row(path):
    first = path.relative_to(ROOT).parts[0].removesuffix(".py")
    assert first in ROWS or first in ("__init__", "__main__"), f"{path.name} has no row in {Path(__file__).name}"


def test_the_map_of_the_package_is_that_of_its_modules():
    script = Path(__file__).parents[1] / "scripts" / "map"
    run = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr


def test_there_are_no_circles_inside_packages():
    for package in sorted({path.relative_to(ROOT).parts[0] for path in MODULES if path.parent != ROOT}):
        files = [path for path in (ROOT / package).rglob("*.py") if path.name not in EXCEPTED]
        graph = {
            ".".join(path.relative_to(ROOT).with_suffix("").parts): {
                name for name in imports_of(path) if name.startswith(f"{package}.")
            }
            for path in files
        }
        while graph:
            free = [module for module, needed in graph.items() if not needed & set(graph)]
            assert free, f"these import each other: {', '.join(sorted(graph))}"
            for module in free:
                del graph[module]


# ---- experiments -----------------------------------------------------------------------------------------------

EXPERIMENTS = Path(__file__).parents[1] / "experiments"
#: Part of `experiments`: what it may import besides itself. Below `claims` and `papers`, every folder is a part.
PARTS = {"lab": set(), "claims": {"lab"}, "papers": {"lab"}, "docs": {"lab", "claims", "papers", "registry"}}


def part_of(module: str) -> str:
    """`claims.bits` of `claims.bits.rates`; `lab` of everything in it."""
    names = module.split(".")
    return ".".join(names[:2]) if names[0] in ("claims", "papers") else names[0]


def experiments_imported(path: Path) -> set[str]:
    """Modules of `experiments` that a file of it imports, wherever in the file, without the package's name."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                is_module = (EXPERIMENTS.parent / f"{name.replace('.', '/')}.py").is_file()
                found.add(name if is_module else node.module)
    return {name.removeprefix("experiments.") for name in found if name.startswith("experiments.")}


EXPERIMENT_FILES = {
    ".".join(path.relative_to(EXPERIMENTS).with_suffix("").parts): path
    for path in sorted(EXPERIMENTS.rglob("*.py"))
    if path.parent != EXPERIMENTS
}


@pytest.mark.parametrize("module", EXPERIMENT_FILES)
def test_experiments_import_one_way(module):
    """Claims and papers import the lab, the documentation imports all of them, and no claim imports another."""
    own = part_of(module)
    for imported in experiments_imported(EXPERIMENT_FILES[module]):
        other = part_of(imported)
        allowed = other == own or other.split(".")[0] in PARTS[own.split(".")[0]]
        assert allowed, f"experiments: {module} imports {imported}"


def test_there_are_no_circles_in_experiments():
    graph = {
        module: {name for name in experiments_imported(path) if name in EXPERIMENT_FILES}
        for module, path in EXPERIMENT_FILES.items()
    }
    while graph:
        free = [module for module, needed in graph.items() if not needed & set(graph)]
        assert free, f"these import each other: {', '.join(sorted(graph))}"
        for module in free:
            del graph[module]


def test_every_command_has_its_module():
    from experiments.registry import COMMANDS

    for name, target in COMMANDS.items():
        module, _, function = target.partition(":")
        names = {node.name for node in ast.parse(EXPERIMENT_FILES[module].read_text()).body
                 if isinstance(node, ast.FunctionDef)}  # fmt: skip
        assert (function or "main") in names, f"bench {name}"


# ---- what no module of ours may call ---------------------------------------------------------------------------

BANNED = {
    "eval", "exec", "compile", "pickle.load", "pickle.loads", "pickle.Unpickler", "marshal.load",
    "marshal.loads", "yaml.load", "yaml.unsafe_load", "os.system", "os.popen", "shelve.open", "dill.load", "dill.loads",
    "joblib.load", "cloudpickle.load", "cloudpickle.loads",
}  # fmt: skip


def dotted(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else "?"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_runs_code_from_a_file(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.Call):
            continue
        called, where = dotted(node.func), f"{path.relative_to(ROOT)}, line {node.lineno}"
        options = {keyword.arg: getattr(keyword.value, "value", None) for keyword in node.keywords}
        assert called not in BANNED, f"{where}: {called}"
        if called == "torch.load":
            assert options.get("weights_only") is True, f"{where}: torch.load without weights_only=True"
        if called in ("np.load", "numpy.load", "np.lib.format.read_array"):
            assert options.get("allow_pickle") is False, f"{where}: {called} without allow_pickle=False"
        assert options.get("shell") is not True, f"{where}: {called} with a shell"


def test_importing_nearzip_needs_no_heavy_package():
    code = (
        "import sys, nearzip\n"
        "heavy = {'torch', 'matplotlib', 'sklearn', 'click', 'rich'} & set(sys.modules)\n"
        "raise SystemExit(', '.join(sorted(heavy)) or None)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
