"""What fuzzing has kept: for each target a file of JSON lines, each a string that stands for the bytes of one input.

Bytes that are no UTF-8 are lone surrogates there (PEP 383), so that most inputs can be read in a diff.
``<target>.jsonl`` is the fuzzer's, which writes it anew; ``mended/<target>.jsonl`` holds the inputs that once broke
the property, which stay. To add one whose defect is mended: ``python -m tests.fuzz.run --mended TARGET FILE``.
"""

import json
from collections.abc import Iterable
from pathlib import Path

CORPUS = Path(__file__).parent / "corpus"
MENDED = CORPUS / "mended"


def read_inputs(target: str, folder: Path = CORPUS) -> list[bytes]:
    """Return the inputs of a target, none where it has no file."""
    path = folder / f"{target}.jsonl"
    if not path.exists():
        return []
    lines = path.read_text(encoding="ascii").splitlines()
    return [json.loads(line).encode(errors="surrogateescape") for line in lines]


def write_inputs(target: str, inputs: Iterable[bytes], folder: Path = CORPUS) -> None:
    """Write a target's file, the shortest input first, so that two versions of it differ in what is new."""
    ordered = sorted(set(inputs), key=lambda content: (len(content), content))
    lines = [json.dumps(content.decode(errors="surrogateescape")) + "\n" for content in ordered]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{target}.jsonl").write_text("".join(lines), encoding="ascii")
