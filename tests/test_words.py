"""Names and phrases that this project no longer uses, and the standard terms to write instead.

Ordinary English words (few, wide, held) are checked in code only, not in comments, strings and prose.
"""

import io
import re
import subprocess
import tokenize
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
CPP = (".h", ".cpp", ".cu", ".cuh")


class Rule(NamedTuple):
    """A regular expression for what must not be written. `example` must match it; `folder` limits the files."""

    pattern: str
    instead: str
    example: str
    folder: str = ""


def word(text):
    """The word as a component of an identifier: FEW_ROWS, too_few or kFewRows for "few"."""
    return (
        rf"(?<![a-zA-Z0-9]){text}(?![a-zA-Z0-9])|(?<![a-zA-Z0-9]){text.upper()}(?![a-zA-Z0-9])"
        rf"|(?<![A-Z]){text.capitalize()}(?![a-z])"
    )


#: Checked in code, comments, documents and file names.
EVERYWHERE = (
    Rule(r"\b(least|most)\(", "min, max", "least(rows, 4)"),
    Rule(r"\bk(Least|Most)(?=[A-Z])", "kMin, kMax", "kMostRows"),
    Rule(r"\bmost_parts\b", "max_parts", "most_parts"),
    Rule(r"\bblocks_of\b", "ceil_div", "blocks_of(rows, 16)"),
    Rule(r"(?i)(?<![a-z0-9])of_(query|reference|weight|bias)(?![a-z0-9])", "what it is: grad_query, query_tile",
         "of_weight"),
    Rule(r"(?i)refus(e|al|ing)", "raise", "refuse_too_few"),
    Rule(r"(?i)\bbarred", "excluded, masked", "barred"),
    Rule(r"why_not", "unsupported_reason", "why_not"),
    Rule(r"\bkFew(?=[A-Z])", "kSmallBatchRows, kSparseDensity", "kFewPairs"),
    Rule(r"finish_streams", "store_fence", "finish_streams"),
    Rule(r"sign_of_usual|k(Least)?Usual(?![a-z])", "fast_sign, kHasFastSign, kFastSignMin", "kUsualIsFaster"),
    Rule(r"(?i)\bsettle[sd]?\b|\bsettling\b", "finalize", "settled"),
    Rule(r"score_again", "rescore_direct", "score_again"),
    Rule(r"(?i)\bconsume[sd]?\b", "epilogue, passed to", "whoever consumes the scores"),
    Rule(r"(?i)\bjudge[sd]?\b", "check, expected error bound; in C++ hinge_epilogue", "judge.score_bound"),
    Rule(r"\bchoose_route", "choose_path", "choose_route_kernel"),
    Rule(r"can_copy", "is_16B_aligned", "can_copy"),
    Rule(r"task_of_block|\bentry_of\b|\belement_of\b", "linear_block_id, batch_slice, load_element", "entry_of"),
    Rule(r"\bmend(s|ed|_\w+)?\b|MENDED", "fix_nonfinite_weight_grad", "MENDED_HERE"),
    Rule(r"inputs_that_bite|(?i:inputs? that bites?)", "edge-case inputs: edge_case_inputs", "inputs that bite"),
    Rule(r"tie_grid", "tied_inputs", "tie_grid"),
    Rule(r"\blay_out\b", "with_layout", "lay_out"),
    Rule(r"unmistakable", "drop_ambiguous", "unmistakable"),
    Rule(r"to_network", "to_float_nhwc", "to_network"),
    Rule(r"machine_line", "environment_summary", "machine_line"),
    Rule(r"(?i)\bcertified(?![a-z])", "quantized (certified means robustness elsewhere)", "certified_dissim_topk"),
    Rule(r"CertifiedTopK", "TopK", "CertifiedTopK"),
    Rule(r"(?i)quantis", "quantize, as torch spells", "quantise_references"),
    Rule(r"(?i)normalis", "normalize, as torch spells", "normalise=True"),
    Rule(r"(?<!\w)hard_negatives\s*=", "num_hard_negatives=", "hard_negatives=2"),
    Rule(r"(?<!\w)exclude\s*=(?!=)", "exclude_index=", "exclude=itself"),
    Rule(r"(?i)\b(this|the) house\b", "architecture, package", "the house keeps its plan"),
    Rule(r"(?i)\bat the door\b", "input validation", "refused at the door"),
    Rule(r"(?i)\bleft out\b", "excluded, omitted, skipped", "left out"),
    Rule(r"(?i)\bpast the caches\b", "non-temporal store", "past the caches"),
    Rule(r"(?i)\bsame[ _]bits\b", "bit-identical", "the same bits"),
    Rule(r"(?i)\bgreen gate\b", "correctness check before timing", "green gate"),
    Rule(r"\bG elements/s", "Gelem/s", "3.2 G elements/s"),
)  # fmt: skip

