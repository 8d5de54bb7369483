"""Network namespaces for tests: each site with an interface of its own, and one way out of it, to a relay."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path


class Forbidden(Exception):
    """The kernel does not let us do this; what it says."""


@dataclass(frozen=True, slots=True)
class Namespace:
    """A namespace with one pair of virtual interfaces: ``host`` is the end outside, ``guest`` the end inside.

    Attributes:
        ip: the program.
        name: of the namespace.
        place: its number, from which names and addresses follow.
    """

    ip: Path
    name: str
    place: int

    @property
    def host(self) -> str:
        """The interface outside."""
        return f"fedseal{self.place}"

    @property
    def address(self) -> str:
        """The address outside, the only one that can be reached from inside."""
        return f"10.213.{self.place}.1"

    @property
    def words(self) -> list[str]:
        """What a command begins with that is to run inside."""
        return [str(self.ip), "netns", "exec", self.name]

    def run(self, *words: str) -> str:
        """Run a command inside; gives what it prints."""
        return _run(*self.words, *words)

    def cut(self) -> None:
        """Take the line down."""
        _run(str(self.ip), "link", "set", self.host, "down")

    def restore(self) -> None:
        """Bring the line up again."""
        _run(str(self.ip), "link", "set", self.host, "up")


@contextmanager
def namespaces(ip: Path, names: tuple[str, ...]) -> Iterator[dict[str, Namespace]]:
    """Make a namespace for each name; none of them, and none of their interfaces, is left.

    Raises:
        Forbidden: the kernel does not allow it.
    """
    made = {name: Namespace(ip, f"fedseal-{name}", place) for place, name in enumerate(names)}
    try:
        for one in made.values():
            _run(str(ip), "netns", "add", one.name)
            _run(str(ip), "link", "add", one.host, "type", "veth", "peer", "name", "guest", "netns", one.name)
            _run(str(ip), "address", "add", f"{one.address}/30", "dev", one.host)
            one.run(str(ip), "address", "add", f"10.213.{one.place}.2/30", "dev", "guest")
            one.run(str(ip), "link", "set", "lo", "up")
            one.run(str(ip), "link", "set", "guest", "up")
            one.restore()
        yield made
    finally:
        for one in made.values():
            for words in (["link", "delete", one.host], ["netns", "delete", one.name]):
                subprocess.run([ip, *words], capture_output=True, check=False)


def _run(*words: str) -> str:
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise Forbidden(f"{' '.join(words[1:])}: {' '.join(done.stderr.split())}")
    return done.stdout
