"""``fedseal verify``: check a training's receipt offline, with the consortium file alone (SPEC 11.4).

It needs neither Prefect nor PyTorch nor a network: an auditor who has never run a training can check one.
"""

import hashlib
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.numpy import load

from flows.model import GlobalModel
from flows.plan import Plan, PlanError, make_plan
from flows.tables import tables_of
from ml_tasks.layout import Sizes
from ml_tasks.metrics import LOSS_CAP
from ml_tasks.tabular import MOMENTS, Standardisation
from protocols.audit import Terms, check_receipt
from protocols.consortium import fingerprint, read_consortium
from protocols.errors import BadMessage
from protocols.messages import COORDINATOR, parse
from protocols.receipt import NotJson, Receipt, ReceiptError, parse_receipt

LONGEST_VECTOR = 2**40
"""Elements of a segment at most (SPEC 3.1)."""
EPSILON_TOLERANCE = 1e-9
"""How far, in parts of it, an epsilon may be from the recomputed one: another machine rounds otherwise."""
MEAN, SCALE, CLIP = "standardisation.mean", "standardisation.scale", "privacy.clip"

PROVES = {
    "secagg": "This proves: each site that confirmed has signed, with the key that the consortium has pinned, that it "
    "took part in that sum: in this round of this training, under this plan, from this incoming model, over exactly "
    "these survivors. The rounds follow each other as the plan says.",
    "plain": "This proves: each site that is named has signed, with the key that the consortium has pinned, the digest "
    "of the vector that it submitted to that sum, under this plan, from this incoming model. The plain protocol has "
    "protected nothing.",
}
PROVES_NOT = (
    "This does not prove: that the coordinator added right, or made the models of the sums; what data the sites have; "
    "that a survivor took part that has not confirmed."
)


class Unreadable(Exception):
    """An input that cannot be read; one line: the file and what is wrong with it."""


def verify(receipt_path: Path, consortium_path: Path, model_path: Path | None) -> list[str]:
    """Check a receipt, and the model where one is named; gives the lines that tell what was found.

    Raises:
        Unreadable, ConsortiumError: a file that cannot be read.
        ReceiptError: naming the field that is wrong.
    """
    consortium = read_consortium(consortium_path)
    try:
        receipt = parse_receipt(_read(receipt_path))
    except NotJson as error:
        raise Unreadable(f"{receipt_path}: {error}: give the receipt.json that a training left") from None
    plan = plan_of(receipt)
    check_receipt(receipt, consortium, terms_of(plan, receipt))
    check_privacy(receipt, plan)
    loose = check_model(model_path, receipt) if model_path else []
    proof = ["", PROVES[plan.protection.protocol], PROVES_NOT]
    return [*describe(receipt, plan), *describe_model(model_path, loose), *proof]


def plan_of(receipt: Receipt) -> Plan:
    """Read the receipt's plan.

    Raises:
        ReceiptError: it is no plan, or not written as this version writes it, so that its digest is another.
    """
    try:
        raw = parse(dict[str, Any], receipt.plan, party=COORDINATOR, step="receipt")
        plan = make_plan(raw, source="plan")
    except (BadMessage, PlanError):
        raise ReceiptError("plan", "is not a plan that this version of fedseal can read") from None
    if plan.to_json() != receipt.plan:
        raise ReceiptError("plan", "is not canonical JSON with its defaults resolved")
    return plan


def terms_of(plan: Plan, receipt: Receipt) -> Terms:
    """What the plan demands; the vector's length and the number of features are the receipt's own, checked later.

    Raises:
        ReceiptError: if the tensors make no vector, or the plan's numbers no table.
    """
    rules, parameters = plan.protection, sum(tensor.size for tensor in receipt.tensors)
    if not 1 <= parameters <= LONGEST_VECTOR:
        raise ReceiptError("tensors", "make no vector")
    try:
        tables = tables_of(plan, sizes_of(plan, receipt))
    except (ValidationError, OverflowError):
        raise ReceiptError("plan", "has numbers that no sum can hold") from None
    return Terms(
        plan=plan.digest,
        sites=frozenset(plan.sites),
        threshold=rules.threshold,
        colluding=rules.colluding,
        protocol=rules.protocol,
        rounds=plan.rounds,
        patience=plan.stopping.patience,
        keep=plan.stopping.keep,
        tables=tables,
        private=plan.privacy.unit != "none",
    )


