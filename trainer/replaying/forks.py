"""Do work in several processes at a time, each a fork of a server that has torch loaded.

The server has computed nothing and asked for no GPU, so each fork is what a fresh process is.
A fork exits when the server does, and that when its owner does, however it ends.
"""

import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any

from trainer.contract.errors import RequestError, StepError
from trainer.training.processes.launch import dies_with

START = "forkserver"  # tests, which have one thread, take "fork"
LOADED = ("trainer.training.process", "trainer.blaming.repetition", "trainer.replaying.replay")

Work = Callable[..., Any]


def in_forks(
    work: Work, arguments: Sequence[tuple[Any, ...]], at_a_time: int, gpus_each: int = 0
) -> Iterator[tuple[int, Any]]:
    """What `work` returns for each of `arguments`, with its index, as they end.

    Args:
        work: A function of a module.
        gpus_each: Each fork sees as many GPUs, which are its own; 0: what there is.
    Raises:
        StepError: One of them failed; the others are stopped.
    """
    context: Any = multiprocessing.get_context(START)
    if START == "forkserver":
        context.set_forkserver_preload([*LOADED])
    waiting, running = list(enumerate(arguments)), dict[Connection, tuple[int, int, Any]]()
    places = list(range(at_a_time))
    try:
        while waiting or running:
            while waiting and places:
                index, words = waiting.pop(0)
                ours, theirs = context.Pipe(duplex=False)
                gpus = range(places[0] * gpus_each, (places[0] + 1) * gpus_each)
                given = (theirs, work, words, [*gpus])
                process = context.Process(target=_be_one, args=given, daemon=False)
                process.start()
                theirs.close()
                running[ours] = index, places.pop(0), process
            for ended in wait([*running]):
                assert isinstance(ended, Connection)
                index, place, process = running.pop(ended)
                places.append(place)
                yield index, _result_of(ended, process)
    finally:
        for _, _, process in running.values():
            process.terminate()
        for _, _, process in running.values():
            process.join()


def _result_of(ours: Connection, process: Any) -> Any:
    try:
        kind, value = ours.recv()
    except EOFError:
        process.join()
        raise StepError(f"a replay ended without a result (exit code {process.exitcode})") from None
    process.join()
    if kind == "result":
        return value
    raise (RequestError if kind == "refused" else StepError)(value)


def _be_one(theirs: Connection, work: Work, words: tuple[Any, ...], gpus: list[int]) -> None:
    if not dies_with(os.getppid()):
        return
    if gpus:
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, gpus))
    try:
        theirs.send(("result", work(*words)))
    except StepError as error:
        theirs.send(("refused" if isinstance(error, RequestError) else "failed", str(error)))
