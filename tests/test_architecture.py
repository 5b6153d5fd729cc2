"""The architecture: allowed imports, file names and sizes, docstrings, top-level entries."""

import ast
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
#: Files that git tracks. Empty outside of a clone, where the top level is not checked.
TRACKED = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True).stdout.split()
SOURCES = sorted(
    path
    for folder in ("csrc", "dissim_kernels", "python", "bench", "tests")
    for path in (ROOT / folder).rglob("*")
    if path.suffix in (".py", ".h", ".cpp", ".cu", ".cuh", ".html")
)
MODULES = [path for path in SOURCES if path.suffix == ".py"]
MAX_LINES = 500
TOP_LEVEL = {
    *("pyproject.toml", "setup.py", "MANIFEST.in", "csrc", "dissim_kernels", "python", "bench", "tests"),
    *("README.md", "CONTRIBUTING.md", "LICENSE", "CHANGELOG.md", "CITATION.cff", "Makefile", "docs", ".ci"),
}

#: Package or module -> what it may import of dissim_kernels. The first prefix of a module's name applies.
MAY_IMPORT = {
    "dissim_kernels.contract": (),
    "dissim_kernels.operands": ("dissim_kernels.contract",),
    "dissim_kernels.backends": ("dissim_kernels.backends", "dissim_kernels.contract"),
    "dissim_kernels.dispatch": ("dissim_kernels.backends", "dissim_kernels.contract"),
    "dissim_kernels.ops": (
        *("dissim_kernels.ops", "dissim_kernels.dispatch", "dissim_kernels.contract", "dissim_kernels.operands"),
    ),
    "dissim_kernels.testing": ("dissim_kernels.dispatch", "dissim_kernels.contract"),
    "dissim_kernels.numpy": ("dissim_kernels._numpy",),
    "dissim_kernels": ("dissim_kernels.ops",),
}


def module_name(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    parts = parts[1:] if parts[0] == "python" else parts
    return ".".join(part for part in parts if part != "__init__")


def relative(path):
    return str(path.relative_to(ROOT))


def imports(path):
    """The modules that a file imports (absolute names), each with the names imported from it."""
    package = module_name(path).split(".")
    if path.name != "__init__.py":
        package = package[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((alias.name, ()) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            yield ".".join([*base, *([node.module] if node.module else [])]), [alias.name for alias in node.names]


def inside(name, package):
    return name == package or name.startswith(package + ".")


def imported_modules(path):
    """The modules that a file imports. `from package import module` counts as an import of the module."""
    existing = {module_name(other) for other in MODULES}
    for base, names in imports(path):
        modules = {f"{base}.{name}" for name in names} & existing
        yield from modules or {base}


@pytest.mark.parametrize("path", [p for p in MODULES if p.is_relative_to(ROOT / "dissim_kernels")], ids=relative)
def test_imports_point_one_way(path):
    package = next(package for package in MAY_IMPORT if inside(module_name(path), package))
    for name in imported_modules(path):
        if inside(name, "dissim_kernels"):
            assert any(inside(name, allowed) for allowed in MAY_IMPORT[package]), f"{package} imports {name}"
        assert not any(inside(name, other) for other in ("dissim_retrieval", "bench", "tests")), name


@pytest.mark.parametrize("path", [p for p in MODULES if p.is_relative_to(ROOT / "python")], ids=relative)
def test_retrieval_sees_public_names_only(path):
    import dissim_kernels

    for base, names in imports(path):
        if inside(base, "dissim_kernels"):
            assert base == "dissim_kernels" and set(names) <= set(dissim_kernels.__all__), f"{base}: {names}"


@pytest.mark.parametrize("path", MODULES, ids=relative)
def test_tests_are_never_imported_and_bench_only_by_tests(path):
    package = module_name(path).split(".")[0]
    for name in imported_modules(path):
        assert not inside(name, "tests") and not re.match(r"test_", name)
        assert not inside(name, "bench") or package in ("bench", "tests")


def test_sources_are_short():
    """A longer file has more than one subject: split it by subject, not by writing denser code."""
    long = {relative(path): lines for path in SOURCES if (lines := path.read_text().count("\n")) >= MAX_LINES}
    assert not long


def test_no_file_is_named_after_no_subject():
    bad = [relative(path) for path in SOURCES if re.fullmatch(r"_?(utils?|helpers?|common|misc)", path.stem)]
    assert not bad


@pytest.mark.parametrize("path", [p for p in MODULES if not p.is_relative_to(ROOT / "tests")], ids=relative)
def test_modules_and_public_names_have_docstrings(path):
    tree = ast.parse(path.read_text())
    assert not tree.body or ast.get_docstring(tree), "the module has no docstring"
    if path.is_relative_to(ROOT / "dissim_kernels" / "ops") or path.name == "testing.py":
        public_names = set(_exported()) | (_public(tree) if path.name == "testing.py" else set())
        definitions = [node for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)]
        documented = {node.name for node in definitions if ast.get_docstring(node)}  # one of several overloads
        assert {node.name for node in definitions} & public_names <= documented


def _exported():
    import dissim_kernels

    return dissim_kernels.__all__


def _public(tree):
    return {node.name for node in tree.body if hasattr(node, "name") and not node.name.startswith("_")}


def test_exported_names_have_docstrings():
    import dissim_kernels

    for name in _exported():
        assert (getattr(dissim_kernels, name).__doc__ or "").strip(), name
    assert list(_exported()) == sorted(_exported())


@pytest.mark.parametrize("stem", ["score", "topk", "hinge", "logsumexp", "rank"])
def test_each_operation_has_one_stem_in_every_layer(stem):
    from dissim_kernels import dispatch

    assert (ROOT / "dissim_kernels" / "ops" / f"{stem}.py").exists()
    assert (ROOT / "tests" / f"test_{stem}.py").exists()
    for module in dispatch.BACKENDS.values():
        assert callable(getattr(module, stem))
    for path in (p for p in SOURCES if p.is_relative_to(ROOT / "csrc") and p.suffix in (".cpp", ".cu")):
        assert re.match(
            r"(score|topk|hinge|logsumexp)(_backward)?$|rank$|listed_scores$|quantize$|(quantized|clustered)_topk$"
            r"|isa$|memory$|launch$|\w+_bindings$",
            path.stem,
        ), f"{path.name} is named after no operation"


@pytest.mark.skipif(not TRACKED, reason="no git checkout")
def test_top_level_has_only_the_planned_entries():
    entries = {name.split("/")[0] for name in TRACKED}
    assert {name for name in entries if not name.startswith(".")} <= TOP_LEVEL
    assert {"pyproject.toml", "setup.py", "csrc", "dissim_kernels", "tests"} <= entries


def test_sources_contain_no_machine_path():
    pattern = re.compile(r"/(?:home|root|work|tmp|Users)/\w")
    found = [relative(p) for p in SOURCES if pattern.search(re.sub(r"https?://\S+", "", p.read_text()))]
    assert not found
