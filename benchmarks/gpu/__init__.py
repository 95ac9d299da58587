"""The exam on a GPU: every figure that this project owes for one, part by part.

    python -m benchmarks.gpu PART ... [--again] [--small] [--results FOLDER]
    python -m benchmarks.gpu all        every part: `make exam-gpu`
    python -m benchmarks.gpu table      writes docs/gpu.md from the results

Each part takes less than nine minutes and leaves PART.json in the folder of results. It consists of
cases, each a process of its own, whose result is written as it ends: a part that was interrupted
resumes at its first case that is not done, and a finished part is not run again without --again.
`--small` is the same in this process on tiny models: the tests run it on a CPU.
"""
