"""The documents agree with the code: examples run, links exist, names, settings and results match."""

import ast
import doctest
import importlib
import importlib.util
import json
import os
import pkgutil
import re
from pathlib import Path

import dissim_retrieval
import pytest
import torch

import dissim_kernels
import dissim_kernels.numpy

ROOT = Path(__file__).parents[1]
IDENTITIES = set(re.findall(r"^### (E\d+) \(", (ROOT / "dissim_kernels" / "MATH.md").read_text(), re.M))
PAGES = sorted((ROOT / "docs").rglob("*.md"))
DOCUMENTS = [*(path for name in ("README.md", "CONTRIBUTING.md") if (path := ROOT / name).exists()), *PAGES]
SOURCES = [
    path
    for folder in ("csrc", "dissim_kernels", "python", "bench", "tests")
    for path in (ROOT / folder).rglob("*")
    if path.suffix in (".py", ".h", ".cpp", ".cu", ".cuh")
]


def modules():
    for package in (dissim_kernels, dissim_retrieval):
        yield package.__name__
        yield from (m.name for m in pkgutil.walk_packages(package.__path__, package.__name__ + "."))


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path, monkeypatch):
    """Examples may write files, and start from the same seed."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)


@pytest.mark.parametrize("name", [name for name in modules() if not name.endswith(("__main__", "._native"))])
def test_docstring_examples_run(name):
    result = doctest.testmod(importlib.import_module(name), optionflags=doctest.NORMALIZE_WHITESPACE)
    assert result.failed == 0


def test_every_operator_has_an_example():
    operators = {name for name in dissim_kernels.__all__ if "dissim" in name}
    assert all(">>>" in getattr(dissim_kernels, name).__doc__ for name in operators)


def blocks(document):
    """(language, line, text) of the Python blocks of a document, in order."""
    text = document.read_text()
    for match in re.finditer(r"^```(python|pycon)\n(.*?)^```", text, re.M | re.S):
        yield match[1], text[: match.start()].count("\n") + 1, match[2]


def named(path):
    return str(path.relative_to(ROOT))


documents = pytest.mark.parametrize("document", DOCUMENTS, ids=named)
#: Document -> the optional package that its examples need.
NEEDS = {"docs/api/sharding.md": "ray"}


@documents
def test_python_blocks_of_a_document_run_in_order(document):
    """All ```python and ```pycon blocks of one document share one namespace, as in one session."""
    if named(document) in NEEDS:
        pytest.importorskip(NEEDS[named(document)])
    namespace = {"__name__": "__main__"}
    if any("import faiss" in block for _, _, block in blocks(document)):
        pytest.importorskip("faiss")
    assert list(blocks(document)) or document.name != "README.md", "the README shows no Python"
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS)
    for language, line, block in blocks(document):
        if language == "python":
            exec(compile("\n" * line + block, str(document), "exec"), namespace)
        else:
            examples = doctest.DocTestParser().get_examples(block)
            session = doctest.DocTest(examples, {}, named(document), str(document), line, block)
            session.globs = namespace  # the constructor would copy it
            assert runner.run(session, clear_globs=False).failed == 0


@documents
def test_linked_files_of_a_document_exist(document):
    for target in re.findall(r"\]\((?!https?:|#|mailto:)([^)#\s]+)", document.read_text()):
        assert os.path.exists(document.parent / target), target


def anchors(document):
    """The anchors of a document's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", document.read_text(), re.M)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@documents
def test_linked_headings_of_a_document_exist(document):
    for target, anchor in re.findall(r"\]\((?!https?:)([^)#\s]*)#([^)\s]+)\)", document.read_text()):
        assert anchor in anchors(document.parent / target if target else document), f"{target}#{anchor}"


def test_the_results_table_of_the_readme_has_the_measured_values():
    spec = importlib.util.spec_from_file_location("speed", ROOT / "docs" / "figures" / "speed.py")
    speed = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(speed)
    expected = "\n".join(speed.table(speed.load()))
    assert f"\n\n{expected}\n\n" in (ROOT / "README.md").read_text(), (
        "run python docs/figures/speed.py and copy its table"
    )


def test_the_table_of_searches_in_the_readme_has_the_measured_times():
    measured = json.loads((ROOT / "bench" / "results" / "clustered_search.json").read_text())["tables"]
    readme = (ROOT / "README.md").read_text().replace("**", "")
    for title, table in measured.items():
        times = [float(f"{table['rows'][name]['ms_per_query']:.2g}") for name in table["rows"]]
        cells = " | ".join(f"{time:g} ms" for time in times)
        assert f"| {title.removesuffix(' of standard deviation 0.5')} | {cells} |" in readme, cells


