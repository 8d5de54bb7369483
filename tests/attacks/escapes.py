"""A task whose ``load`` tries to get out of the sandbox, in the ways that a file in its data folder names.

What came of it is told as a ``DataError``, which ``Workshop.check`` gives in full: only OSErrors count as held.
"""

import ctypes
import json
import mmap
import os
import platform
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from torch import nn

from ml_tasks.task import DataError, Examples, SiteData, Task

ESCAPED, HELD = "ESCAPED", "held"
GIGABYTE = 10**9

ATTEMPTS: dict[str, Callable[[Path, dict], object]] = {}
"""Each returns something true or raises no OSError if it got out."""


def attempt(do):
    ATTEMPTS[do.__name__] = do
    return do


def libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def checked(result: int) -> int:
    if result < 0:
        raise OSError(ctypes.get_errno(), "refused")
    return result


def call(x86: int, arm: int, *words: object) -> int:
    """A system call by its number on either machine."""
    return checked(libc().syscall(x86 if platform.machine() == "x86_64" else arm, *words))


class Escape(Task):
    title, provenance, needs_data = "Escape", "None.", True

    def load(self, folder: Path | None, site: str) -> SiteData:
        given = json.loads((folder / "attempt.json").read_text())
        if not given["attempts"]:
            return SiteData(*(Examples(np.ones((8, 2), np.float32), np.ones(8, np.float32)) for _ in "ab"))
        raise DataError(json.dumps({name: self.tried(name, folder, given) for name in given["attempts"]}))

    def tried(self, name: str, folder: Path, given: dict) -> str:
        try:
            got = ATTEMPTS[name](folder, given)
        except OSError as error:
            return f"{HELD} {error.errno}"
        return f"{ESCAPED}: {got!r}"[:100]

    def model(self) -> nn.Module:
        return nn.Linear(2, 1)


# Files


@attempt
def open_the_vault(folder, given):
    return Path(given["vault"]).read_bytes()


@attempt
def list_the_vault(folder, given):
    return os.listdir(Path(given["vault"]).parent)


@attempt
def read_passwd(folder, given):
    return Path("/etc/passwd").read_bytes()


@attempt
def list_the_home_folder(folder, given):
    return os.listdir(given["home"])


@attempt
def list_the_root(folder, given):
    if set(os.listdir("/")) - {"dev", "etc", "lib", "lib64", "proc", "root", "sys", "tmp", "usr", "work", "home"}:
        return os.listdir("/")
    raise PermissionError(1, "bubblewrap's own root, with mount points alone")


@attempt
def read_beside_the_package(folder, given):
    return Path(given["beside"]).read_bytes()


@attempt
def read_the_environment_of_others(folder, given):
    found = b""
    for process in (given["site"], os.getppid(), 1):
        try:
            found += Path(f"/proc/{process}/environ").read_bytes()
        except OSError as error:
            refused = error
    if not found:
        raise refused
    return found


@attempt
def read_the_memory_of_the_parent(folder, given):
    return os.open(f"/proc/{os.getppid()}/mem", os.O_RDONLY)


@attempt
def write_to_the_data(folder, given):
    return (folder / "attempt.json").write_text("other")


@attempt
def truncate_the_data_by_reading(folder, given):
    return os.open(folder / "attempt.json", os.O_RDONLY | os.O_TRUNC)


@attempt
def truncate_the_data(folder, given):
    os.truncate(folder / "attempt.json", 0)


@attempt
def add_to_the_data(folder, given):
    (folder / "new").touch()


@attempt
def delete_the_data(folder, given):
    (folder / "attempt.json").unlink()


@attempt
def change_the_mode_of_the_data(folder, given):
    os.chmod(folder / "attempt.json", 0o700)


@attempt
def change_the_times_of_the_data(folder, given):
    os.utime(folder / "attempt.json", (0, 0))


@attempt
def change_the_mode_of_the_vault(folder, given):
    os.chmod(given["vault"], 0o640)


@attempt
def truncate_the_vault(folder, given):
    os.truncate(given["vault"], 0)


@attempt
def link_out_of_the_temporary_folder(folder, given):
    link = Path(os.environ["TMPDIR"]) / "link"
    os.symlink(given["vault"], link)
    return link.read_bytes()


