"""What can go wrong in the protocol, and who is to blame (SPEC 9).

    ProtocolError              party, step, reason: one line, never secret bytes
    ├── BadMessage             it does not parse, is not signed by the named party, or belongs elsewhere
    ├── Refused                this site says no: a rule of SPEC 8 would be broken
    │   └── Pending            not yet: this site's data steward has still to say yes
    ├── BadInput               NaN, infinity or a wrong shape in what a site contributes
    ├── RingTooSmall           the sum could overflow its ring; raised before anything runs
    ├── BelowThreshold         too few sites are left to make a sum
    ├── TooManyFailed          more sites' local work failed than the plan allows; nobody learns whose
    ├── TooMuchClamped         more of a tensor was clamped to its range than the plan allows
    └── BadDealer              a site's shares do not give the secret that it committed to

A programmer's mistake is a ValueError. Every field goes to ``super().__init__``, so that the errors pickle.
"""


class ProtocolError(Exception):
    """A step of the protocol failed; the text is safe to show to every party."""

    def __init__(self, party: str, step: str, reason: str) -> None:
        super().__init__(party, step, reason)
        self.party = party
        self.step = step
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.party}: {self.step}: {self.reason}"


class BadMessage(ProtocolError):
    """A message that does not parse, whose signature fails, or that belongs to another context."""


class Refused(ProtocolError):
    """A site declines a request that would break one of its rules (SPEC 8)."""


class Pending(Refused):
    """A site whose data steward has still to approve of the training; it may be asked again."""


class BadInput(ProtocolError):
    """A contribution that holds NaN or infinity or has the wrong shape; names the site."""


class RingTooSmall(ProtocolError):
    """A segment whose sum could leave its ring (SPEC 3.2)."""


class BelowThreshold(ProtocolError):
    """Fewer sites than the threshold are left."""


class TooManyFailed(ProtocolError):
    """More sites contributed nothing to a sum, since their local work failed, than the plan allows (SPEC 6.3)."""


class TooMuchClamped(ProtocolError):
    """A sum has clamped more of a tensor's entries than the plan allows: its mean is of bounds (SPEC 6.3)."""


class BadDealer(ProtocolError):
    """Shares that match their commitments but do not give the committed secret: the dealer lied."""