PUBLIC = [
    f"{module.__name__}.{name}"
    for module in (dissim_kernels, dissim_kernels.numpy, dissim_retrieval)
    for name in module.__all__
]


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_is_on_a_reference_page_with_an_example(name):
    pages = [page for page in PAGES if re.search(rf"^.. auto\w+:: {re.escape(name)}$", page.read_text(), re.M)]
    assert len(pages) == 1, "expected one page of the reference"
    used = set()
    for _, _, block in blocks(pages[0]):
        source = block if ">>>" not in block else doctest.script_from_examples(block)
        used |= {node.id for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Name)}
    assert name.split(".")[-1] in used, "the page's examples do not use it"


@pytest.mark.parametrize("name", ["data", "evaluation", "models", "serve"])
def test_every_public_name_of_a_package_is_on_a_reference_page(name):
    """Under its own name, or under that of a module that exports it as well."""
    text = "\n".join(page.read_text() for page in PAGES)
    paths = re.findall(r"^.. auto(?:class|data|function):: ([\w.]+)\.(\w+)", text, re.M)
    listed = [getattr(importlib.import_module(module), member) for module, member in paths]
    package = importlib.import_module(f"dissim_retrieval.{name}")
    assert not [public for public in package.__all__ if not any(getattr(package, public) is one for one in listed)]


def test_commands_install_extras_that_exist_from_a_clone():
    """There is no package on PyPI."""
    text = (ROOT / "pyproject.toml").read_text().split("[project.optional-dependencies]\n")[1].split("\n[")[0]
    extras = set(re.findall(r"^([\w-]+) = \[", text, re.M))
    for path in [*SOURCES, *DOCUMENTS]:
        lists = re.findall(r"""'\.\[([\w,-]+)\]'|install_extra\(["']([\w-]+)["']\)""", path.read_text())
        assert {extra for pair in lists for extra in "".join(pair).split(",")} <= extras, path
        assert not re.search(r"""install ["']?dissim-kernels""", path.read_text()), path


def environment_reads(path):
    """Names of the environment variables that a source file reads."""
    text = path.read_text()
    if path.suffix == ".py":
        return set(python_reads(ast.parse(text), {}))
    calls = re.findall(r"\bgetenv\(([^)]*)\)", text)
    assert all(re.fullmatch(r'"\w+"', name) for name in calls), f"{path}: name the variable in the call"
    return {name.strip('"') for name in calls}


def python_reads(node, loops):
    """loops: {loop variable: the literals it takes}, for a name that is not a literal itself."""
    for loop in [node] if isinstance(node, ast.For) else getattr(node, "generators", []):
        if isinstance(loop.iter, ast.Tuple | ast.List):
            values = [item.value for item in loop.iter.elts if isinstance(item, ast.Constant)]
            loops = loops | {ast.unparse(loop.target): values}
    name = None
    if isinstance(node, ast.Call) and ast.unparse(node.func) in ("os.environ.get", "os.getenv"):
        name = node.args[0]
    elif isinstance(node, ast.Subscript) and ast.unparse(node.value) == "os.environ":
        name = node.slice
    if name is not None:
        yield from [name.value] if isinstance(name, ast.Constant) else loops[ast.unparse(name)]
    for child in ast.iter_child_nodes(node):
        yield from python_reads(child, loops)


def test_the_page_of_environment_variables_lists_those_in_the_code():
    page = (ROOT / "docs" / "environment.md").read_text().split("## Read by libraries")[0]
    code = [ROOT / "setup.py", *(path for path in SOURCES if ROOT / "tests" not in path.parents)]
    read = set().union(*map(environment_reads, code)) - {"PYTHONPATH"}  # Python's own, passed to child processes
    assert set(re.findall(r"^\| `(\w+)` \|", page, re.M)) == read


def test_the_citation_has_the_version_of_the_package():
    version = re.search(r'^version = "(.*)"$', (ROOT / "pyproject.toml").read_text(), re.M)[1]
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text()


def test_every_identity_cited_is_stated():
    cited = {
        (number, path.name)
        for path in [*SOURCES, *DOCUMENTS]
        for number in re.findall(r"(?<![\w.+-])E\d{1,2}(?![\w.])", path.read_text())
    }
    assert {number for number, _ in cited} >= {"E1", "E2", "E3", "E9", "E12", "E13"}
    assert not {(number, name) for number, name in cited if number not in IDENTITIES}
