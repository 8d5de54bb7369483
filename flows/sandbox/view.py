"""Which files a task's process may see: Python, its packages, the task's package and the data set (SPEC 8.1).

A task's package is found without importing it. Of a folder on ``PYTHONPATH`` it sees that package alone, and not what
else lies there.
"""

import importlib.util
import os
import site
import sys
import sysconfig
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
"""The folder that this installation's own packages lie in."""
OWN = ("flows", "ml_tasks", "protocols")
SYSTEM = (
    "/lib",
    "/lib64",
    "/usr/lib",
    "/usr/lib64",
    "/usr/local/lib",
    "/usr/share/zoneinfo",
    "/etc/ld.so.cache",
    "/etc/localtime",
    "/dev/urandom",
    "/dev/random",
    "/dev/zero",
    "/proc/cpuinfo",
    "/proc/meminfo",
    "/sys/devices/system/cpu",
)
GPU = ("/proc/driver/nvidia", "/proc/devices", "/sys/devices/system/node", "/sys/module/nvidia", "/usr/share/nvidia")
"""What NVIDIA's driver reads, where there is a device."""


@dataclass(frozen=True, slots=True)
class Package:
    """A task's top-level package or module, found but not imported.

    Attributes:
        name: as it is imported.
        origin: its file, empty for a namespace.
        folders: where its modules are; none for a single file.
    """

    name: str
    origin: str
    folders: tuple[str, ...]

    @property
    def paths(self) -> tuple[Path, ...]:
        """All that must be readable to import it."""
        return tuple(Path(folder) for folder in self.folders) or (Path(self.origin),)


@dataclass(frozen=True, slots=True)
class View:
    """What a task's process sees.

    Attributes:
        python: what every task needs.
        packages: of the tasks.
        data: data sets; a task's own is narrowed down to in the child.
        devices: of GPUs.
    """

    python: tuple[Path, ...]
    packages: tuple[Package, ...]
    data: tuple[Path, ...]
    devices: tuple[Path, ...]

    @property
    def readable(self) -> tuple[Path, ...]:
        """Every file and folder that may be read."""
        own = [path for package in self.packages for path in package.paths]
        return (*self.python, *own, *self.data)


def view(packages: Sequence[Package], data: Sequence[Path]) -> View:
    """What tasks of these packages see beside these data sets."""
    devices = gpus()
    extra = tuple(map(Path, GPU)) if devices else ()
    return View(python_paths() + extra, tuple(packages), tuple(path.resolve() for path in data), devices)


def places(seen: View) -> dict[Path, tuple[int, int]]:
    """Which folders and files these are: a mount of one shows what was there, whatever takes its name later."""
    found = {}
    for path in seen.readable:
        with suppress(OSError):
            here = path.stat()
            found[path] = (here.st_dev, here.st_ino)
    return found


def find_package(task: str) -> Package | None:
    """The package of a task, ``module:Class``, without importing anything of it; ``None`` where there is none."""
    name = task.partition(":")[0].partition(".")[0]
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        return None
    if spec is None or not (spec.origin or spec.submodule_search_locations):
        return None
    folders = tuple(str(Path(folder).resolve()) for folder in spec.submodule_search_locations or ())
    origin = str(Path(spec.origin).resolve()) if spec.has_location and spec.origin else ""
    return Package(name, origin, folders)


def python_paths() -> tuple[Path, ...]:
    """Python itself, its site-packages, this installation, and the system's libraries."""
    configured = sysconfig.get_paths()
    found = [Path(configured[name]) for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    found += [Path(folder) for folder in package_folders()]
    found += [Path(prefix) / name for prefix in (sys.prefix, sys.base_prefix) for name in ("lib", "lib64")]
    found += [Path(sys.prefix) / "pyvenv.cfg", *_links(Path(sys.executable))]
    found += [ROOT / name for name in OWN]
    found += [Path(name) for name in SYSTEM]
    found += [Path(name) for name in os.environ.get("LD_LIBRARY_PATH", "").split(os.pathsep) if name]
    return tuple(path for path in dict.fromkeys(found) if path.exists())


def package_folders() -> tuple[str, ...]:
    """The site-packages of this process, the user's own among them where it has those on its path."""
    mine = [site.getusersitepackages()] if site.ENABLE_USER_SITE else []
    return tuple(folder for folder in (*site.getsitepackages(), *mine) if folder in sys.path)


def imports() -> str:
    """``PYTHONPATH`` of the warm parent: this installation, and site-packages that Python would not find by itself."""
    mine = [folder for folder in package_folders() if not folder.startswith((sys.prefix, sys.base_prefix))]
    return os.pathsep.join([str(ROOT), *mine])


def gpus() -> tuple[Path, ...]:
    """The device nodes of NVIDIA's driver, if there are any."""
    if not Path("/dev/nvidiactl").exists():
        return ()
    return (*sorted(Path("/dev").glob("nvidia*")),)


def bubblewrap(command: str, seen: View, *, scratch: Path, scratch_bytes: int) -> list[str]:
    """The words before a command that has it see nothing else, in namespaces of its own without a network.

    Args:
        command: bubblewrap's path.
        seen: what it sees, read only.
        scratch: a folder of its own that it may write into, in memory.
        scratch_bytes: how much.
    """
    words = [command, "--unshare-ipc", "--unshare-net", "--unshare-pid", "--unshare-uts", "--unshare-cgroup-try"]
    words += ["--cap-drop", "ALL"]
    if os.geteuid() == 0:
        words += ["--cap-add", "CAP_DAC_READ_SEARCH"]
    else:
        words += ["--unshare-user"]
    words += ["--proc", "/proc", "--dev", "/dev"]
    mounted = [path for path in seen.readable if not str(path).startswith(("/proc/", "/dev/"))]
    for path in sorted(dict.fromkeys(mounted)):
        words += ["--ro-bind-try", str(path), str(path)]
    for path in seen.devices:
        words += ["--dev-bind-try", str(path), str(path)]
    if seen.devices:
        words += ["--ro-bind-try", "/proc/driver/nvidia", "/proc/driver/nvidia"]
    return [*words, "--size", str(scratch_bytes), "--tmpfs", str(scratch), "--chdir", "/", "--"]


def _links(path: Path) -> Iterator[Path]:
    """A file and every file on the way that its symbolic links take."""
    for _ in range(8):
        yield path
        if not path.is_symlink():
            return
        path = path.parent / path.readlink()
