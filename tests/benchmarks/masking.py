"""How fast a site encodes and masks, against AES-256-CTR alone: ``python -m tests.benchmarks.masking --json``.

Nine neighbours and the self mask make ten streams. ``ratio_to_aes`` is the time of the ten bare streams, with the best
of several chunk sizes, divided by that of ``apply_masks``: the median over pairs of runs in one process. The rest of
``apply_masks`` is the additions. ``peak_bytes_per_param`` is the traced memory of encoding and masking: with the
vector, without the site's own floats.
"""

import argparse
import json
import statistics
import time
import tracemalloc
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from protocols.contexts import sha256
from protocols.encoding import CLAMPED, Segment, encode, vector_bytes
from protocols.keys import Identity
from protocols.masks import Mask, apply_masks
from protocols.messages import COORDINATOR, MaskedVector, envelope

PARAMETERS = (10**5, 10**6, 10**7)
NEIGHBOURS = 9
BITS = (32, 16)
AES_CHUNKS = tuple(1 << power for power in (15, 16, 17, 18, 20))
REPEATS = {10**5: 15, 10**6: 9, 10**7: 5}


def measure(parameters: int, bits: int) -> dict[str, Any]:
    """Measure one size in one ring."""
    started = time.perf_counter()
    table = (Segment("update", parameters, bits, 2.0 ** (bits - 8), 1.0), Segment(CLAMPED, 1, 32, 1.0, 2.0**26))
    values = {"update": np.random.default_rng(1).uniform(-1, 1, parameters).astype(np.float32)}
    masks = [Mask(bytes([number]) * 32, 1 if number % 2 else -1) for number in range(NEIGHBOURS + 1)]
    rounding_key = bytes(range(32))

    tracemalloc.start()
    vector = encode("site", values, table, rounding_key)
    apply_masks(vector, table, masks)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # The digest costs the same whatever it says: the message's size is what counts here.
    body = MaskedVector(sha256("vector"), vector.nbytes)
    message = envelope(Identity("site", bytes(32)), "masked", sha256("round"), COORDINATOR, body).to_json()

    size, repeats = vector_bytes(table), REPEATS[parameters]
    chunk = min(AES_CHUNKS, key=lambda chunk: min(seconds(lambda: bare_streams(size, masks, chunk)) for _ in range(3)))
    pairs = [
        (seconds(lambda: bare_streams(size, masks, chunk)), seconds(lambda: apply_masks(vector, table, masks)))
        for _ in range(repeats)
    ]
    masking = statistics.median(mask for _, mask in pairs)
    encoding = statistics.median(seconds(lambda: encode("site", values, table, rounding_key)) for _ in range(repeats))
    return {
        "parameters": parameters,
        "bits": bits,
        "streams": len(masks),
        "seconds": masking,
        "params_per_second": parameters / masking,
        "ratio_to_aes": statistics.median(bare / mask for bare, mask in pairs),
        "aes_chunk_bytes": chunk,
        "encode_params_per_second": parameters / encoding,
        "bytes_per_param": (len(vector) + len(message)) / parameters,
        "peak_bytes_per_param": peak / parameters,
        "measured_in_seconds": time.perf_counter() - started,
    }


def bare_streams(size: int, masks: Sequence[Mask], chunk: int) -> None:
    """Make the keystreams of the masks, chunk by chunk in turn, and add nothing."""
    zeros, stretch = memoryview(bytes(chunk)), bytearray(chunk + 15)
    streams = [Cipher(algorithms.AES256(mask.seed), modes.CTR(bytes(16))).encryptor() for mask in masks]
    for offset in range(0, size, chunk):
        for stream in streams:
            stream.update_into(zeros[: size - offset], stretch)


def seconds(run: Callable[[], object]) -> float:
    """The time that a call takes."""
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def main() -> None:
    """Print one JSON object, or a table."""
    parser = argparse.ArgumentParser(description="Measure encoding and masking.")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--parameters", type=int, nargs="+", choices=PARAMETERS, default=PARAMETERS)
    arguments = parser.parse_args()
    results = [measure(parameters, bits) for bits in BITS for parameters in arguments.parameters]
    if arguments.json:
        print(json.dumps({"neighbours": NEIGHBOURS, "results": results}))
        return
    print("    params  bits   Mparams/s  ratio to AES  encode Mparams/s  bytes/param  peak bytes/param")
    for one in results:
        print(
            f"{one['parameters']:>10}  {one['bits']:>4}  {one['params_per_second'] / 1e6:>10.1f}"
            f"  {one['ratio_to_aes']:>12.2f}  {one['encode_params_per_second'] / 1e6:>16.1f}"
            f"  {one['bytes_per_param']:>11.4f}  {one['peak_bytes_per_param']:>16.2f}"
        )


if __name__ == "__main__":
    main()
