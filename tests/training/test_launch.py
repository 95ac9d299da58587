"""Training processes that die, are stopped, or only start: how the step ends then."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.training import forking
from tests.training.forking import Strike, log_of, run_step, start_step, wait_for
from tests.training.volume import CONTEXT, make_config, make_volume, read_lines
from trainer.contract.errors import EXIT_INCOMPLETE, EXIT_TERMINATED
from trainer.contract.sealed_folder import read_manifest, verify
from trainer.planning.memory_model import GIB, Setting, host_bytes
from trainer.planning.model_shape import ModelShape
from trainer.training.processes import launch

ENGINE = "trainer.training.engine.engine"


def test_one_process_that_dies_ends_the_step_and_leaves_none_behind(tmp_path: Path) -> None:
    config = make_config(make_volume(tmp_path), processes=2, gradients=1, zero_stage=2)
    strike = Strike(f"{ENGINE}:Engine.backward", 5, rank=1)
    assert run_step("finetune", config, strike) == 1
    assert "training process 1 of 2 ended with signal SIGKILL" in log_of(config)
    leftovers = subprocess.run(["pgrep", "-f", str(tmp_path)], capture_output=True, text=True)
    assert leftovers.stdout == ""


WITHOUT_TORCH = """
import runpy, sys
sys.modules["torch"] = None
sys.argv = ["launch", {folder!r}, "0", "2", "{launcher}"]
runpy.run_module("trainer.training.processes.launch", run_name="__main__")
"""


def test_a_package_that_a_training_process_lacks_is_told_as_that(tmp_path: Path) -> None:
    """Else Kubernetes would request its GPUs again, for the same error."""
    code = WITHOUT_TORCH.format(folder=str(tmp_path), launcher=os.getpid())
    done = subprocess.run([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)
    assert done.returncode == EXIT_INCOMPLETE, done.stderr
    with pytest.raises(ImportError, match="torch"):
        launch._result(tmp_path, [EXIT_INCOMPLETE, -signal.SIGKILL], 0, "")


def planned_gib(config: dict[str, Any]) -> float:
    """Host memory of a node, on the CPU."""
    model = Path(config["volume"], config["model"], "config.json")
    shape = ModelShape.from_config(json.loads(model.read_text()))
    setting = Setting(
        context=CONTEXT,
        batch_size=config["batch_size"],
        zero_stage=config["zero_stage"],
        processes=config["processes"],
        processes_per_node=config["processes"],
        precision="fp32",
        checkpointed_layers=0,
        on_gpu=False,
    )
    return host_bytes(shape, setting) / GIB


def test_the_real_command_trains_in_two_processes_and_stops_on_sigterm(tmp_path: Path) -> None:
    config = make_config(
        make_volume(tmp_path), processes=2, gradients=1, zero_stage=1, epochs=2000, save_steps=0
    )
    path, log = tmp_path / "config.json", tmp_path / "log"
    path.write_text(json.dumps(config))
    with open(log, "wb") as out:
        step = subprocess.Popen(
            [sys.executable, "-m", "trainer", "finetune", str(path)],
            stdout=out,
            stderr=subprocess.STDOUT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
    try:
        while step.poll() is None and '"done": 3,' not in log.read_text():
            time.sleep(0.05)
        step.send_signal(signal.SIGTERM)
        assert step.wait(240) == 143, log.read_text()[-3000:]
    finally:
        step.kill()
        step.wait()
    lines = read_lines(tmp_path / "run" / "metrics.jsonl")
    [checkpoint] = (tmp_path / "run" / "checkpoints").iterdir()
    assert read_manifest(checkpoint).about["step"] == lines[-1]["step"] >= 3
    assert verify(checkpoint) == []
    held = max(line["host_memory_gib"] for line in lines)
    assert held == pytest.approx(planned_gib(config), rel=0.25)
    noise = [x for x in log.read_text().splitlines() if not x.startswith("::finetune")]
    assert len(noise) == 1 and noise[0].startswith("stopped by SIGTERM after step")


@pytest.mark.parametrize("processes", [1, 2])
def test_a_second_ctrl_c_leaves_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, processes: int
) -> None:
    def pass_on(process: forking._Forked, signum: int) -> None:
        os.kill(process.pid, signum)
        os.write(1, b"passed on\n")

    monkeypatch.setattr(forking._Forked, "send_signal", pass_on)
    config = make_config(make_volume(tmp_path), epochs=2000, save_steps=0, processes=processes)
    pid = start_step("finetune", config)
    while '"done": 3,' not in log_of(config):
        time.sleep(0.05)
    training = psutil.Process(pid).children() or [psutil.Process(pid)]
    for process in training:
        process.suspend()  # so that both arrive before it can save
    os.kill(pid, signal.SIGINT)
    if processes == 1:
        os.kill(pid, signal.SIGCONT)
    else:
        while log_of(config).count("passed on") < processes:
            time.sleep(0.01)  # who launched them is not suspended, and takes the first one
    os.kill(pid, signal.SIGINT)
    assert wait_for(pid) == 143
    if processes > 1:  # to one process both may have come as one
        assert not list((tmp_path / "run").glob("checkpoints/step-*"))


def test_sigterm_while_its_processes_only_start_is_an_interruption(tmp_path: Path) -> None:
    config = make_config(make_volume(tmp_path), processes=2, gradients=1)
    path, log = tmp_path / "config.json", tmp_path / "log"
    path.write_text(json.dumps(config))
    with open(log, "wb") as out:
        command = [sys.executable, "-m", "trainer", "finetune", str(path)]
        step = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT)
    try:
        while step.poll() is None and len(psutil.Process(step.pid).children()) < 2:
            time.sleep(0.005)
        time.sleep(0.05)  # both are Python by now, and have no handler of their own yet
        step.send_signal(signal.SIGTERM)
        assert step.wait(240) == 143, log.read_text()
    finally:
        step.kill()
        step.wait()


def test_a_process_that_waits_for_one_that_was_stopped_is_not_waited_for_without_end() -> None:
    waiting, stopped = "import time; time.sleep(60)", f"raise SystemExit({EXIT_TERMINATED})"
    processes = [subprocess.Popen([sys.executable, "-c", code]) for code in (waiting, stopped)]
    try:
        assert launch._wait(processes, None, grace_seconds=0.2) == ""
        assert [process.poll() for process in processes] == [None, EXIT_TERMINATED]
    finally:
        processes[0].kill()
        processes[0].wait()
