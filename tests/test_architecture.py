"""The house keeps its plan: who may import whom, names, sizes, docstrings, and what stands at the top."""

import ast
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
#: What git tracks; an unpacked source distribution has no git and is not judged by its top level.
TRACKED = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True).stdout.split()
SOURCES = sorted(
    path
    for folder in ("csrc", "dissim_kernels", "python", "bench", "tests")
    for path in (ROOT / folder).rglob("*")
    if path.suffix in (".py", ".h", ".cpp", ".cu", ".cuh", ".html")
)
MODULES = [path for path in SOURCES if path.suffix == ".py"]
TOP = {
    *("pyproject.toml", "setup.py", "csrc", "dissim_kernels", "python", "bench", "tests"),
    *("README.md", "CONTRIBUTING.md", "LICENSE", "CHANGELOG.md", "CITATION.cff", "Makefile", "docs", ".ci"),
}

#: room -> what it may import of dissim_kernels; a longer prefix is the stricter room.
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
    """Absolute names of all modules that a file imports, and of what it imports from them."""
    package = module_name(path).split(".")
    if path.name != "__init__.py":
        package = package[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((alias.name, ()) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            yield ".".join([*base, *([node.module] if node.module else [])]), [alias.name for alias in node.names]


def inside(name, room):
    return name == room or name.startswith(room + ".")


def imported_modules(path):
    """As `imports`, with `from package import module` told from `from module import name`."""
    known = {module_name(other) for other in MODULES}
    for base, names in imports(path):
        modules = {f"{base}.{name}" for name in names} & known
        yield from modules or {base}


@pytest.mark.parametrize("path", [p for p in MODULES if p.is_relative_to(ROOT / "dissim_kernels")], ids=relative)
def test_imports_point_one_way(path):
    room = next(room for room in MAY_IMPORT if inside(module_name(path), room))
    for name in imported_modules(path):
        if inside(name, "dissim_kernels"):
            assert any(inside(name, allowed) for allowed in MAY_IMPORT[room]), f"{room} imports {name}"
        assert not any(inside(name, other) for other in ("dissim_retrieval", "bench", "tests")), name


@pytest.mark.parametrize("path", [p for p in MODULES if p.is_relative_to(ROOT / "python")], ids=relative)
def test_retrieval_sees_public_names_only(path):
    import dissim_kernels

    for base, names in imports(path):
        if inside(base, "dissim_kernels"):
            assert base == "dissim_kernels" and set(names) <= set(dissim_kernels.__all__), f"{base}: {names}"


@pytest.mark.parametrize("path", MODULES, ids=relative)
def test_nobody_imports_tests_and_only_tests_import_bench(path):
    home = module_name(path).split(".")[0]
    for name in imported_modules(path):
        assert not inside(name, "tests") and not re.match(r"test_", name)
        assert not inside(name, "bench") or home in ("bench", "tests")


def test_sources_are_short():
    long = {relative(path): lines for path in SOURCES if (lines := path.read_text().count("\n")) >= 500}
    assert not long


def test_no_drawer_for_everything():
    bad = [relative(path) for path in SOURCES if re.fullmatch(r"_?(utils?|helpers?|common|misc)", path.stem)]
    assert not bad


@pytest.mark.parametrize("path", [p for p in MODULES if not p.is_relative_to(ROOT / "tests")], ids=relative)
def test_every_module_and_public_name_of_the_package_says_what_it_is(path):
    tree = ast.parse(path.read_text())
    assert not tree.body or ast.get_docstring(tree), "the module has no docstring"
    if path.is_relative_to(ROOT / "dissim_kernels" / "ops") or path.name == "testing.py":
        doors = set(_exported()) | (_public(tree) if path.name == "testing.py" else set())
        definitions = [node for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)]
        documented = {node.name for node in definitions if ast.get_docstring(node)}  # one of several overloads
        assert {node.name for node in definitions} & doors <= documented


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


@pytest.mark.parametrize("stem", ["score", "topk", "hinge"])
def test_an_operation_has_one_name_in_every_layer(stem):
    from dissim_kernels import dispatch

    assert (ROOT / "dissim_kernels" / "ops" / f"{stem}.py").exists()
    assert (ROOT / "tests" / f"test_{stem}.py").exists()
    for module in dispatch.BACKENDS.values():
        assert callable(getattr(module, stem))
    for path in (p for p in SOURCES if p.is_relative_to(ROOT / "csrc") and p.suffix in (".cpp", ".cu")):
        assert re.match(
            r"(score|topk|hinge)(_backward)?$|quantize$|quantized_topk$|isa$|memory$|launch$|\w+_bindings$", path.stem
        ), f"no stem of ours: {path.name}"


@pytest.mark.skipif(not TRACKED, reason="no git checkout")
def test_the_top_level_is_as_fixed():
    tops = {name.split("/")[0] for name in TRACKED}
    assert {name for name in tops if not name.startswith(".")} <= TOP
    assert {"pyproject.toml", "setup.py", "csrc", "dissim_kernels", "tests"} <= tops


def test_no_machine_path_is_written_down():
    pattern = re.compile(r"/(?:home|root|work|tmp|Users)/\w")
    found = [relative(p) for p in SOURCES if pattern.search(re.sub(r"https?://\S+", "", p.read_text()))]
    assert not found
