"""A command in a root of its own: Linux mounts in place of a container engine.

The root is read-only and holds what the image holds and nothing of this machine's Python or of
the checkout. Writable is what is mounted writable. Processes, network and system libraries are
this machine's. Needs root, or a kernel that lets users make namespaces.
"""

import os
import shlex
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

# What a system library or program looks for; accounts are replaced.
OF_ETC = (
    "alternatives hosts ld.so.cache localtime mime.types nsswitch.conf protocols resolv.conf "
    "services ssl"
).split()
DEVICES = "null zero full random urandom tty".split()
SYSTEM = ("/bin", "/lib", "/lib32", "/lib64", "/libx32", "/sbin")
ACCOUNTS = "root:x:0:0:root:/root:/bin/sh\n"  # an image does not know the user of its pod


@dataclass(frozen=True, kw_only=True)
class Root:
    """The files of an image.

    `folder` is a whole root file system; without one, this machine's /usr is the system below.
    """

    parts: Mapping[str, Path] = field(default_factory=dict)  # path in the root: what is there
    folder: Path | None = None


@dataclass(frozen=True, kw_only=True)
class Mount:
    """What a pod mounts: a folder or file of this machine."""

    source: Path
    writable: bool = True


def is_available() -> bool:
    """Whether this machine can run a command in a root of its own."""
    return os.system(f"{shlex.join([*_unshare(), 'true'])} 2> /dev/null") == 0


def command_in(
    root: Root,
    command: Sequence[str],
    *,
    mounts: Mapping[str, Mount],
    workdir: str = "/",
    user: str = "1000:1000",
    scratch: Path,
) -> list[str]:
    """The command line of this machine that runs `command` in the root.

    The process keeps its id, so that signals reach the command itself.

    Args:
        root: What is mounted, read-only.
        mounts: Path in the root: what a pod mounts there.
        user: `uid:gid`, used where this process is root.
        scratch: An empty folder of any content-free use; several commands may share it.
    """
    script = "\n".join(["set -e", *_lines(root, mounts, scratch)])
    uid, _, gid = user.partition(":")
    spec = [f"--userspec={uid}:{gid or uid}", f"--groups={gid or uid}"] if os.geteuid() == 0 else []
    inside = [_tool("chroot"), *spec, str(scratch), "/usr/bin/env", "-C", workdir, *command]
    script += f"\nexec {shlex.join(inside)}"
    return [*_unshare(), "/bin/sh", "-c", script]


def _unshare() -> list[str]:
    own = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    return [_tool("unshare"), *own, "--mount", "--propagation", "private"]


def _tool(name: str) -> str:
    """Absolute, as the command's own PATH is the image's."""
    found = shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/sbin:/usr/bin")
    if found is None:
        raise FileNotFoundError(
            f"{name} is missing: it runs containers here (util-linux, coreutils)"
        )
    return found


def _lines(root: Root, mounts: Mapping[str, Mount], scratch: Path) -> list[str]:
    """Mount everything at `scratch`, a new tmpfs or a layer over the image's own files."""
    top = str(scratch)
    mount, mkdir = _tool("mount"), _tool("mkdir")
    lines = [f"{mount} -t tmpfs -o mode=755 root {shlex.quote(top)}"]
    if root.folder is not None:
        below = shlex.quote(str(root.folder))
        lines += [
            f"{mkdir} {top}/upper {top}/work {top}/root",
            f"{mount} -t overlay overlay -o lowerdir={below},upperdir={top}/upper,"
            f"workdir={top}/work {top}/root",
            # The layer takes the place of the tmpfs, which it keeps.
            f"{mount} --move {top}/root {top}",
        ]
    else:
        lines += _system(top)
    for path, source in root.parts.items():
        lines += _bind(top, path, source, writable=False)
    lines += _devices(top)
    for path, mounted in sorted(mounts.items()):
        lines += _bind(top, path, mounted.source, writable=mounted.writable)
    return [*lines, f"{mount} -o remount,ro {shlex.quote(top)}"]


def _system(top: str) -> list[str]:
    lines = _bind(top, "/usr", Path("/usr"), writable=False)
    for path in map(Path, SYSTEM):
        if path.is_symlink():
            lines.append(f"{_tool('ln')} -s {os.readlink(path)} {top}{path}")
        elif path.is_dir():
            lines += _bind(top, str(path), path, writable=False)
    lines.append(f"{_tool('mkdir')} -p {top}/etc {top}/tmp {top}/proc")
    lines.append(f"printf %s {shlex.quote(ACCOUNTS)} > {top}/etc/passwd")
    for name in OF_ETC:
        if (path := Path("/etc", name)).exists():
            lines += _bind(top, str(path), path, writable=False)
    return lines


def _devices(top: str) -> list[str]:
    mount = _tool("mount")
    lines = [f"{_tool('mkdir')} -p {top}/proc {top}/dev"]
    lines.append(f"{mount} --rbind /proc {top}/proc")
    lines.append(f"{mount} -t tmpfs -o mode=755 dev {top}/dev")
    lines.append(f"{_tool('mkdir')} -m 1777 {top}/dev/shm")
    for name in DEVICES:
        lines += _bind(top, f"/dev/{name}", Path("/dev", name), writable=True)
    return lines


def _bind(top: str, path: str, source: Path, *, writable: bool) -> list[str]:
    at = shlex.quote(f"{top}{path}")
    if source.is_dir():
        lines = [f"{_tool('mkdir')} -p {at}"]
    else:
        lines = [
            f"{_tool('mkdir')} -p {shlex.quote(str(Path(f'{top}{path}').parent))}",
            f": >> {at}",
        ]
    lines.append(f"{_tool('mount')} --bind {shlex.quote(str(source))} {at}")
    if not writable:
        lines.append(f"{_tool('mount')} -o remount,bind,ro {at}")
    return lines
