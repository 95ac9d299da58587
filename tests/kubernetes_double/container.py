"""A container as a local process: its mounts are folders, its output a log with time stamps.

Its process runs in the environment of its image, made from the image's Dockerfile, with a root
of its own. Only a stand-in for the trainer runs on this machine as it is: there its mount paths
are rewritten.
"""

import asyncio
import contextlib
import json
import os
import re
import signal
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

from flows.cli.prefect_server import free_port
from tests.images.image import Image
from tests.images.sandbox import Mount
from tests.kubernetes_double.store import Object

TERMINATION_VARIABLE = "FINETUNE_TERMINATION_PATH"  # of stand-ins
TERMINATION_LOG = "/dev/termination-log"
MARK_VARIABLE = "CONTAINER_MARK"  # its processes are found by
ACCOUNT_FOLDER = "/var/run/secrets/accounts"
LINE_LIMIT = 1 << 24
TRAINER = ["python", "-m", "trainer"]
ROOT = Path(__file__).parents[2]


class Container:
    """Runs a Pod's one container below `folder`.

    Args:
        pod: As the node got it.
        folder: For its log, its own files and its termination message.
        volumes: Folder of each claim.
        entrypoint: Of a stand-in: its command in place of `python -m trainer`.
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
        self._entrypoint, self._hosts = entrypoint, hosts or {}
        self.port: int | None = None  # where it is to listen, if its spec has a port
        self._termination = folder / "termination"
        self._process: asyncio.subprocess.Process | None = None
        self._last_stamp = 0

    def mount(self) -> None:
        """Make its mounts, as the kubelet does before it pulls the image."""
        self._folder.mkdir(parents=True, exist_ok=True)
        self._mounts(self._pod["spec"]["containers"][0])

    async def start(self, node_environment: Mapping[str, str], image: Image | None = None) -> None:
        """Start its process.

        Args:
            node_environment: Variables that it gets over its own.
            image: What it runs in, if it is not a stand-in.
        """
        self.log.touch()
        spec = self._pod["spec"]["containers"][0]
        mounts = self._mounts(spec)
        if spec.get("ports"):
            self.port = free_port()
        words = [*spec.get("command", []), *spec.get("args", [])]
        if image is not None:
            command, environment = self._in_image(image, words, mounts, node_environment)
        else:
            assert self._entrypoint is not None
            words = [self._rewritten(part, mounts) for part in words]
            is_trainer = words[: len(TRAINER)] == TRAINER
            command = [*self._entrypoint, *words[len(TRAINER) :]] if is_trainer else words
            own = {"PATH": os.environ["PATH"], TERMINATION_VARIABLE: str(self._termination)}
            environment = {**self._environment(spec, mounts), **own, **node_environment}
        self._process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,
            cwd=ROOT,
            env={**environment, MARK_VARIABLE: str(self._termination)},
            limit=LINE_LIMIT,
        )

    def _in_image(
        self,
        image: Image,
        words: list[str],
        mounts: Mapping[str, Path],
        node_environment: Mapping[str, str],
    ) -> tuple[list[str], dict[str, str]]:
        """The command line and the variables of a process in the image."""
        spec = self._pod["spec"]["containers"][0]
        seen = {path: Mount(source=folder) for path, folder in mounts.items()}
        for mount in spec.get("volumeMounts", []):
            if self._is_read_only(mount):
                seen[mount["mountPath"]] = Mount(source=mounts[mount["mountPath"]], writable=False)
        self._termination.touch()
        self._termination.chmod(0o666)
        seen[TERMINATION_LOG] = Mount(source=self._termination)
        given = dict(node_environment)
        if "KUBECONFIG" in given:
            path = Path(given["KUBECONFIG"])
            seen[ACCOUNT_FOLDER] = Mount(source=path.parent, writable=False)
            given["KUBECONFIG"] = f"{ACCOUNT_FOLDER}/{path.name}"
        own = self._own_address()
        words = [own.get(word, word.replace("$$", "$")) for word in words]
        command = image.command(
            [_rewritten(word, self._hosts) for word in words],
            mounts=seen,
            user=self._user(),
        )
        return command, {**image.environment, **self._environment(spec, {}), **given}

    def _own_address(self) -> dict[str, str]:
        """What a command listens at here: every Pod is on this one machine."""
        ports = self._pod["spec"]["containers"][0].get("ports", [])
        return {
            "0.0.0.0": "127.0.0.1",
            **{str(p["containerPort"]): str(self.port) for p in ports},
        }

    def _user(self) -> str:
        """`uid:gid` that its pod asks for; empty: the image's own."""
        spec = self._pod["spec"]
        security = {
            **spec.get("securityContext", {}),
            **spec["containers"][0].get("securityContext", {}),
        }
        if "runAsUser" not in security:
            return ""
        return f"{security['runAsUser']}:{security.get('fsGroup', security['runAsUser'])}"

    def _give_to_group(self, folder: Path) -> None:
        """Let the pod's fsGroup write to a claim, as the kubelet does when it mounts it."""
        group = self._pod["spec"].get("securityContext", {}).get("fsGroup")
        if group is None or os.geteuid() != 0:
            return
        for path in (folder, *folder.rglob("*")):
            with contextlib.suppress(FileNotFoundError):  # the run's own, moved meanwhile
                if not path.is_symlink():
                    os.chown(path, -1, group)
                    path.chmod(path.stat().st_mode | (0o2770 if path.is_dir() else 0o660))

    def _is_read_only(self, mount: Object) -> bool:
        [volume] = [v for v in self._pod["spec"]["volumes"] if v["name"] == mount["name"]]
        claim = volume.get("persistentVolumeClaim", {})
        return bool(mount.get("readOnly") or claim.get("readOnly"))

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
                folder.mkdir(parents=True, exist_ok=True)  # the kubelet makes a subPath, too
                if self._entrypoint is None and not self._is_read_only(mount):
                    self._give_to_group(folder)
            else:
                folder = self._folder / "volumes" / mount["name"]
                folder.mkdir(parents=True, exist_ok=True)
                folder.chmod(0o777)  # as the kubelet makes what is the pod's own
            mounts[mount["mountPath"]] = folder
        for mount in spec.get("volumeMounts", []):
            for item in volumes[mount["name"]].get("downwardAPI", {}).get("items", []):
                text = _field(self._pod, item["fieldRef"]["fieldPath"])
                path = mounts[mount["mountPath"]] / item["path"]
                path.write_text(self._rewritten(text, {} if self._entrypoint is None else mounts))
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
        # The tests' own choice: an exam takes ten seconds for each model.
        given |= {k: v for k, v in os.environ.items() if k == "FINETUNE_EXAMS"}
        if self.port is not None:
            given["PORT"] = str(self.port)  # as Knative does; every Pod is on this one machine
        return given

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