def check_privacy(receipt: Receipt, plan: Plan) -> None:
    """Recompute every entry's noise and the epsilon so far, from plan and attempts.

    Raises:
        ReceiptError: naming the first that is another.
    """
    try:
        wanted = _reckoned(receipt, plan)
    except ValueError:
        raise ReceiptError("plan", "has numbers that no epsilon can be reckoned from") from None
    for place, (entry, (noise, epsilon)) in enumerate(zip(receipt.rounds, wanted, strict=True)):
        if entry.context.noise != noise:
            raise ReceiptError(f"rounds[{place}].context.noise", "is not the plan's")
        if (entry.epsilon is None) != (epsilon is None) or not math.isclose(
            entry.epsilon or 0.0, epsilon or 0.0, rel_tol=EPSILON_TOLERANCE
        ):
            raise ReceiptError(f"rounds[{place}].epsilon", "is not what plan and attempts come to")


def _reckoned(receipt: Receipt, plan: Plan) -> list[tuple[Mapping[str, float], float | None]]:
    """What noise and epsilon each entry must have."""
    if plan.privacy.unit == "none":
        return [({}, None)] * len(receipt.rounds)
    from flows.privacy import epsilon_so_far, shares_of  # the accountant takes a second to load

    sizes = {"parameters": sum(tensor.size for tensor in receipt.tensors), "features": features_of(receipt)}
    contexts = [entry.context for entry in receipt.rounds]
    made = [(context.purpose, context.attempt) for context in contexts]
    return [
        (shares_of(plan, context.purpose, context.segments), epsilon_so_far(plan, made[:count], **sizes))
        for count, context in enumerate(contexts, 1)
    ]


def sizes_of(plan: Plan, receipt: Receipt) -> Sizes:
    """The lengths that the task's sums have: the receipt's own, which every site has compared with its task's.

    A table with other numbers than the plan and these give is found all the same.
    """
    summed = {one.name: one for entry in receipt.rounds for one in entry.context.segments}
    statistics = summed["buffers"].length if "buffers" in summed else 0
    loss = None if plan.privacy.unit != "none" else summed.get("count.loss")
    return Sizes(
        weights=sum(tensor.size for tensor in receipt.tensors) - statistics,
        statistics=statistics,
        tensors=len(receipt.tensors),
        features=features_of(receipt),
        loss_cap=LOSS_CAP if loss is None else _factor(loss.max_abs, plan.protection.max_examples),
    )


def _factor(product: float, number: int) -> float:
    """The binary64 number whose product with ``number`` is this one; a quotient may be one bit off."""
    quotient = product / number
    near = (quotient, math.nextafter(quotient, 0.0), math.nextafter(quotient, math.inf))
    return next((one for one in near if one * number == product), quotient)


def features_of(receipt: Receipt) -> int:
    """The number of features whose moments were summed; 0 without statistics."""
    summed = [
        segment.length
        for entry in receipt.rounds
        for segment in entry.context.segments
        if (entry.context.purpose, segment.name) == ("statistics", "moments")
    ]
    return summed[0] // MOMENTS if summed else 0


def check_model(path: Path, receipt: Receipt) -> list[str]:
    """Rebuild the global model from named tensors and compare its digest with the last entry's (SPEC 11.3).

    Returns:
        The names of integer tensors that the receipt says nothing of.

    Raises:
        Unreadable: if it is not a safetensors file.
        ReceiptError: naming the field that the model differs from.
    """
    try:
        tensors = load(_read(path))
    except (SafetensorError, KeyError, TypeError, ValueError):  # types that numpy does not have are a KeyError
        raise Unreadable(f"{path}: is not a safetensors file: give the model.safetensors of the training") from None
    plan = plan_of(receipt)
    scaling = _standardisation(tensors, features_of(receipt), plan.privacy.statistics == "bounds")
    parts = [_part(tensors, place, receipt) for place in range(len(receipt.tensors))]
    clip = _clip(tensors) if plan.privacy.adaptive else None
    known = {*(tensor.name for tensor in receipt.tensors), MEAN, SCALE, *({CLIP} if plan.privacy.adaptive else ())}
    loose = sorted(set(tensors) - known)
    if any(tensors[name].dtype.kind == "f" for name in loose):
        raise ReceiptError("tensors", "do not name every tensor of the model")
    content = GlobalModel(np.concatenate(parts), scaling, clip).to_bytes()
    last = len(receipt.rounds) - 1
    if hashlib.sha256(content).hexdigest() != receipt.rounds[last].model:
        raise ReceiptError(f"rounds[{last}].model", "is not the digest of this model")
    return loose


