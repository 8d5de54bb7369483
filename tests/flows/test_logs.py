"""A party's log: for its owner alone, and one line for each message, whoever has written into it."""

import logging
from pathlib import Path

from flows.logs import keep_log


def test_what_others_write_into_a_message_makes_no_second_line_and_commands_no_terminal(tmp_path: Path) -> None:
    path = tmp_path / "site.log"
    keep_log("fedseal.tests", path)
    log = logging.getLogger("fedseal.tests")
    log.warning("plan: %s: unknown", "x\n2026-01-01 00:00:00 WARNING refused nothing\x1b[2J\u2028")
    log.warning("Zürich")
    first, second, end = path.read_text().split("\n")
    assert first.endswith(r"plan: x\n2026-01-01 00:00:00 WARNING refused nothing\x1b[2J\u2028: unknown")
    assert second.endswith("Zürich") and end == ""
    assert path.stat().st_mode & 0o077 == 0
