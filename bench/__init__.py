"""The CPU benchmark: `python -m bench`, or `python -m bench --quick` for a smoke test of a minute or two.

cases.py      every size, and every formula that turns a time into a rate or a fraction of a ceiling
problem.py    the inputs of a case
ours.py       what is measured: the public functions of dissim_kernels
peers/        what it is measured against, each with its best settings
ceiling.*     how fast the same instructions run in registers, and how fast memory is read
correctness.py float64 truth: nothing is timed before its result was checked
measure.py    interleaved rounds in one process; peak memory
run.py        gate, memory and rounds of one case
machine.py    what the numbers were measured on
report.py     JSON, Markdown and picture

sass.py       the other instrument: what GPU kernels cost, counted in their machine code without a GPU
budgets.py    what each may cost: one row a kernel
machine_code.py, occupancy.py, toolchain.py    how it is read, what an SM holds, where NVIDIA's tools are

gpu_session.py    `make gpu`: build, test and measure on a machine with a GPU, in eight minutes
gpu.py            one case on a GPU, in a process of its own
gpu_tests.py      which tests a GPU runs, several at a time
gpu_report.py     Markdown, and the table printed last
gpu_environment.py, data_sheets.py    what it ran on, and what the vendor says of that
processes.py, files.py    commands with a time limit, files that are whole or absent

A new size is one row of CASES, a new competitor one function under @competitor; both turn up everywhere by
themselves.
"""
