"""Run one step: `python -m trainer STEP CONFIG.json`.

Prints text for people and event lines (trainer/contract/events.py), writes the outcome and
ends with exit code 0 done, 70 a package is missing, 78 the request is wrong, 143 stopped
after saving, else failed. Loads no torch until a step needs it.
"""

import argparse
import dataclasses
import importlib
import logging
import signal
import sys
import time
import traceback
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType

# The guard stands before the imports that it is for.
from trainer.import_failure import end_at_import_failure, message_of

if __name__ == "__main__":
    end_at_import_failure()

from trainer.contract import events
from trainer.contract.errors import (
    EXIT_DONE,
    EXIT_FAILED,
    EXIT_INCOMPLETE,
    Interrupted,
    RequestError,
    Signalled,
    StepError,
)
from trainer.contract.outcome import Outcome, write_termination_message
from trainer.contract.run_folder import RunFolder
from trainer.contract.step_configs import STEP_CONFIGS, StepConfig, load_step_config
from trainer.fetch.checks import refusing_bad_volume
from trainer.process_end import end_process
from trainer.report.journal import begin, placed_at
from trainer.retention.full_volume import full_sentence, is_full
from trainer.steps import STEP_MODULES, StepResult
from trainer.training.processes.nodes import node_rank

WRITING_STEPS = (
    "finetune",
    "evaluate",
    "deploy",
)  # the others find a run's folder, or change nothing


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m trainer",
        description="Run one step of a finetuning run.",
        epilog="Exit codes: 0 done, 78 the config or the data is wrong, "
        "143 stopped by SIGTERM after saving, else it failed.",
    )
    parser.add_argument("step", choices=STEP_CONFIGS, help="which step to run")
    parser.add_argument(
        "config", metavar="CONFIG.json", help="the step's configuration: a file, or its JSON text"
    )
    return parser


def _config_text(given: str) -> str:
    """The configuration; a server's arrives as text, as it may not mount a file of its own."""
    return given if given.startswith("{") else Path(given).read_text(encoding="utf-8")


def _stop_on_signal(signum: int, frame: FrameType | None) -> None:
    raise Signalled(f"stopped by {signal.Signals(signum).name}")


def _run(step: str, config: StepConfig) -> tuple[Outcome, int]:
    started, clock = datetime.now(UTC).isoformat(timespec="milliseconds"), time.monotonic()

    def outcome(status: str, result: StepResult) -> Outcome:
        return Outcome(
            step=step,
            status=status,  # type: ignore[arg-type]
            message=result.message,
            reused=result.reused,
            started=started,
            seconds=round(time.monotonic() - clock, 3),
            result=result.result,
        )

    try:
        result = importlib.import_module(STEP_MODULES[step]).run(config)
        return outcome("done", result), EXIT_DONE
    except RequestError as error:
        return outcome("refused", StepResult(message=str(error))), error.exit_code
    except (Interrupted, Signalled) as error:
        return outcome("interrupted", StepResult(message=str(error))), error.exit_code
    except StepError as error:  # says itself what happened and what to do
        return outcome("failed", StepResult(message=str(error))), error.exit_code
    except ImportError as error:
        traceback.print_exc()
        return outcome("failed", StepResult(message=message_of(error))), EXIT_INCOMPLETE
    except OSError as error:
        if not is_full(error):
            return outcome("failed", StepResult(message=_told(error))), EXIT_FAILED
        message = f"{full_sentence(Path(config.volume))}. Make room and run it again: it resumes."
        return outcome("failed", StepResult(message=message)), EXIT_FAILED
    # The last resort of a process: whatever ended the step is printed whole and recorded.
    except Exception as error:  # noqa: BLE001
        return outcome("failed", StepResult(message=_told(error))), EXIT_FAILED


def _told(error: Exception) -> str:
    """An error that nobody expected, in one line; all of it is printed."""
    traceback.print_exc()
    return f"{type(error).__name__}: {error}"


def _record(config: StepConfig, outcome: Outcome, exit_code: int) -> tuple[Outcome, int]:
    """Leave the outcome in the run's folder; how the step ends where the volume takes it not."""
    try:
        with refusing_bad_volume(Path(config.volume)):
            RunFolder(config.volume, config.run_name).record_outcome(outcome)
    except RequestError as error:
        print(error, file=sys.stderr)
        if exit_code == EXIT_DONE:
            refused = dataclasses.replace(outcome, status="refused", message=str(error), result={})
            return refused, error.exit_code
    return outcome, exit_code


def _mend(run_folder: RunFolder, step: str) -> None:
    """Name what is damaged in the folder of an admitted run, and restore its run.json."""
    if step in WRITING_STEPS and run_folder.is_admitted:
        for phrase in run_folder.mend():
            events.say(f"{run_folder.root.name}: {phrase}")


def _report(run_folder: RunFolder, step: str) -> None:
    """Make the report of an admitted run; one that can't be made fails no step."""
    if step not in WRITING_STEPS or not run_folder.is_admitted:
        return
    from trainer.report.page import write_page_if_possible  # jinja2: a quarter of all imports

    if said := write_page_if_possible(run_folder):
        events.say(said)


def main(arguments: list[str] | None = None) -> int:
    args = _parser().parse_args(arguments)
    signal.signal(signal.SIGTERM, _stop_on_signal)
    signal.signal(signal.SIGINT, _stop_on_signal)
    # peft loads it with any adapter, and on some CPUs it advises to install a package.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    config: StepConfig | None = None
    journal = None
    try:
        config = load_step_config(args.step, _config_text(args.config))
        if config.run_name and args.step != "serve" and node_rank() == 0:
            run_folder = RunFolder(config.volume, config.run_name)
            journal = begin(
                run_folder,
                args.step,
                flow_began=config.flow_began,
                asked=config.asked,
                placed=placed_at(args.config),
            )
            _mend(run_folder, args.step)
        outcome, exit_code = _run(args.step, config)
    except RequestError as error:
        print(error, file=sys.stderr)
        refused = Outcome(step=args.step, status="refused", message=str(error))
        write_termination_message(refused)
        return error.exit_code
    except Signalled as error:  # before the step began, or just as it ended
        outcome = Outcome(step=args.step, status="interrupted", message=str(error))
        exit_code = error.exit_code
    # A second signal must not cut the outcome off.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if outcome.message:
        print(outcome.message, file=sys.stderr if exit_code else sys.stdout, flush=True)
    if config is not None and config.run_name and node_rank() == 0:
        outcome, exit_code = _record(config, outcome, exit_code)
    if journal is not None:
        journal.close(outcome.status)
        if outcome.status == "done":
            _report(run_folder, args.step)
    write_termination_message(outcome)
    return exit_code


if __name__ == "__main__":
    end_process(main())