#: Checked in code and file names only, because the words are ordinary English.
IN_CODE = (
    Rule(word("least"), "min", "LEAST_CASE"),
    Rule(f"(?<!at )(?:{word('most')})(?!_common| recent call)", "max", "most_rows"),
    Rule(word("wide"), "acc, to_acc_dtype: the accumulator dtype", "kWideBytes"),
    Rule(f"(?<!too_)(?:{word('few')})", "small batch, sparse, or what is meant", "few_rows"),
    Rule(word("usual"), "fast_sign", "is_usual"),
    Rule(r"\bCuts\b|\bcut\(", "Partition, partition_work", "cut(rows)"),
    Rule(r"\bRoute\b", "PathFlags", "Route"),
    Rule(r"\bcopied\b", "use_cp_async", "copied", "csrc/cuda"),
    Rule(r"\basked\b", "query_rows", "asked"),
    Rule(r"\bheld\b(?![ -]out)", "gallery_rows", "held"),
    Rule(r"\b[Gg]ates?\b", "CorrectnessCheck", "gates[key]"),
    Rule(r"\badmit\w*", "prepare_and_check", "admit_fewer"),
    Rule(r"\bEffort\b", "TimeBudget", "Effort()"),
    Rule(r"\bFound\b", "SearchResult", "Found(ids, scores)"),
    Rule(r"\bshares?\b", "splits", "shares", "csrc/cuda"),
    Rule(r"\bstream\b", "store_nontemporal", "stream(out, value)", "csrc/cpu"),
)


@cache
def tracked_files():
    """The text files that git tracks, without this one; empty in an unpacked source distribution."""
    done = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    paths = [ROOT / name for name in done.stdout.splitlines()]
    binary = (".png", ".json")
    return [path for path in paths if path.exists() and path.suffix not in binary and path != Path(__file__)]


def blank(text):
    return re.sub(r"[^\n]", " ", text)


def python_code(text):
    """The text with comments, strings and the names of tests, which are sentences, replaced by blanks."""
    lines = text.splitlines(keepends=True)
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type in (tokenize.COMMENT, tokenize.STRING):
            (first, begin), (last, end) = token.start, token.end
            for number in range(first, last + 1):
                line = lines[number - 1]
                left, right = begin if number == first else 0, end if number == last else len(line)
                lines[number - 1] = line[:left] + blank(line[left:right]) + line[right:]
    return re.sub(r"\btest_\w+", lambda match: blank(match[0]), "".join(lines))


def cpp_code(text):
    """The text with comments and strings replaced by blanks."""
    return re.sub(r'//[^\n]*|/\*.*?\*/|"(?:\\.|[^"\\\n])*"', lambda match: blank(match[0]), text, flags=re.S)


def markdown_code(text):
    """The text with everything outside backquotes replaced by blanks."""
    parts = re.split(r"(```.*?```|`[^`\n]*`)", text, flags=re.S)
    return "".join(part if part.startswith("`") else blank(part) for part in parts)


@cache
def view(path, code_only):
    """The lines of a file, its name first."""
    text = path.read_text()
    if code_only:
        blanked = {".py": python_code, ".md": markdown_code, **dict.fromkeys(CPP, cpp_code)}
        text = blanked.get(path.suffix, blank)(text)
    return [str(path.relative_to(ROOT)), *text.splitlines()]


def violations(rule, code_only):
    pattern = re.compile(rule.pattern)
    for path in tracked_files():
        name, *lines = view(path, code_only)
        if not name.startswith(rule.folder):
            continue
        for number, line in enumerate((name, *lines)):
            match = pattern.search(line)
            if match:
                yield f"{name}:{number}: {match[0]!r}, write: {rule.instead}"


RULES = [(rule, code_only) for code_only, rules in ((False, EVERYWHERE), (True, IN_CODE)) for rule in rules]
rules = pytest.mark.parametrize(("rule", "code_only"), RULES, ids=[rule.example for rule, _ in RULES])


@rules
def test_old_words_are_gone(rule, code_only):
    if not tracked_files():
        pytest.skip("no git checkout")
    found = list(violations(rule, code_only))
    assert not found, "\n" + "\n".join(found)


@rules
def test_each_rule_finds_its_example(rule, code_only):
    assert re.search(rule.pattern, rule.example)


def test_code_excludes_comments_strings_and_test_names():
    assert python_code('few = "few"  # few\n"""few\nfew"""\ntest_few\n').split() == ["few", "="]
    assert cpp_code('few = "few"; // few\n/* few\n few */ x').split() == ["few", "=", ";", "x"]
    assert markdown_code("few `few`\n```\nx\n``` few").split() == ["`few`", "```", "x", "```"]


def test_words_are_found_inside_identifiers_only():
    found = [text for text in ("kMostRows", "MOST", "most_rows", "at_most", "almost", "Mostly", "utmost")
             if re.search(word("most"), text)]  # fmt: skip
    assert found == ["kMostRows", "MOST", "most_rows", "at_most"]