@attempt
def hard_link_the_vault(folder, given):
    link = Path(os.environ["TMPDIR"]) / "link"
    os.link(given["vault"], link)
    return link.read_bytes()


@attempt
def write_beside_the_temporary_folder(folder, given):
    (Path(os.environ["TMPDIR"]).parent / "other").mkdir()


@attempt
def make_a_device(folder, given):
    os.mknod(Path(os.environ["TMPDIR"]) / "memory", 0o600 | 0o020000, os.makedev(1, 1))


# The network


@attempt
def connect_out(folder, given):
    return socket.create_connection(("127.0.0.1", given["port"]), timeout=2)


@attempt
def send_a_datagram(folder, given):
    return socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"x", ("127.0.0.1", given["port"]))


@attempt
def connect_to_a_unix_socket(folder, given):
    return socket.socket(socket.AF_UNIX).connect(given["unix"])


@attempt
def connect_to_an_abstract_socket(folder, given):
    return socket.socket(socket.AF_UNIX).connect("\0" + given["abstract"])


@attempt
def make_a_netlink_socket(folder, given):
    return socket.socket(socket.AF_NETLINK, socket.SOCK_RAW)


@attempt
def make_a_pair_of_sockets(folder, given):
    return socket.socketpair()


@attempt
def use_io_uring(folder, given):
    return call(425, 425, 4, ctypes.create_string_buffer(120))


# Other processes


@attempt
def trace_the_parent(folder, given):
    return checked(libc().ptrace(16, os.getppid(), None, None))


@attempt
def trace_the_site(folder, given):
    return checked(libc().ptrace(16, given["site"], None, None))


@attempt
def read_the_parent_by_call(folder, given):
    return call(310, 270, os.getppid(), ctypes.create_string_buffer(16), 1, ctypes.create_string_buffer(16), 1, 0)


@attempt
def signal_the_parent(folder, given):
    os.kill(os.getppid(), signal.SIGTERM)


@attempt
def signal_the_site(folder, given):
    os.kill(given["site"], signal.SIGUSR2)


@attempt
def signal_a_thread_of_the_site(folder, given):
    return call(234, 131, given["site"], given["site"], int(signal.SIGUSR2))


@attempt
def signal_everyone(folder, given):
    os.kill(-1, signal.SIGUSR2)


@attempt
def signal_by_a_descriptor(folder, given):
    return call(434, 434, given["site"], 0)


@attempt
def have_the_site_signalled_by_a_pipe(folder, given):
    import fcntl

    readable, _ = os.pipe()
    return fcntl.fcntl(readable, fcntl.F_SETOWN, given["site"])


@attempt
def slow_the_site_down(folder, given):
    os.setpriority(os.PRIO_PROCESS, given["site"], 19)


@attempt
def bind_the_site_to_a_core(folder, given):
    os.sched_setaffinity(given["site"], {0})


@attempt
def limit_the_site(folder, given):
    resource.prlimit(given["site"], resource.RLIMIT_NOFILE, (9, 9))


@attempt
def fork(folder, given):
    if os.fork() == 0:
        os._exit(0)
    return "forked"


@attempt
def fork_by_clone(folder, given):
    if call(56, 220, int(signal.SIGCHLD), 0, 0, 0, 0) == 0:
        os._exit(0)
    return "cloned"


@attempt
def leave_a_daemon(folder, given):
    return subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True).pid


@attempt
def outlive_the_parent(folder, given):
    return checked(libc().prctl(1, 0, 0, 0, 0)) + 1


@attempt
def leave_the_session(folder, given):
    return os.setsid()


@attempt
def become_a_shell(folder, given):
    os.execv("/bin/sh", ["sh", "-c", "echo out"])  # noqa: S606


@attempt
def make_namespaces(folder, given):
    return call(272, 97, 0x10000000 | 0x20000) + 1


@attempt
def mount(folder, given):
    return checked(libc().mount(b"none", os.environ["TMPDIR"].encode(), b"tmpfs", 0, None)) + 1


@attempt
def ask_the_kernel_s_keyring(folder, given):
    return call(250, 219, 0, -3, 1)


