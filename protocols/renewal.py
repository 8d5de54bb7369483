"""A new key for a site: a new vault, with all of the old one's past that others' safety rests on (SPEC 7.4).

Peers know a ledger by its site's key, so that a new key begins a new one. What it must not forget goes along: what the
data were charged, with whom they were summed, what was confirmed. The trainings that the old key was in are left for
good: nothing of them can be gone on with. Where the old vault is lost, its past is unknown, as after a restore, until
the data steward says that they know it.
"""

from protocols.keys import Identity
from protocols.ledger import EMPTY_LEDGER, LedgerEntry, check_chain
from protocols.site import finish
from protocols.vault import Vault


def renew(old: Vault, new: Vault, identity: Identity) -> None:
    """Give a new vault an identity and the past of an old one, whose secrets are erased.

    Args:
        old: the vault that is replaced; no process uses it.
        new: an empty one.
        identity: a new key under the old name.

    Raises:
        Refused: a line of the old ledger was changed.
        ValueError: the identity has another name.
    """
    if identity.name != old.identity.name:
        raise ValueError("a renewed identity keeps its name")
    check_chain(identity.name, old.ledger_lines())
    for training in old.trainings():
        finish(old, training)
    new.keep_identity(identity)
    new.take_over(old)


def begin_anew(new: Vault, identity: Identity) -> None:
    """Give a new vault an identity, and note that what was before is not known: the old vault is lost."""
    new.keep_identity(identity)
    with new.exclusive():
        new.enter(LedgerEntry("restored", EMPTY_LEDGER))
