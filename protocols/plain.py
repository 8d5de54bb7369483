"""The plain sum: encoded vectors without masks, for debugging only (SPEC 4.7). It protects nothing.

It encodes and adds as ``secagg`` does, so that the two give the same sum bit for bit.
"""

import hashlib

import numpy as np
from numpy.typing import NDArray

from protocols.contexts import AttemptContext
from protocols.encoding import vector_bytes
from protocols.errors import BadMessage
from protocols.keys import Identity
from protocols.messages import COORDINATOR, Envelope, MaskedVector, envelope, open_body


def submit(identity: Identity, context: AttemptContext, vector: NDArray[np.uint8], answers: str = "") -> Envelope:
    """Sign the digest of an unmasked vector, as what ``answers`` a request. Kind ``plain``."""
    body = MaskedVector(hashlib.sha256(vector.data).hexdigest(), vector.nbytes)
    return envelope(identity, "plain", context.digest, COORDINATOR, body, answers)


def check_submitted(context: AttemptContext, site: str, message: Envelope) -> MaskedVector:
    """Check a site's word on its unmasked vector.

    Raises:
        BadMessage: if it is forged or has the wrong size; names the site.
    """
    body = open_body(
        MaskedVector,
        message,
        key=context.sites[site],
        kind="plain",
        context=context.digest,
        sender=site,
        receiver=COORDINATOR,
    )
    if body.size != vector_bytes(context.segments):
        raise BadMessage(site, "submit", "the vector has the wrong size")
    return body