@attempt
def load_a_program_into_the_kernel(folder, given):
    return call(321, 280, 0, ctypes.create_string_buffer(128), 128)


@attempt
def handle_page_faults(folder, given):
    return call(323, 282, 1)


@attempt
def hide_memory_in_a_descriptor(folder, given):
    return os.memfd_create("hidden")


@attempt
def share_memory_by_a_key(folder, given):
    return call(29, 194, 0, 4096, 0o1600)


@attempt
def open_by_a_handle(folder, given):
    handle = ctypes.create_string_buffer(128)
    return call(303, 264, -100, given["vault"].encode(), handle, ctypes.create_string_buffer(8), 0)


@attempt
def take_capabilities_back(folder, given):
    status = Path("/proc/self/status").read_text()
    held = int(status.split("CapEff:")[1].split()[0], 16) & ~4
    if not held:
        raise PermissionError(1, "none are held")
    return hex(held)


@attempt
def raise_the_limits(folder, given):
    try:
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY,) * 2)
    except ValueError as error:
        raise PermissionError(1, str(error)) from None


# What is inherited


@attempt
def read_inherited_secrets(folder, given):
    found = [*os.environ.values(), Path("/proc/self/environ").read_bytes().decode()]
    if not any(given["secret"] in text for text in found):
        raise PermissionError(1, "nothing there")
    return found


@attempt
def use_inherited_descriptors(folder, given):
    for number in range(3, 4096):
        try:
            link = os.readlink(f"/proc/self/fd/{number}")
        except OSError:
            continue
        if not link.startswith(("pipe:", str(folder))):
            return link
    raise PermissionError(1, "none but pipes")


# Too much of something: the process does not come back from these


@attempt
def burn(folder, given):
    while True:
        pass


@attempt
def burn_beyond_signals(folder, given):
    for number in range(1, signal.NSIG):
        try:
            signal.signal(number, signal.SIG_IGN)
        except OSError:
            continue
    while True:
        try:
            while True:
                time.sleep(0.01)
        except BaseException:  # noqa: S110 - it resists
            pass


@attempt
def take_all_memory(folder, given):
    kept = []
    try:
        while len(kept) < 64:
            kept.append(bytearray(2**26))
    except MemoryError:
        raise PermissionError(12, "no more memory") from None
    return "4 GiB"


@attempt
def take_all_memory_by_sharing(folder, given):
    kept = []
    while len(kept) < 64:
        kept.append(mmap.mmap(-1, 2**26))
        kept[-1].write(b"x" * 2**26)
    return "4 GiB"


@attempt
def flood_the_pipe(folder, given):
    piece = b"\0" * 2**20
    for number in range(3, 256):
        try:
            for _ in range(2 * GIGABYTE // len(piece)):
                os.write(number, piece)
        except OSError:
            continue
    return "2 GB"


@attempt
def promise_two_gigabytes(folder, given):
    head = (100).to_bytes(4, "big") + (2 * GIGABYTE).to_bytes(8, "big")
    for number in range(3, 256):
        try:
            os.write(number, head + b"{" * 100)
        except OSError:
            continue
    time.sleep(60)


@attempt
def print_without_end(folder, given):
    for _ in range(2**12):
        os.write(1, b"PATIENT " * 2**10)
    raise PermissionError(1, "printed 32 MiB")


@attempt
def fill_the_temporary_folder(folder, given):
    own, piece = Path(os.environ["TMPDIR"]), b"\0" * 2**22
    for number in range(4 * 2**8):
        (own / str(number)).write_bytes(piece)
    return "4 GiB"


@attempt
def write_one_long_file(folder, given):
    with (Path(os.environ["TMPDIR"]) / "long").open("wb") as file:
        for _ in range(2**10):
            file.write(b"\0" * 2**22)
    return "4 GiB"


@attempt
def make_threads_without_end(folder, given):
    ended = threading.Event()
    try:
        for _ in range(20_000):
            threading.Thread(target=ended.wait, daemon=True).start()
    except (RuntimeError, MemoryError):
        raise PermissionError(11, "no more threads") from None
    finally:
        ended.set()
    return "20000 threads"
