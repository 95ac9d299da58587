"""Several chats in a context, each with its own mask."""

import json

from tests.chat.conftest import Chats, shown
from tests.tokens.packed import all_documents, check
from trainer.models.chat_prompts import ids_before_answer
from trainer.tokens.show import describe


def test_a_context_holds_whole_chats_with_their_masks(chats: Chats) -> None:
    turns = [
        {"messages": [{"role": "user", "content": f"Q{at}?"},
                      {"role": "assistant", "content": "A" * (1 + at % 5)}]}
        for at in range(40)
    ]  # fmt: skip
    files: dict[str, bytes | str] = {"a.jsonl": "\n".join(map(json.dumps, turns))}
    plain = chats.store(files, context=128)
    for train_on in ("assistant", "all"):
        data = {"packing": "documents", "train_on": train_on}
        store = chats.store(context=128, data=data)
        check(store)
        rows = [plain.contexts[at, : plain.lengths[at]].tolist() for at in range(40)]
        assert all_documents(store) == sorted(rows)
        assert store.manifest.num_contexts < 20
    same = chats.store(context=128, data={"packing": "documents"})
    assert same.trained_tokens(slice(None)) == plain.trained_tokens(slice(None))
    assert shown(same, 0)[1].count("<|im_end|>") == len(same.document_of(0))


def test_chats_are_mixed_with_plain_text(chats: Chats) -> None:
    records = [
        {"messages": [{"role": "user", "content": f"Q{at}?"},
                      {"role": "assistant", "content": "first"},
                      {"role": "user", "content": "And?"},
                      {"role": "assistant", "content": f"last {at}"}]}
        for at in range(30)
    ]  # fmt: skip
    chats.write({"a.txt": "The river rises.\n" * 90}, "general")
    files: dict[str, bytes | str] = {"a.jsonl": "\n".join(map(json.dumps, records))}
    data = {"train_on": "last", "replay": "general", "replay_share": 0.5}
    store = chats.store(files, context=128, data=data)
    own, general = store.manifest.parts
    assert own["taken"] == own["tokens"] and general["repeated"] + general["left_out"] > 0
    alone = chats.store(context=128, data={"train_on": "last"})
    assert store.manifest.chat == alone.manifest.chat
    assert store.manifest.eot_token_id == alone.manifest.eot_token_id
    names = [store.document_of(at)[0].path for at in range(store.manifest.num_contexts)]
    of_text = [at for at, name in enumerate(names) if name == "general/a.txt"]
    of_chats = [at for at, name in enumerate(names) if name == "tales/a.jsonl"]
    assert len(of_chats) == 30 and len(of_text) == general["taken_contexts"]
    trained = store.trained(of_text)
    assert trained is not None
    assert (trained.sum(axis=1) == store.lengths[of_text] - 1).all() and not trained[:, 0].any()
    expected = [alone.contexts[at].tolist() for at in range(30)]
    assert [store.contexts[at].tolist() for at in of_chats] == expected
    assert shown(store, of_chats[0])[1] == "last 0<|im_end|>"
    assert len(ids_before_answer(store, of_text[0])) > 1
    assert "general: 50.0 % of the trained tokens (replay)" in describe(store)
