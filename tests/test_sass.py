"""Every GPU kernel stays within its budget, counted in its machine code; and tests of the counting itself.

No GPU is needed, only NVIDIA's compiler and disassemblers (bench/toolchain.py).
"""

import kernel_budgets
import pytest
from kernel_budgets import SHORT, needs_compiler

from bench import sass, toolchain
from bench.budgets import ARCHITECTURES, Binary, Budget
from bench.machine_code import Code, Instruction, read
from bench.occupancy import occupancy


@kernel_budgets.each_budget
def test_a_kernel_keeps_its_budget(budget):
    kernel_budgets.check_budget(budget, SHORT)


@kernel_budgets.each_variant
def test_logsumexp_and_rank_cost_at_most_a_tenth_more_than_topk(variant):
    kernel_budgets.check_cost_is_that_of_topk(variant, SHORT)


@needs_compiler
@kernel_budgets.each_file_of_small_kernels
def test_small_kernels_beside_the_main_one_do_not_spill(stem):
    kernel_budgets.check_small_kernels_do_not_spill(stem, SHORT)


# --- kernels that exceed a budget on purpose ----------------------------------------------------------------------

LEAN = """
extern "C" __global__ void __launch_bounds__(256) lean(const float* q, const float* r, float* s, int d) {
  float sums[4] = {};
  #pragma unroll 1
  for (int k = 0; k < d; k += 8) {
    #pragma unroll
    for (int i = 0; i < 8; ++i)
      for (int j = 0; j < 4; ++j) sums[j] += 3.f * fabsf(q[k + i] - r[k + i + j * 1024]);
  }
  for (int j = 0; j < 4; ++j) s[threadIdx.x * 4 + j] = sums[j];
}"""
#: The same with an integer remainder for every element.
FAT = LEAN.replace("r[k + i +", "r[(k * 7919 + i * 31) % d +")
#: The same with more sums than registers.
SPILLING = LEAN.replace("[4]", "[160]").replace("j < 4", "j < 160").replace("(256)", "(1024)")
#: The same with a copy of unknown length within the loop, and with too much shared memory.
BESIDE = LEAN.replace("#pragma unroll\n", "for (int i = threadIdx.x; i < d * k; i += 7) s[i] = 0;\n#pragma unroll\n")


def violations(source, tmp_path, limit=5.0, elements=(), dynamic_shared=0, arch=SHORT):
    path = tmp_path / "lean.cu"
    path.write_text(source)
    budget = Budget(
        "lean", lambda arch: Binary(toolchain.compile_cuda(path, arch), "lean", dynamic_shared),
        dict.fromkeys(ARCHITECTURES, limit), elements=elements,
    )  # fmt: skip
    return "; ".join(sass.count(budget, arch).violations)


@needs_compiler
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_lean_kernel_passes_and_exceeds_a_lower_limit(arch, tmp_path):
    assert violations(LEAN, tmp_path, arch=arch) == ""
    assert "issue slots per element, at most 1.9" in violations(LEAN, tmp_path, limit=1.9, arch=arch)


@needs_compiler
def test_slow_loops_spills_and_side_loops_are_found(tmp_path):
    assert violations(FAT, tmp_path, limit=5.0).endswith("issue slots per element, at most 5.0")
    assert "that spill" in (found := violations(SPILLING, tmp_path)) and "bytes of local memory" in found
    assert "1 loops of unknown length" in violations(BESIDE, tmp_path, elements=(32,))
    assert "no block fits an SM, because of shared memory" in violations(LEAN, tmp_path, dynamic_shared=228 << 10)


@needs_compiler
def test_a_row_must_name_one_kernel_and_its_true_number_of_elements(tmp_path):
    with pytest.raises(LookupError, match="no multiple of 32"):
        violations(LEAN, tmp_path, elements=(100,))
    with pytest.raises(LookupError, match="no loop around"):
        violations(LEAN, tmp_path, elements=(64,))
    with pytest.raises(LookupError, match="a turn of the loop has 32 elements, not 16"):
        violations(LEAN, tmp_path, elements=(16,))
    with pytest.raises(LookupError, match="0 kernels are named like"):
        violations(LEAN.replace("lean", "other"), tmp_path)


# --- loops, by hand -----------------------------------------------------------------------------------------------


def code(*rows):
    """Instructions from "[@P] OPCODE operands"; a jump goes to a place: "BRA 3"."""
    instructions = []
    for row in rows:
        words = row.split()
        predicate = words.pop(0) if words[0].startswith("@") else ""
        opcode, operands = words[0], " ".join(words[1:])
        if opcode.startswith(("BRA", "CALL")):
            operands = hex(16 * int(operands))
        instructions.append(Instruction(opcode, predicate, operands))
    return Code(instructions)


