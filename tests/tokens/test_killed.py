"""Killed at any point the step leaves no store that looks complete, and continues."""

import functools
import importlib
import itertools
import os
import shutil
import signal

import pytest

from tests.tokens.conftest import Volume, content
from tests.tokens.prose import story
from tests.tokens.test_cache import FILES, pieces, start
from trainer.tokens.prune import prune
from trainer.tokens.store import MANIFEST, TokenStore


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_killed_while_encoding_it_leaves_no_store_and_goes_on(volume: Volume, how: signal.Signals):
    volume.write({f"{at}.txt": story(at, 1_300_000) for at in range(6)})
    process = start(volume, context=256)
    assert process.stdout
    while len(pieces(volume)) < 3 and process.poll() is None:
        pass  # the files themselves tell when it is in the middle
    process.send_signal(how)
    output = process.communicate()[0]
    assert process.returncode == (-9 if how == signal.SIGKILL else 143), output
    assert not list(volume.root.glob("tokens/[!.]*"))
    left = pieces(volume)
    assert 3 <= len(left) < 12
    again = volume.store(None, context=256)
    assert all(pieces(volume).get(path) == made for path, made in left.items())
    assert not list(volume.root.glob("tokens/.*"))
    good = content(again)
    shutil.rmtree(volume.root / "tokens")
    shutil.rmtree(volume.root / "cache/tokens/pieces")
    assert content(volume.store(None, context=256)) == good


# Where a store is packed, put in order, written down and put in its place: before and after.
PLACES = [
    ("trainer.tokens.pack.making:pack", 1),
    ("trainer.tokens.pack.making:shuffle", 1),
    ("pathlib:Path.rename", 2),  # the first three put the store's files in order
    ("pathlib:Path.write_text", 1),  # the manifest
    ("pathlib:Path.rename", 4),  # the store that was there goes aside
    ("pathlib:Path.rename", 5),  # the new one takes its place
]


def killed_at(volume: Volume, place: str, nth: int, after: bool, **options: object) -> int:
    """Run the step in a fork that ends itself at the `nth` call of `place`; its exit code.

    Nothing may be left to encode: the encoder's threads are not in a fork.
    """
    if child := os.fork():
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    try:
        module, path = place.split(":")
        *parents, name = path.split(".")
        owner = functools.reduce(getattr, parents, importlib.import_module(module))
        original, calls = getattr(owner, name), itertools.count(1)

        def struck(*given: object, **more: object) -> object:
            now = next(calls) == nth
            if now and not after:
                os.kill(os.getpid(), signal.SIGKILL)
            result = original(*given, **more)
            if now:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        setattr(owner, name, struck)
        volume.run(**options)
    finally:
        os._exit(99)


@pytest.mark.parametrize("after", [False, True])
def test_killed_while_a_store_is_packed_and_put_in_place(volume: Volume, after: bool):
    options = {"reorder": "shuffle", "train_ratio": 0.8}
    store = volume.store(FILES, **options)
    good = content(store)
    for place, nth in PLACES:
        (store.folder / "lengths.bin").write_bytes(b"")  # it is made again
        assert killed_at(volume, place, nth, after, **options) == -signal.SIGKILL, place
        if (store.folder / MANIFEST).exists() and (store.folder / "lengths.bin").stat().st_size:
            assert content(store) == good, place
        assert content(volume.store(None, **options)) == good, place
        prune(volume.root, dry_run=False)  # the one that went aside, where the last step was done
        assert not list(volume.root.glob("tokens/.*")), place
    assert content(TokenStore.open(store.folder, verify=True)) == good


def test_stopped_while_a_huge_file_is_digested_it_ends_at_once(volume: Volume):
    volume.write({"huge.txt": "a"})
    os.truncate(volume.root / "tales/huge.txt", 1 << 40)  # it has holes, and takes no room
    process = start(volume)
    assert process.stdout
    assert any('"digest"' in line for line in process.stdout)
    process.send_signal(signal.SIGTERM)
    output = process.communicate()[0]
    assert process.returncode == 143, output
