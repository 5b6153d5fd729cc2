"""The signature of every operator, independent of the code: name, type [sizes] and flags of each argument."""

from __future__ import annotations

import re

import torch

#: Types: E the dtype of embeddings, A the accumulator dtype, P either of them, others by name.
#: Flags: ? optional, c contiguous, o an output: contiguous, its memory not shared with another argument.
SCORE = "query:E[B,N,D] reference:E[B,M,D] weight:{}[C,D]{} bias:{}[C]{}?"
ROWS = "query:E[{0}N,D] reference:E[{0}M,D] weight:{1}[D]{2} bias:{1}[1]{2}?"
FILTERS = "exclude_index:int64[N]{0}? query_labels:int64[N]{0}? reference_labels:int64[M]{0}?"
AMONG, AMONG_SAME = " among:among", " among_same:bool"
SIDES = "query_labels:int64[N]{0} reference_labels:int64[M]{0}"
SOFTMAX = "grad:A[N]{0} value:A[N]{0} active:uint8[N,up(M,8)]{0} "
LISTS = " offsets:offsets[N+1]{0} indices:{1}[P]{0}"
HINGE = "grad_positive:A[N]{0} grad_negative:A[N]{0} active:uint8[N,up(M,8)]{0} query:E[{1}N,D] reference:E[{1}M,D]"
CODES = "codes:uint8[up(N,16),G,16,8]{0} errors:int32[16*up(N,16)]{0}"
OTHER_CODES = CODES.replace("N", "M")
QUANTIZED = (
    " codes:uint8[up(M,16),G,16,8]c error_bounds:int32[16*up(M,16)]c dim_order:dim_order[8*G]c"
    " offset:A[8*G]c inv_scale:A[8*G]c max_code:A[8*G]c quantized_weight:A[D]c step:float64[]c"
)
CLUSTERS = " pivots:E[{}L,D]{} order:order[M]c offsets:starts[L+1]c radii:float64[M]c center:A[D]c"
FORMS = {
    "dissim::clustered_topk": ROWS.format("", "P", "") + " k:k largest:bool " + FILTERS.format("") + AMONG
    + CLUSTERS.format("", "c") + " clusters_weight:A[D]c rows:rows backend:backend",
    "dissim::quantized_topk": ROWS.format("", "P", "") + " k:k largest:bool " + FILTERS.format("") + AMONG + QUANTIZED
    + " rows:rows backend:backend",
    "dissim::score": SCORE.format("P", "", "P", "") + " backend:backend",
    "dissim::score_backward": "grad:E[B,C,N,M] " + SCORE.format("P", "", "P", "").rsplit(" ", 1)[0]
    + " backend:backend need_query:bool need_reference:bool need_weight:bool",
    "dissim::score_jvp": "query:E[B,N,D] reference:E[B,M,D] weight:P[C,D] query_tangent:P[B,N,D]"
    + " reference_tangent:P[B,M,D] weight_tangent:P[C,D] bias_tangent:P[C]?",
    "dissim::topk": ROWS.format("", "P", "") + " k:k largest:bool " + FILTERS.format("") + AMONG + " backend:backend",
    "dissim::hinge": ROWS.format("", "P", "") + " " + SIDES.format("")
    + " exclude_index:int64[N]? margin:float num_hard_negatives:count? backend:backend",
    "dissim::hinge_backward": HINGE.format("", "") + " weight:P[D] " + SIDES.format("")
    + " needs:flags backend:backend",
    "dissim::logsumexp": ROWS.format("", "P", "") + " scale:A[1] query_labels:int64[N]? reference_labels:int64[M]?"
    + " exclude_index:int64[N]?" + AMONG + " backend:backend",
    "dissim::logsumexp_backward": SOFTMAX.format("") + ROWS.format("", "P", "") + " scale:A[1] needs:flags3"
    + " backend:backend",
    "dissim::listed_scores": ROWS.format("", "P", "") + LISTS.format("", "indices") + " backend:backend",
    "dissim::rank": ROWS.format("", "P", "") + LISTS.format("", "int64") + " scores:A[P] backend:backend",
    "dissim_native::score": SCORE.format("A", "c", "A", "c") + " out:E[B,C,N,M]o",
    "dissim_native::score_backward": "grad:E[B,C,N,M] " + SCORE.format("A", "c", "A", "c").rsplit(" ", 1)[0]
    + " grad_query:E[B,N,D]o? grad_reference:E[B,M,D]o? grad_weight:A[C,D]o?",
    "dissim_native::topk": ROWS.format("1,", "A", "c") + " k:k largest:bool " + FILTERS.format("c") + AMONG_SAME
    + " scores:A[N,K]o indices:int64[N,K]o",
    "dissim_native::hinge": ROWS.format("1,", "A", "c") + " " + SIDES.format("c")
    + " exclude_index:int64[N]c? margin:float num_hard_negatives:hard positive:A[N]o negative:A[N]o"
    + " active:uint8[N,up(M,8)]o",
    "dissim_native::hinge_backward": HINGE.format("c", "1,") + " weight:A[D]c " + SIDES.format("c")
    + " grad_query:E[N,D]o? grad_reference:E[M,D]o? grad_weight:A[D]o? grad_bias:A[1]o?",
    "dissim_native::logsumexp": ROWS.format("1,", "A", "c") + " scale:A[1]c " + FILTERS.format("c") + AMONG_SAME
    + " value:A[N]o mean_score:A[N]o active:uint8[N,up(M,8)]o",
    "dissim_native::logsumexp_backward": SOFTMAX.format("c") + ROWS.format("1,", "A", "c") + " scale:A[1]c"
    + " grad_query:E[N,D]o? grad_reference:E[M,D]o? grad_weight:A[D]o?",
    "dissim_native::listed_scores": ROWS.format("1,", "A", "c") + LISTS.format("c", "indices") + " scores:A[P]o",
    "dissim_native::rank": ROWS.format("1,", "A", "c") + LISTS.format("c", "int64")
    + " listed_scores:A[P]c counts:int64[P]o nan_rows:uint8[N]o",
    "dissim_native::extent": "rows:E[1,N,D] low:A[D]o high:A[D]o",
    "dissim_native::quantize": "rows:E[1,N,D] dim_order:dim_order[8*G]c offset:A[8*G]c"
    " inv_scale:A[8*G]c max_code:A[8*G]c positive:groups step:float extra:float "
    + CODES.format("o") + " bases:float64[N]o?",
    "dissim_native::quantized_topk": ROWS.format("1,", "A", "c") + " k:k largest:bool " + FILTERS.format("c")
    + AMONG_SAME + " positive:positive[]c step:float64[]c query_" + CODES.format("c").replace(" ", " query_")
    + " bases:float64[N]c reference_" + OTHER_CODES.format("c").replace(" ", " reference_")
    + " scores:A[N,K]o indices:int64[N,K]o rescored:int64[N]o",
    "dissim_native::clustered_topk": ROWS.format("1,", "A", "c") + " k:k largest:bool " + FILTERS.format("c")
    + AMONG_SAME + CLUSTERS.format("1,", "") + " scores:A[N,K]o indices:int64[N,K]o slack:float64[N]o"
    + " scored:int64[N]o",
}  # fmt: skip
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
ACC = dict(zip(DTYPES, (torch.float32, torch.float32, torch.float32, torch.float64), strict=True))
INTEGERS = {"int64": torch.int64, "int32": torch.int32, "uint8": torch.uint8, "dim_order": torch.int64,
            "positive": torch.int64, "offsets": torch.int64, "indices": torch.int64,
            "order": torch.int64, "starts": torch.int64, "float64": torch.float64}  # fmt: skip


def up(count: int, size: int) -> int:
    return -(-count // size)


class Form:
    """One argument of FORMS."""

    def __init__(self, text: str):
        self.name, kind = text.split(":")
        self.kind, sizes, self.flags = re.fullmatch(r"(\w+)(?:\[(.*)\])?([co]*\??)", kind).groups()
        self.sizes = None if sizes is None else re.findall(r"(?:[^,(]|\([^)]*\))+", sizes)
        self._code = [compile(size, self.name, "eval") for size in self.sizes or ()]

    def sizes_for(self, symbols: dict[str, int]) -> list[int]:
        return [eval(code, {"up": up}, symbols) for code in self._code]

    def __contains__(self, flag: str) -> bool:
        return flag in self.flags


PARSED = {name: [Form(text) for text in form.split()] for name, form in FORMS.items()}