def describe(receipt: Receipt, plan: Plan) -> list[str]:
    """Who took part in what, under which plan."""
    rules = plan.protection
    lines = [
        f"Verified: the receipt of {receipt.training}, signed by the coordinator {fingerprint(receipt.coordinator)}.",
        f"Plan {plan.digest}: task {plan.task}, data set {plan.data}, {plan.rounds} rounds, {rules.protocol}, "
        f"threshold {rules.threshold} of {len(plan.sites)} sites, {rules.colluding} may collude.",
        f"Code of the task as agreed to: {plan.code} (compare: fedseal code {plan.task})."
        if plan.code
        else "The plan does not name the digest of its task's code: what ran is not known.",
    ]
    if (epsilon := receipt.rounds[-1].epsilon) is not None:
        lines.append(
            f"Differential privacy: epsilon {plan.privacy.epsilon:g} at delta {plan.privacy.delta:g} for adding or "
            f"removing one {plan.privacy.unit}: the plan's, which every site enforces. By the coordinator's word on "
            f"attempts the training has cost {epsilon:.4g} of it."
        )
    for entry in receipt.rounds:
        context, confirmed = entry.context, ", ".join(message.sender for message in entry.confirmations)
        dropped = sorted(set(context.sites) - set(entry.survivors))
        line = f"{context.purpose}[{context.round}.{context.attempt}]: summed {', '.join(entry.survivors)}"
        lines.append(f"{line}; confirmed by {confirmed}" + (f"; dropped {', '.join(dropped)}" if dropped else ""))
    return lines


def describe_model(path: Path | None, loose: list[str]) -> list[str]:
    """What was found of the model."""
    if path is None:
        return ["No model was checked: name its file with --model."]
    left = f"; its integer tensors are not in the receipt: {', '.join(map(repr, loose))}" if loose else ""
    return [f"The model {path} is the one that the final evaluation was made on{left}."]


def _standardisation(tensors: Mapping[str, NDArray[Any]], features: int, bounds: bool) -> Standardisation | None:
    """The features' means and scales, which a model has if statistics were summed, or if they are of the bounds."""
    if bounds and not features and MEAN in tensors:
        features = tensors[MEAN].size
    if {MEAN, SCALE} & set(tensors) != ({MEAN, SCALE} if features else set()):
        raise ReceiptError("rounds", "hold statistics where the model has no standardisation, or the other way round")
    if not features:
        return None
    mean, scale = tensors[MEAN], tensors[SCALE]
    if any(array.shape != (features,) or array.dtype != np.float32 for array in (mean, scale)):
        raise ReceiptError("rounds[0].context.segments", "are of another number of features than the model's")
    return Standardisation(mean, scale)


def _clip(tensors: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
    """The sites' last clip, where it adapts."""
    if CLIP not in tensors or tensors[CLIP].shape != (1,) or tensors[CLIP].dtype != np.float32:
        raise ReceiptError("plan", "has an adaptive clip, and the model has none")
    return tensors[CLIP]


def _part(tensors: Mapping[str, NDArray[Any]], place: int, receipt: Receipt) -> NDArray[np.float32]:
    """One tensor of the vector, flattened."""
    wanted = receipt.tensors[place]
    if wanted.name not in tensors:
        raise ReceiptError(f"tensors[{place}].name", "is not in the model")
    found = tensors[wanted.name]
    if found.shape != wanted.shape or found.dtype.kind != "f":
        raise ReceiptError(f"tensors[{place}].shape", "is not the model's, or its numbers are no reals")
    return found.reshape(-1).astype(np.float32)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise Unreadable(f"{path}: cannot be read ({error.strerror}): give the path of a file") from None
