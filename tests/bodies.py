"""The security layer's messages: the body of each kind (SPEC 5.3)."""

from typing import Any

from protocols.messages import (
    Advert,
    AskAdvertise,
    AskConfirm,
    AskMask,
    AskReveal,
    AskShare,
    Confirmation,
    MaskedVector,
    Refusal,
    Reveal,
    SealedShare,
)

BODIES: dict[str, type[Any]] = {
    "ask/advertise": AskAdvertise,
    "ask/share": AskShare,
    "ask/mask": AskMask,
    "ask/confirm": AskConfirm,
    "ask/reveal": AskReveal,
    "advert": Advert,
    "share": SealedShare,
    "masked": MaskedVector,
    "confirmation": Confirmation,
    "reveal": Reveal,
    "refusal": Refusal,
}
