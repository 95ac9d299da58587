"""Serve adapters by name beside the served model, and follow the file that says which.

The server reads a file of the volume (adapters_record.py); no request can load or drop anything. An
adapter that can't be loaded leaves the one of its name as it was, and says why under /v1/models.
"""

import threading
from collections.abc import Mapping
from pathlib import Path

from trainer.contract import adapters_record
from trainer.contract.adapters_record import Wanted
from trainer.contract.errors import DamagedError, RequestError
from trainer.contract.volume import path_on_volume, refuse_links_out
from trainer.serving.engine.adapters import Adapter, AdapterRows
from trainer.serving.loading import digests, end_ids_of
from trainer.serving.service import Service

LOOK_SECONDS = 1.0


class ServedAdapters:
    """The adapters of one server."""

    def __init__(self, volume: str, base: str, rows: AdapterRows) -> None:
        self._volume, self._base, self._rows = volume, base, rows
        self._loaded: dict[str, tuple[Wanted, Adapter]] = {}

    def load(self, name: str, model: str, service: Service, digest: str = "") -> None:
        """Serve the adapter of a finished model under `name`.

        Args:
            name: In requests and under /v1/models.
            model: The finished model's folder on the volume.
            service: What it is added to.
            digest: The folder must have this one; empty: any.
        Raises:
            RequestError: It can't be served beside the others.
        """
        folder = path_on_volume(self._volume, "serving.adapters", model)
        if not folder.is_dir():
            raise RequestError(f"adapter {name!r} has no finished model (got {model!r}).")
        refuse_links_out(self._volume, "serving.adapters", folder)
        found = digests(folder)
        if digest not in ("", found["model"]):
            raise RequestError(
                f"adapter {name!r} is not the one that was deployed (got digest {found['model']}). "
                f"That was {digest}. Deploy it again."
            )
        _refuse_other_text(name, folder, found, service)
        wanted = Wanted(model=model, digest=found["model"])
        self._put(name, wanted, self._known(wanted) or self._read(folder), found, service)

    def follow(self, path: Path, service: Service) -> None:
        """Serve from now on what the file says, in a thread."""
        args = (path, service)
        threading.Thread(target=self._follow, args=args, name="adapters", daemon=True).start()

    def apply(self, wanted: Mapping[str, Wanted], service: Service) -> None:
        """Serve these adapters; one that can't be loaded leaves that of its name as it was."""
        for name, adapter in wanted.items():
            if name in self._loaded and self._loaded[name][0] == adapter:
                continue
            try:
                self.load(name, adapter.model, service, adapter.digest)
                print(f"adapter {name} of {adapter.model} is served", flush=True)
            except (RequestError, DamagedError, OSError, ValueError, RuntimeError) as error:
                service.refused[name] = str(error)
                print(f"adapter {name} can't be served: {error}", flush=True)
        for name in [name for name in self._loaded if name not in wanted]:
            self._drop(name, service)
        for name in [name for name in service.refused if name not in wanted]:
            service.refused.pop(name)

    def _follow(self, path: Path, service: Service) -> None:
        before: Mapping[str, Wanted] | None = None
        stop = threading.Event()
        while not stop.wait(LOOK_SECONDS):
            if not path.exists():
                continue
            try:
                wanted = adapters_record.read(path)
            except DamagedError as error:
                print(f"{error}; the adapters stay as they are", flush=True)
                continue
            if wanted != before:
                self.apply(wanted, service)
                before = wanted

    def _known(self, wanted: Wanted) -> Adapter | None:
        """It, where it is in memory under another name: one that was only tried."""
        return next((held for what, held in self._loaded.values() if what == wanted), None)

    def _read(self, folder: Path) -> Adapter:
        return self._rows.load(folder / "adapter", self._base)

    def _put(
        self,
        name: str,
        wanted: Wanted,
        adapter: Adapter,
        found: Mapping[str, str],
        service: Service,
    ) -> None:
        self._rows.put(name, adapter)
        self._loaded[name] = (wanted, adapter)
        service.refused.pop(name, None)
        service.others[name] = dict(found)

    def _drop(self, name: str, service: Service) -> None:
        service.others.pop(name, None)
        self._loaded.pop(name)
        self._rows.drop(name)


def _refuse_other_text(name: str, folder: Path, found: Mapping[str, str], service: Service) -> None:
    """One tokenizer reads and ends the texts of all: refuse an adapter with another."""
    if found["tokenizer"] != service.digests["tokenizer"]:
        raise RequestError(
            f"adapter {name!r} has another tokenizer (got digest {found['tokenizer']}). "
            f"That of the served model is {service.digests['tokenizer']}. Serve it by itself."
        )
    ends = end_ids_of(folder, service.tokenizer)
    if ends != service.engine.end_ids:
        raise RequestError(
            f"adapter {name!r} ends its texts otherwise (got token ids {sorted(ends)}). "
            f"The served model ends them with {sorted(service.engine.end_ids)}."
        )
