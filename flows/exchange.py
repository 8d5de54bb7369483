"""The exchange: where vectors too large for a message lie, by the digest of their content (SPEC 5.4).

Objects are named ``<owner>/<sha256>`` behind fsspec: a folder on one machine, a bucket for real. Nobody trusts it: size
and digest are checked on every read.
"""

import hashlib
from typing import Any

import fsspec

from protocols.errors import BadMessage


class Exchange:
    """A store of objects at an fsspec URL, such as ``file:///path`` or ``s3://bucket/prefix``."""

    def __init__(self, url: str, **options: Any) -> None:
        self._files, self._root = fsspec.url_to_fs(url, **options)

    def put(self, owner: str, content: bytes | memoryview) -> str:
        """Store ``content`` for ``owner``; returns its SHA-256. Storing the same again changes nothing."""
        digest = hashlib.sha256(content).hexdigest()
        path = self._path(owner, digest)
        self._files.makedirs(path.rpartition("/")[0], exist_ok=True)
        unfinished = f"{path}.unfinished"
        with self._files.open(unfinished, "wb") as file:
            file.write(content)
        self._files.mv(unfinished, path)
        return digest

    def get(self, owner: str, digest: str, *, size: int) -> bytes:
        """Read an object of at most ``size`` bytes.

        Raises:
            BadMessage: naming ``owner``: the object is missing, too large, or not what its name says.
        """
        try:
            with self._files.open(self._path(owner, digest), "rb") as file:
                content: bytes = file.read(size + 1)
        except OSError:
            raise BadMessage(owner, "exchange", "the object is missing from the exchange") from None
        if len(content) > size:
            raise BadMessage(owner, "exchange", "the object is larger than it may be")
        if hashlib.sha256(content).hexdigest() != digest:
            raise BadMessage(owner, "exchange", "the object is not what its digest says")
        return content

    def delete(self, owner: str, digest: str) -> None:
        """Delete an object, if it is there."""
        path = self._path(owner, digest)
        if self._files.exists(path):
            self._files.rm(path)

    def _path(self, owner: str, digest: str) -> str:
        return f"{self._root}/{owner}/{digest}"
