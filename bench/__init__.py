"""The CPU benchmark: `python -m bench`, or `python -m bench --quick` for a smoke test of a minute or two.

cases.py      every size, and every formula that turns a time into a rate or a fraction of the peak
problem.py    the inputs of a case
registry.py   named implementations of an operation, and where they are registered
ours.py       our implementation: the public functions of dissim_kernels
peers/        the competitors, each with its best settings
differentiate.py forward and backward passes by autograd, of ours and of competitors
peak.*        the rate of the same instructions in registers, and the rates of memory
correctness.py the check against float64 that precedes all timing
measure.py    interleaved rounds in one process; peak memory
run.py        check, memory and rounds of one case
machine.py    a description of the machine
report.py, picture.py    JSON, Markdown and picture
compare.py    speed and bit-identity against an earlier commit

clustered_search.py    exact search of clusters against FAISS HNSW
index_speed.py    opening and searching an index on disk
serve_load.py     the service of a gallery under load

sass.py       the cost of GPU kernels, counted in their machine code without a GPU
budgets.py    the limits of these costs, one row per kernel
machine_code.py, occupancy.py, toolchain.py    reading machine code, limits of an SM, NVIDIA's tools

gpu_session.py    `make gpu`: build, test and measure on a machine with a GPU, in eight minutes
gpu.py            one case on a GPU, in its own process
gpu_tests.py      the tests that run on a GPU, several at a time
gpu_report.py     Markdown, and the table printed last
gpu_environment.py, data_sheets.py    a description of the GPU, and its vendor's data sheet
processes.py, files.py    commands with a time limit, files that are replaced atomically

experiments/      `python -m bench.experiments`: accuracy instead of speed

A new size is one row of CASES and a new competitor is one function with @competitor. Both then appear in all reports.
"""