def test_inner_loop_of_a_nest_is_counted_for_each_turn():
    nest = code("MOV", "LDG", "LDS", "FFMA R1", "FFMA R2", "@P0 BRA 2", "BAR", "@P1 BRA 1", "EXIT")
    assert sorted(sorted(loop.body) for loop in nest.loops) == [[1, 2, 3, 4, 5, 6, 7], [2, 3, 4, 5]]
    assert nest.main_loop(("FFMA",)).slots_per_element == 4 / 2
    whole = nest.main_loop(("FFMA",), elements=(16,))
    assert (whole.elements, whole.slots) == (16, 8 * 4 + 3)
    assert nest.main_loop(("FFMA",), per_element=2, elements=(8,)).slots == 8 * 4 + 3


def test_side_loop_is_counted_for_the_given_turns():
    nest = code("MOV", "LDG", "@P0 BRA 1", "FFMA R1", "@P1 BRA 3", "@P2 BRA 0")
    unknown, known = (nest.main_loop(("FFMA",), elements=(4,), turns=turns) for turns in (0, 3))
    assert (unknown.side_loops, known.side_loops) == (1, 0)
    assert (unknown.slots, known.slots) == (4 * 2 + 4, 4 * 2 + 4 + 2 * 2)


def test_loops_are_found_in_any_block_order():
    """Its head behind its body, a call for a jump, and a branch that leaves it."""
    moved = code("BRA 3", "FFMA R1", "NOP", "LDS", "@P0 EXIT", "CALL.REL.NOINC 1")
    assert [sorted(loop.body) for loop in moved.loops] == [[1, 2, 3, 4, 5]]
    assert code("BRA 1", "EXIT", "BRA 2").loops == []  # padding behind the end is no loop of the kernel


def test_work_matches_whole_opcodes_and_ignores_constant_moves():
    loop = code("FFMA R1", "FFMA2 R2", "FFMA.FTZ R3", "HFMA2.MMA R0,-RZ,RZ,0,0", "HMMA.16816.F32 R4", "@P0 BRA 0")
    assert loop.main_loop(("FFMA",)).elements == 2
    assert loop.main_loop(("FFMA", "FFMA2")).elements == 4
    assert loop.main_loop(("HMMA.16816", "HFMA2")).elements == 8
    with pytest.raises(LookupError, match="no loop has an instruction VABSDIFF4"):
        loop.main_loop(("VABSDIFF4",))


# --- occupancy, by hand ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arch", "threads", "registers", "shared", "blocks", "limiter"),
    [
        (90, 256, 128, 0, 2, "registers"),
        (90, 256, 64, 0, 4, "registers"),
        (90, 256, 32, 0, 8, "registers"),  # as many as warps allow
        (90, 32, 16, 0, 32, "blocks"),
        (90, 1024, 16, 0, 2, "warps"),
        (90, 128, 40, 100 << 10, 2, "shared memory"),
        (80, 128, 40, 100 << 10, 1, "shared memory"),
        (80, 128, 40, 164 << 10, 0, "shared memory"),
        (100, 96, 72, 0, 9, "registers"),
        (100, 672, 96, 0, 0, "registers"),  # 21 warps would fit all registers, but not a quarter of them each
    ],
)
def test_occupancy(arch, threads, registers, shared, blocks, limiter):
    found = occupancy(arch, threads, registers, shared)
    assert (found.blocks, found.limiter) == (blocks, limiter)
    assert found.fraction == found.warps / 64


@needs_compiler
def test_bounds_and_shared_memory_are_read_from_the_binary(tmp_path):
    path = tmp_path / "lean.cu"
    declared = LEAN.replace("float sums", "__shared__ float tile[96]; tile[threadIdx.x % 96] = d; float sums")
    path.write_text(declared.replace("= sums[j]", "= sums[j] + tile[d]"))
    for arch in ARCHITECTURES:
        (kernel,) = read(toolchain.compile_cuda(path, arch))
        assert (kernel.arch, kernel.threads, kernel.shared, kernel.local) == (arch, 256, 384, 0)
        assert 16 < kernel.registers < 256


def test_missing_tool_gives_a_reason():
    assert "nvcc17 was not found" in toolchain.unsupported_reason(
        "nvcc17"
    ) and "cuda-check" in toolchain.unsupported_reason("nvcc17")


@needs_compiler
def test_the_table_shows_a_row_for_every_count(tmp_path):
    path = tmp_path / "lean.cu"
    path.write_text(LEAN)
    row = Budget("lean fp32", lambda arch: Binary(toolchain.compile_cuda(path, arch), "lean", 1024), {90: 5.0})
    text = sass.table([sass.count(row, 90)])
    assert "lean fp32" in text and "| 90 |" in text and "warps" in text and "FFMA" in text
