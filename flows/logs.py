"""A party's own log: one line for each thing that it was asked or that went wrong, for the party alone."""

import logging
from pathlib import Path


class OneLine(logging.Formatter):
    """A message is one line, whatever others have put into it: a name may hold a line feed, or command a terminal."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - the name is logging's
        """Write what cannot be printed as its escape; a traceback keeps its lines."""
        return "".join(
            letter if letter.isprintable() else ascii(letter)[1:-1] for letter in super().formatMessage(record)
        )


def keep_log(name: str, path: Path) -> None:
    """Keep a party's log in a file of its own: what a site says of its data is for the site alone."""
    log = logging.getLogger(name)
    for handler in log.handlers[:]:
        log.removeHandler(handler)
        handler.close()
    path.touch(mode=0o600)
    handler = logging.FileHandler(path)
    handler.setFormatter(OneLine("%(asctime)s %(levelname)s %(message)s"))
    log.addHandler(handler)
    log.propagate = False
