"""What the documents say is true: examples run, and every identity cited is stated."""

import doctest
import importlib
import os
import pkgutil
import re
from pathlib import Path

import dissim_retrieval
import pytest
import torch

import dissim_kernels

ROOT = Path(__file__).parents[1]
IDENTITIES = set(re.findall(r"^\*\*(E\d+)\.\*\*", (ROOT / "dissim_kernels" / "MATH.md").read_text(), re.M))
DOCUMENTS = [ROOT / name for name in ("README.md", "CONTRIBUTING.md") if (ROOT / name).exists()]
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
    """Examples may write files, and start from one seed."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)


@pytest.mark.parametrize("name", [name for name in modules() if not name.endswith(("__main__", "._native"))])
def test_docstring_examples_run(name):
    result = doctest.testmod(importlib.import_module(name), optionflags=doctest.NORMALIZE_WHITESPACE)
    assert result.failed == 0


def test_every_door_has_an_example():
    doors = {name for name in dissim_kernels.__all__ if "dissim" in name}
    assert all(">>>" in getattr(dissim_kernels, name).__doc__ for name in doors)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_python_blocks_of_a_document_run_in_order(document):
    """All ```python blocks of one document share one namespace, as a reader's session does."""
    text, namespace = document.read_text(), {"__name__": "__main__"}
    blocks = [(m.start(), m.group(1)) for m in re.finditer(r"^```python\n(.*?)^```", text, re.M | re.S)]
    assert blocks or document.name != "README.md", "the README shows no Python"
    for start, block in blocks:
        line = text[:start].count("\n") + 1
        exec(compile("\n" * line + block, str(document), "exec"), namespace)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_of_a_document_lead_somewhere(document):
    for target in re.findall(r"\]\((?!https?:|#|mailto:)([^)#\s]+)", document.read_text()):
        assert os.path.exists(document.parent / target), target


def test_every_identity_cited_is_stated():
    cited = {
        (number, path.name)
        for path in [*SOURCES, *DOCUMENTS]
        for number in re.findall(r"(?<![\w.+-])E\d{1,2}(?![\w.])", path.read_text())
    }
    assert {number for number, _ in cited} >= {"E1", "E2", "E3", "E9", "E12", "E13"}
    assert not {(number, name) for number, name in cited if number not in IDENTITIES}
