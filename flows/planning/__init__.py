"""What a run will do, need, take and cost, before anything is started.

    result.py   Plan: what is said
    work.py     what is to be done, and on which machine
    seconds.py  how long it takes
    gates.py    what would be refused, each with the way out
    planner.py  plan(): all of it together

Pure arithmetic on plain data; nothing is touched. Memory is worked out and a setting chosen
by trainer/memory_model.py and trainer/memory_choice.py, which training uses too, so both
come to the same; GPUs and prices are data (infra/catalogue.py).
"""

from flows.planning.planner import plan
from flows.planning.result import Plan
from flows.planning.work import Place

__all__ = ["Place", "Plan", "plan"]
