"""A container as a local process: its mounts are folders, its output a log with time stamps."""

import asyncio
import contextlib
import json
import os
import re
import signal
import sys
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

from flows.embedded_server import free_port
from tests.kubernetes_double.store import Object

TERMINATION_VARIABLE = "FINETUNE_TERMINATION_PATH"
LINE_LIMIT = 1 << 24
ROOT = Path(__file__).parents[2]


class Container:
    """Runs a Pod's one container below `folder`.

    Args:
        pod: As the node got it.
        folder: For its log, its own files and its termination message.
        volumes: Folder of each claim.
        entrypoint: Command in place of `python -m trainer`, for stand-ins.
        hosts: Addresses of the cluster's names.
    """

    def __init__(
        self,
        pod: Object,
        folder: Path,
        volumes: Mapping[str, Path],
        entrypoint: list[str] | None = None,
        hosts: Mapping[str, str] | None = None,
    ) -> None:
        self.log = folder / "log"
        self.killed_for = ""  # "OOMKilled": what the terminated state gives as reason
        self._pod, self._folder, self._volumes = pod, folder, volumes
        self._entrypoint = entrypoint or [sys.executable, "-m", "trainer"]
        self._hosts = hosts or {}
        self.port: int | None = None  # where it is to listen, if its spec has a port
        self._termination = folder / "termination"
        self._process: asyncio.subprocess.Process | None = None
        self._last_stamp = 0

    def mount(self) -> None:
        """Make its mounts, as the kubelet does before it pulls the image."""
        self._folder.mkdir(parents=True, exist_ok=True)
        self._mounts(self._pod["spec"]["containers"][0])

    async def start(self, node_environment: Mapping[str, str]) -> None:
        """Start its process.

        Args:
            node_environment: Variables that it gets over its own.
        """
        self.log.touch()
        spec = self._pod["spec"]["containers"][0]
        mounts = self._mounts(spec)
        if spec.get("ports"):
            self.port = free_port()
        command = [*spec.get("command", []), *spec.get("args", [])]
        command = [self._rewritten(part, mounts) for part in command]
        if command[:3] == ["python", "-m", "trainer"]:
            command = [*self._entrypoint, *command[3:]]
        self._process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,
            cwd=ROOT,
            env={**self._environment(spec, mounts), **node_environment},
            limit=LINE_LIMIT,
        )

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    async def ended(self) -> int:
        """Keep its log until it ends; return its exit code as a container's."""
        assert self._process is not None and self._process.stdout is not None
        with open(self.log, "ab", buffering=0) as log:
            async for line in self._process.stdout:
                log.write(f"{self._stamp()} ".encode() + line.rstrip(b"\n") + b"\n")
        code = await self._process.wait()
        self._kill_descendants()
        return 128 - code if code < 0 else code

    def signal(self, signum: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signum)

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)

    def _kill_descendants(self) -> None:
        """Kill what it left, also in sessions of their own, as a container's cgroup is killed."""
        mine = str(self._termination)
        while True:
            running = psutil.process_iter(["environ"])  # a zombie has none
            left = [p for p in running if mine in (p.info["environ"] or {}).values()]
            if not left:
                return
            for process in left:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()

    async def end(self) -> None:
        """Kill what is left of it, and wait until it is gone."""
        self.kill()
        self._kill_descendants()
        if self._process is not None:
            await self._process.wait()

    @property
    def termination_message(self) -> str:
        """What it left, cut at 4,096 bytes as the kubelet does."""
        with contextlib.suppress(FileNotFoundError):
            return self._termination.read_bytes()[:4096].decode(errors="replace")
        return ""

    def _stamp(self) -> str:
        """A time stamp of nanoseconds, greater than the one before."""
        self._last_stamp = max(time.time_ns(), self._last_stamp + 1)
        seconds, nanoseconds = divmod(self._last_stamp, 10**9)
        moment = datetime.fromtimestamp(seconds, UTC)
        return f"{moment:%Y-%m-%dT%H:%M:%S}.{nanoseconds:09d}Z"

    def _mounts(self, spec: Object) -> dict[str, Path]:
        """The folder behind each mount path; made and filled where it is the Pod's own."""
        volumes = {volume["name"]: volume for volume in self._pod["spec"].get("volumes", [])}
        mounts = {}
        for mount in spec.get("volumeMounts", []):
            volume = volumes[mount["name"]]
            if "persistentVolumeClaim" in volume:
                claim = volume["persistentVolumeClaim"]["claimName"]
                folder = self._volumes[claim] / mount.get("subPath", "")
            else:
                folder = self._folder / "volumes" / mount["name"]
            folder.mkdir(parents=True, exist_ok=True)  # the kubelet makes a subPath, too
            mounts[mount["mountPath"]] = folder
        for mount in spec.get("volumeMounts", []):
            for item in volumes[mount["name"]].get("downwardAPI", {}).get("items", []):
                text = _field(self._pod, item["fieldRef"]["fieldPath"])
                path = mounts[mount["mountPath"]] / item["path"]
                path.write_text(self._rewritten(text, mounts))
                if not (path.parent / "..data").is_symlink():
                    (path.parent / "..data").symlink_to(".")
        return mounts

    def _environment(self, spec: Object, mounts: Mapping[str, Path]) -> dict[str, str]:
        given: dict[str, str] = {}
        for variable in spec.get("env", []):
            source = variable.get("valueFrom", {})
            if "fieldRef" in source:
                given[variable["name"]] = _field(self._pod, source["fieldRef"]["fieldPath"])
            elif "value" in variable:
                given[variable["name"]] = self._rewritten(variable["value"], mounts)
        here = {"PATH": os.environ["PATH"], TERMINATION_VARIABLE: str(self._termination)}
        if self.port is not None:
            here["PORT"] = str(self.port)  # as Knative does; every Pod is on this one machine
        return {**given, **here}

    def _rewritten(self, text: str, mounts: Mapping[str, Path]) -> str:
        return _rewritten(text, {**mounts, **self._hosts})


def _rewritten(text: str, mounts: Mapping[str, Path | str]) -> str:
    """`text` with each mount path replaced by its folder; the rest is left alone."""
    if not mounts:
        return text
    longest_first = sorted(mounts, key=len, reverse=True)
    pattern = "|".join(re.escape(path) for path in longest_first)
    return re.sub(rf"(?<![\w.-])(?:{pattern})(?![\w.-])", lambda found: str(mounts[found[0]]), text)


def _field(pod: Object, path: str) -> str:
    """A value of the downward API: metadata.name, metadata.annotations['key']."""
    keyed = re.fullmatch(r"metadata\.(labels|annotations)\['(.+)'\]", path)
    value: Any = pod
    if keyed:
        return pod["metadata"].get(keyed[1], {}).get(keyed[2], "")
    for part in path.split("."):
        value = value[part]
    return value if isinstance(value, str) else json.dumps(value)
