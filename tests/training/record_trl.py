"""Record what TRL makes of pairs of answers: its losses, and the ids that it trains.

    python -m tests.training.record_trl

TRL is no dependency: `pip install --no-deps trl==1.16.0` beside the pinned packages was enough.
Writes tests/training/trl_losses.json and tests/chat/trl_pairs.json, which tests compare with.
"""

import json
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerFast

from tests.chat.templates import CHATML, INST, with_turns
from tests.tokens.models import EOT, PAD
from tests.training.volume import make_model, make_pairs, make_tokenizer

STEPS, BATCH, GRADIENTS, BETA = 10, 2, 2, 0.3
PAIRS = STEPS * BATCH * GRADIENTS // 2  # two epochs
LOSSES = Path(__file__).with_name("trl_losses.json")
IDS = Path(__file__).parents[1] / "chat/trl_pairs.json"

# What TRL does with texts: one after the other, and the end of text.
PLAIN = (
    "{% for m in messages %}{{ m.content }}"
    "{% if m.role == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
)


def turns(*said: str) -> list[dict[str, str]]:
    return [
        {"role": ("user", "assistant")[at % 2], "content": text} for at, text in enumerate(said)
    ]


ANSWERS = {
    "chosen": [{"role": "assistant", "content": "North."}],
    "rejected": [{"role": "assistant", "content": "I will not say, friend."}],
}
TEXTS = {"prompt": "Where did Tom go?", "chosen": " North.", "rejected": " I will not say."}
RECORDS: list[tuple[str, dict[str, Any]]] = [
    (CHATML, {"prompt": turns("Where did Tom go?"), **ANSWERS}),
    (CHATML, {"prompt": turns("Who?", "Tom.", "Where to?"), **ANSWERS}),
    (
        CHATML,
        {
            "chosen": turns("Who?", "Tom.", "Where to?", "North.", "Sure?", "Yes."),
            "rejected": turns("Who?", "Tom.", "Where to?", "South."),
        },
    ),
    (INST, {"prompt": turns("Who?", "Tom.", "Where to?"), **ANSWERS}),
    (PLAIN, TEXTS),
]


def arguments(folder: str) -> Any:
    from trl import DPOConfig

    return DPOConfig(
        output_dir=folder,
        beta=BETA,
        per_device_train_batch_size=BATCH,
        gradient_accumulation_steps=GRADIENTS,
        num_train_epochs=2,
        learning_rate=0.01,
        warmup_steps=0.1,
        weight_decay=0.0,
        lr_scheduler_type="linear",
        max_grad_norm=1.0,
        optim="adamw_torch",
        logging_steps=1,
        train_sampling_strategy="sequential",
        gradient_checkpointing=False,
        use_cpu=True,
        bf16=False,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
    )


def trainer_of(architecture: str, rows: list[dict[str, Any]], tokenizer: Any, folder: str) -> Any:
    from datasets import Dataset
    from trl import DPOTrainer

    return DPOTrainer(
        model=make_model(architecture),
        ref_model=make_model(architecture),
        args=arguments(folder),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
    )


def words(ids: list[int]) -> str:
    return "".join(f" w{token}" for token in ids)


def losses(architecture: str, folder: str) -> dict[str, list[float]]:
    """Of each step: TRL adds the end of text to an answer itself."""
    rows = [
        {"prompt": words(prompt), "chosen": words(better[:-1]), "rejected": words(worse[:-1])}
        for prompt, better, worse in make_pairs(PAIRS)
    ]
    trainer = trainer_of(architecture, rows, make_tokenizer(), folder)
    trainer.train()
    lines = [line for line in trainer.state.log_history if "loss" in line]
    names = {"loss": "loss", "reward_margin": "rewards/margins"}
    return {ours: [float(line[theirs]) for line in lines] for ours, theirs in names.items()}


def ids_of(template: str, record: dict[str, Any], folder: str) -> dict[str, Any]:
    names = {"eos_token": EOT, "pad_token": PAD}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=with_turns(), **names)
    tokenizer.chat_template = template
    [row] = trainer_of("llama", [record], tokenizer, folder).train_dataset
    made = {name: list(row[name]) for name in ("prompt_ids", "chosen_ids", "rejected_ids")}
    return {"template": template, "record": record, **made}


def main() -> None:
    made_with = {name: version(name) for name in ("trl", "transformers", "torch")}
    with tempfile.TemporaryDirectory() as folder:
        found = {name: losses(name, folder) for name in ("gptj", "neox", "llama")}
        pairs = [ids_of(template, record, folder) for template, record in RECORDS]
    LOSSES.write_text(json.dumps({"made_with": made_with, **found}, indent=1) + "\n")
    IDS.write_text(json.dumps({"made_with": made_with, "pairs": pairs}, indent=1) + "\n")


if __name__ == "__main__":
    main()
