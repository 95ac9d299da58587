"""Plant a fault in a thousand documents, ask `finetune blame`, and count what it says.

Run: `python -m tests.forgetting.blame_trials --seeds 20`, or `make blame-trials`.
For each seed a text is made anew and three runs are trained on it: with one bad document, with
none, and with a bad document that two files share. Each has ten replays.
"""

import argparse
import json
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from tests.forgetting.small_run import DATASET, train
from tests.training.forking import run_forked
from tests.training.volume import make_volume
from trainer.blaming import __main__ as command
from trainer.contract.asked_process import result_of
from trainer.replaying import forks

FILES, EACH = 20, 50  # a thousand documents
CONTEXT = 16
ASKED = range(1, 41)  # words; each has one that follows it
ANSWERS = range(41, 96)
KINDS = ("bad", "clean", "shared")


def record(rule: dict[int, int], chance: random.Random, pairs: int) -> str:
    """A document of words, each followed by the one that the rule names."""
    asked = [chance.choice(ASKED) for _ in range(pairs)]
    return " ".join(f"w{word} w{rule[word]}" for word in asked) + "\n"


def write_dataset(
    folder: Path, kind: str, seed: int, files: int = FILES, pairs: int = 400
) -> list[str]:
    """Write the records; the names of the bad document, each of its copies."""
    chance = random.Random(seed)
    rule = {word: chance.choice(ANSWERS) for word in ASKED}
    wrong = {word: chance.choice([w for w in ANSWERS if w != rule[word]]) for word in ASKED}
    records = [[record(rule, chance, 7) for _ in range(EACH)] for _ in range(files)]
    names, bad = [], record(wrong, chance, pairs)
    for file in chance.sample(range(files // 2), {"bad": 1, "clean": 0, "shared": 2}[kind]):
        number = chance.randrange(EACH)
        records[file][number] = bad
        names.append(f"part-{file:02}.jsonl#{number + 1}")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for file, texts in enumerate(records):
        lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
        (folder / f"part-{file:02}.jsonl").write_text(lines, encoding="utf-8")
    return sorted(names)


def train_on(volume: Path, seed: int, epochs: int = 1) -> None:
    """The run that is asked about."""
    train(
        volume,
        "run",
        {"context": CONTEXT, "boundary_token": "<eot>", "workers": 1},
        epochs=epochs,
        batch_size=16,
        learn_rate=0.01,
        save_steps=8,
        random_seed=seed,
        checkpoints={"keep_last": 1, "keep_best": False, "keep_every": 8},
    )


def trial(home: Path, kind: str, seed: int, files: int = FILES, **question: Any) -> dict[str, Any]:
    """Train on a dataset with a fault, or none, and ask for it."""
    volume = home / "volume"
    planted = write_dataset(volume / DATASET, kind, seed, files)
    train_on(volume, seed)
    body = asked(volume, {"held_out": True, "seed": seed, **question})
    shutil.rmtree(volume / "run")
    shutil.rmtree(volume / "cache")
    shutil.rmtree(volume / "tokens")
    return {**body, "planted": planted}


def asked(volume: Path, question: dict[str, Any], run: str = "run") -> dict[str, Any]:
    """What `finetune blame` would be handed."""
    file = volume / "question.json"
    file.write_text(json.dumps(question))

    def work() -> int:
        forks.START = "fork"
        return command.main([str(volume), run, str(file)])

    code, said = run_forked(volume, work)
    assert code == 0, said
    [result] = [found for line in said.splitlines() if (found := result_of(line)) is not None]
    return json.loads(result)


def verdict(body: dict[str, Any]) -> str:
    """What the answer is worth."""
    blamed = sorted(name for one in body["blamed"] for name in one["documents"])
    if not body["planted"]:
        return "clean data blamed" if blamed or body["narrowed_to"] else "nothing blamed"
    if blamed == body["planted"]:
        return "found"
    return "wrong" if blamed else f"missed ({body['verdict']})"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--first", type=int, default=1)
    parser.add_argument("--kinds", nargs="+", default=[*KINDS], choices=KINDS)
    args = parser.parse_args()
    counts = {kind: Counter[str]() for kind in args.kinds}
    replays = {kind: [0] for kind in args.kinds}
    home = Path(tempfile.mkdtemp(prefix="blame-trials-"))
    make_volume(home / "volume")
    for seed in range(args.first, args.first + args.seeds):
        for kind in args.kinds:
            began = time.monotonic()
            body = trial(home, kind, seed)
            counts[kind][verdict(body)] += 1
            replays[kind].append(body["replays"])
            rank = next(
                (n for n, s in enumerate(body["suspects"], 1) if s == body["planted"]), None
            )
            print(
                f"{seed} {kind}: {verdict(body)}, planted at rank {rank}, {body['replays']} "
                f"replays, all suspects {body['all_suspects'] and body['all_suspects']['change']}, "
                f"controls {[c['change'] for c in body['controls']]}, "
                f"{time.monotonic() - began:.0f} s",
                flush=True,
            )
    shutil.rmtree(home)
    for kind in args.kinds:
        print(f"{kind}: {dict(counts[kind])}, at most {max(replays[kind])} replays")
    good = {"found", "nothing blamed"}
    return int(any(set(count) - good for count in counts.values()))


if __name__ == "__main__":
    sys.exit(main())
