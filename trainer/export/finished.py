"""What there is to export: the run's final model, proven whole, and what is known of it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.contract import run_files
from trainer.contract.errors import DamagedError, RequestError
from trainer.contract.json_files import readable_object
from trainer.contract.run_folder import RunFolder
from trainer.contract.sealed_folder import Manifest, read_manifest, verify
from trainer.contract.volume import path_on_volume
from trainer.tokens.store import Manifest as TokensManifest
from trainer.tokens.store import TokenStore

# Beginnings of training contexts: their place is beside the server's gate, not with the public.
_STAYING = ("golden.json", "README.md")


@dataclass(frozen=True)
class FinishedRun:
    """A run whose `final/` is intact; what is unknown of it is None, and `unknown` says why."""

    run: RunFolder
    manifest: Manifest
    record: dict[str, Any]
    evaluation: dict[str, Any] | None
    tokens: TokensManifest | None
    unknown: tuple[str, ...]

    @property
    def files(self) -> dict[str, Path]:
        """The files of the model and its adapter, by their names in `final/`; no card."""
        names = (name for name in sorted(self.manifest.files) if name not in _STAYING)
        return {name: self.run.final / name for name in names}


def finished_run(volume: Path, run: RunFolder) -> FinishedRun:
    """Read all that an export needs of a run.

    Raises:
        RequestError: The run has no final model.
        DamagedError: Its final model is not what its manifest says.
    """
    if not run.final.is_dir():
        raise RequestError(
            f"RUN has no final model yet (got {run.root.name!r}). Let it end: "
            f"finetune run -p run_name={run.root.name} ..."
        )
    if problems := verify(run.final):
        raise DamagedError(f"the final model can't be exported: {'; '.join(problems)}")
    manifest, record = read_manifest(run.final), run.record() or {}
    evaluation = _evaluation(run, manifest.digest)
    tokens = _tokens(volume, record)
    unknown = {
        "no evaluation of this model in the card: the run has none": evaluation,
        "no data ledger in the card: the run's token store is gone from the volume": tokens,
    }
    missing = tuple(reason for reason, found in unknown.items() if found is None)
    return FinishedRun(run, manifest, record, evaluation, tokens, missing)


def _evaluation(run: RunFolder, final_digest: str) -> dict[str, Any] | None:
    """The run's evaluation, if it is of this very model."""
    report = readable_object(run.report, run_files.Evaluation)
    return report if report and report["compared"].get("final") == final_digest else None


def _tokens(volume: Path, record: dict[str, Any]) -> TokensManifest | None:
    """The manifest of the store that the run was trained on, if it is still that one."""
    name = record.get("request", {}).get("tokens", "")
    if not name:
        return None
    try:
        store = TokenStore.open(path_on_volume(volume, "tokens", name))
    except (DamagedError, RequestError):
        return None
    known = record.get("tokens_digest", store.digest)
    return store.manifest if store.digest == known else None
