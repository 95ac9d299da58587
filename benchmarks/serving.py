"""Answers per second, latency, decode speed and start-up of the server, on this machine's CPU.

    python -m benchmarks.serving [--layers 6] [--width 512] [--rounds 3] [--clients 1 8 32]

Makes a GPT-J with random weights, serves it with `python -m trainer serve` and, beside
it, as the reference did (benchmarks/serving_reference.py). All are asked in turns within
one run: compare the ratios, not the figures. On a busy machine trust the processor time
of an answer alone: a server with many threads takes a larger share of the cores there.
Takes about five minutes on two idle cores.
"""

import argparse
import itertools
import json
import os
import platform
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from importlib.metadata import version
from pathlib import Path

import httpx
import psutil
import torch

from infra.local import service as local_service
from infra.local import service_client
from infra.local.service import Service
from tests.serving import tiny_models

NEW_TOKENS = 32
PROMPT = "The sheriff rode into town at noon. Dust rose behind his horse"
LAUNCH_TO_TOKEN = """
import time; begin = time.perf_counter()
import sys, torch
import trainer.serving.step
from pathlib import Path
from trainer.models import load_model
imports = time.perf_counter(); folder = Path(sys.argv[1])
model = load_model(folder, dtype=torch.float32)
weights = time.perf_counter()
with torch.inference_mode(): model(torch.zeros(1, 16, dtype=torch.long))
passed = time.perf_counter()
print("parts", imports - begin, weights - imports, passed - weights)
"""


def make_model(folder: Path, layers: int, width: int) -> int:
    """Save the model; return the bytes of its weights."""
    from transformers import GPTJConfig, GPTJForCausalLM

    torch.manual_seed(0)
    config = GPTJConfig(
        vocab_size=8192,
        n_positions=1024,
        n_embd=width,
        n_layer=layers,
        n_head=width // 64,
        rotary_dim=32,
        bos_token_id=0,
        eos_token_id=0,
    )
    model = GPTJForCausalLM(config)
    with torch.no_grad():
        model.lm_head.bias[0] = -100.0  # no answer ends early
    model.save_pretrained(folder)
    tiny_models.tokenizer().save_pretrained(folder)
    return sum(p.numel() * p.element_size() for p in model.parameters())


def cpu_seconds(pid: int) -> float:
    """Processor time that a server has used so far."""
    times = psutil.Process(pid).cpu_times()
    return times.user + times.system


def answering(url: str, pid: int, clients: int, requests: int) -> tuple[float, float]:
    """Answers per second, and per second of the server's processor time.

    Sends `requests` from `clients` at a time to `/completion`.
    """
    left = threading.Semaphore(requests)
    body = {"prompt": PROMPT, "max_new_tokens": NEW_TOKENS, "do_sample": False}

    def work() -> None:
        with httpx.Client(timeout=600, trust_env=False) as http:
            while left.acquire(blocking=False):
                http.post(f"{url}/completion", json=body).raise_for_status()

    threads = [threading.Thread(target=work) for _ in range(clients)]
    begin, before = time.perf_counter(), cpu_seconds(pid)
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds, busy = time.perf_counter() - begin, cpu_seconds(pid) - before
    return requests / seconds, requests / busy


def latencies(service: Service, clients: int) -> tuple[float, float]:
    """Median seconds to the first token, and between two tokens, of streams at a time."""
    firsts: list[float] = []
    gaps: list[float] = []

    def work() -> None:
        begin = time.perf_counter()
        times = []
        settings = {"max_tokens": NEW_TOKENS, "temperature": 0, "logprobs": 0}
        for _ in service_client.stream(service, PROMPT, **settings):
            times.append(time.perf_counter())
        firsts.append(times[0] - begin)
        gaps.extend(b - a for a, b in itertools.pairwise(times))

    threads = [threading.Thread(target=work) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return statistics.median(firsts), statistics.median(gaps)


def memory_bytes_per_second() -> float:
    """What one pass over a large tensor reads, best of five."""
    numbers = torch.ones(64 * 2**20)  # 256 MiB, beyond every cache
    seconds = []
    for _ in range(5):
        begin = time.perf_counter()
        numbers.sum()
        seconds.append(time.perf_counter() - begin)
    return numbers.numel() * 4 / min(seconds)


def start_reference(folder: Path, way: str) -> tuple[subprocess.Popen[bytes], str]:
    ready = folder / f"ready-{way}.json"
    script = Path(__file__).with_name("serving_reference.py")
    process = subprocess.Popen(
        [sys.executable, str(script), str(folder), str(ready), way],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    while not ready.exists():
        if process.poll() is not None:
            raise RuntimeError(f"the reference's server ended with {process.returncode}")
        time.sleep(0.1)
    time.sleep(0.5)
    return process, json.loads(ready.read_text())["url"]


def start_up(volume: Path, folder: Path) -> tuple[float, float, list[float]]:
    """Seconds from launch to the first answer, and of imports, weights and one pass apart."""
    begin = time.perf_counter()
    service = local_service.start(volume, "again", "bench/final")
    service_client.ask(service, PROMPT, max_tokens=1)
    seconds = time.perf_counter() - begin
    local_service.stop(volume, "again")
    begin = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", LAUNCH_TO_TOKEN, str(folder)],
        capture_output=True,
        text=True,
        check=True,
    )
    whole = time.perf_counter() - begin
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("parts")]
    return seconds, whole, [float(part) for part in line.split()[1:]]


Row = dict[str, tuple[float, float]]


def throughput(servers: dict[str, tuple[str, int]], clients: int, rounds: int) -> Row:
    """Median answers per second, of time and of processor time; asked in turns."""
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in servers}
    for _ in range(rounds):
        for name, (url, pid) in servers.items():
            found[name].append(answering(url, pid, clients, max(4, clients)))
    return {
        name: (statistics.median(a for a, _ in each), statistics.median(b for _, b in each))
        for name, each in found.items()
    }


def report(args: argparse.Namespace, volume: Path) -> None:
    folder = volume / "bench/final"
    weight_bytes = make_model(folder, args.layers, args.width)
    packages = ", ".join(f"{p} {version(p)}" for p in ("torch", "transformers", "uvicorn"))
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores; {packages}")
    print(f"GPT-J {args.layers} x {args.width}, {weight_bytes / 2**20:.0f} MiB in float32\n")
    seconds, whole, parts = start_up(volume, folder)
    imports, weights, one_pass = parts
    print(f"launch to first answer {seconds:.2f} s, imports + weights + one pass {whole:.2f} s")
    print(f"  (imports {imports:.2f}, weights {weights:.2f}, one forward pass {one_pass:.2f})")
    print(f"  ratio {seconds / whole:.2f}; aim: at most 1.5\n", flush=True)
    service = local_service.start(volume, "bench", "bench/final")
    references = {way: start_reference(folder, way) for way in ("threads", "serial")}
    try:
        servers = {"ours": (service.url, service.pid)}
        servers |= {way: (url, process.pid) for way, (process, url) in references.items()}
        for url, pid in servers.values():
            answering(url, pid, 1, 2)  # warm
        show_throughput(servers, args.clients, args.rounds)
        for process, _ in references.values():
            process.terminate()
        show_latencies(service, args.clients, weight_bytes)
    finally:
        local_service.stop(volume, "bench")
        for process, _ in references.values():
            process.kill()
            process.wait()


def show_throughput(
    servers: dict[str, tuple[str, int]], all_clients: list[int], rounds: int
) -> None:
    print(f"answers per second ({NEW_TOKENS} new tokens each), of time / of processor time")
    print("| clients | ours | reference, threads | reference, serial | ours / better one |")
    print("| ---: | ---: | ---: | ---: | ---: |")
    for clients in all_clients:
        row = throughput(servers, clients, rounds)
        better = [max(row["threads"][i], row["serial"][i]) for i in (0, 1)]
        cells = [f"{row[name][0]:.2f} / {row[name][1]:.2f}" for name in servers]
        ratio = f"{row['ours'][0] / better[0]:.1f} / {row['ours'][1] / better[1]:.1f}"
        print(f"| {clients} | {' | '.join(cells)} | {ratio} |", flush=True)


def show_latencies(service: Service, all_clients: list[int], weight_bytes: int) -> None:
    bandwidth = memory_bytes_per_second()
    print(f"\nmemory bandwidth {bandwidth / 1e9:.1f} GB/s (sum of 256 MiB)")
    print("| clients | to first token, ms | between tokens, ms | tokens/s | of bandwidth |")
    print("| ---: | ---: | ---: | ---: | ---: |")
    for clients in all_clients:
        first, gap = latencies(service, clients)
        # All weights are read once for a token of every client.
        share = weight_bytes / gap / bandwidth
        print(
            f"| {clients} | {first * 1e3:.0f} | {gap * 1e3:.1f} | {clients / gap:.0f} "
            f"| {share:.0%} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 32])
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda signum, frame: sys.exit(1))  # leave no server behind
    volume = Path(tempfile.mkdtemp(prefix="serving-"))
    try:
        report(args, volume)
    finally:
        shutil.rmtree(volume)


if __name__ == "__main__":
    main()
