"""What a site runs: it answers the coordinator's signed requests, one function a step (SPEC 6).

The protocol's steps are ``protocols.site``'s. Local work (moments, training, evaluation) stays in the vault's folder
until ``mask`` reads it: training code is handed no exchange, only ``mask`` writes there. Whatever goes wrong leaves
as a signed refusal with safe text; the details stay in the site's own log.
"""

import hashlib
import io
import logging
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from flows.exchange import Exchange, ExchangeAway
from flows.messages import AskFinish, AskJoin, AskWork, Done, Joined, join_context
from flows.model import HEADER_BYTES, GlobalModel, shelf
from flows.plan import Plan, PlanError, make_plan, plan_digest
from flows.policy import Policy, check_policy, load_task
from flows.privacy import afford, alone, charge_of, charges_of, check_plan_kept, check_privacy, fingerprint, shares_of
from flows.tables import (
    clip_of,
    clipped_values,
    count_values,
    rotation_seed,
    rounding_key,
    segments_of,
    training_seed,
    training_values,
    turned,
)
from ml_tasks import tabular, training
from ml_tasks.private import clipped_sum, count_units, one_each, private_steps
from ml_tasks.task import DataError, SiteData, Task
from ml_tasks.training import LocalTraining
from protocols import plain
from protocols import site as protocol
from protocols.contexts import AttemptContext, check_context
from protocols.encoding import decode, encode
from protocols.errors import BadInput, Pending, ProtocolError, Refused
from protocols.files import is_full, write_whole
from protocols.keys import KEY_BYTES, Consortium, system_entropy
from protocols.ledger import Charge, LedgerEntry
from protocols.messages import COORDINATOR, AskAdvertise, Body, Envelope, Refusal, envelope, open_body, parse
from protocols.privacy.noise import add_noise
from protocols.privacy.sampling import poisson_sample
from protocols.rotation import rotate
from protocols.vault import Context, Decision, Vault

Answer = tuple[Envelope, ...]
Values = dict[str, NDArray[np.floating]]


@dataclass(frozen=True, slots=True, eq=False)
class Agreed:
    """A training that this site has joined: plan, task, its own examples, and the length of the model vector.

    ``content`` is the examples' fingerprint, which the ledger knows them by.
    """

    plan: Plan
    task: Task
    data: SiteData
    parameters: int
    content: str

    @property
    def private(self) -> bool:
        """Whether its sums are noised."""
        return self.plan.privacy.unit != "none"


Work = Callable[[Agreed, AttemptContext, GlobalModel], Values]


class Site:
    """One site: its vault, its data, its policy.

    Args:
        vault: holds the identity.
        consortium: the pinned keys.
        exchange: where masked vectors go.
        data: the folder of each data set by name.
        policy: what may run here.
        only: the one training that this process answers in; ``None`` for any.
    """

    def __init__(
        self,
        vault: Vault,
        consortium: Consortium,
        exchange: Exchange,
        data: dict[str, Path],
        policy: Policy,
        only: str | None = None,
    ) -> None:
        self.vault = vault
        self.identity = vault.identity
        self._consortium = consortium
        self._exchange = exchange
        self._data = data
        self._policy = policy
        self._only = only
        self._log = logging.getLogger(f"fedseal.site.{self.identity.name}")
        self._trainings: dict[str, Agreed] = {}
        self._steps: dict[str, Callable[[Envelope], Answer]] = {
            "ask/join": self._join,
            "ask/moments": self._moments,
            "ask/train": self._train,
            "ask/evaluate": self._evaluate,
            "ask/advertise": self._advertise,
            "ask/share": self._share,
            "ask/mask": self._mask,
            "ask/confirm": self._confirm,
            "ask/reveal": self._reveal,
            "ask/submit": self._submit,
            "ask/finish": self._finish,
        }

    def answer(self, request: Envelope) -> Answer:
        """Answer a request, or refuse it in a signed message; never raises for what a request or a task can cause."""
        step = request.kind.removeprefix("ask/")
        try:
            if request.kind not in self._steps:
                raise Refused(self.identity.name, step, "this site knows no such step")
            return self._steps[request.kind](request)
        except ProtocolError as error:
            return self._refuse(request, type(error).__name__, error.reason)
        except DataError as error:
            return self._refuse(request, BadInput.__name__, str(error))
        except PlanError as error:
            self._log.warning("%s", error)
            return self._refuse(request, BadInput.__name__, "plan or task cannot be used here; the site's log says why")
        except FloatingPointError:
            return self._refuse(request, BadInput.__name__, "training diverged: the update holds NaN or infinity")
        except ExchangeAway as error:
            return self._refuse(request, "Failed", error.reason)
        # A task may raise what is no Exception too. Prefect would keep its text, which could hold a record, and nobody
        # would answer: it goes to the site's log alone.
        except BaseException as error:
            if is_full(error):
                return self._refuse(request, "Failed", "the site's disk is full: when it has room, the site goes on")
            self._log.exception("%s failed", step)
            return self._refuse(request, "Failed", "the step failed; the site's log says why")

    def leave(self, training_name: str) -> None:
        """Erase what is here of a training that has ended, or that the site has withdrawn from.

        Raises:
            ExchangeAway: its objects may still be on the exchange.
        """
        protocol.finish(self.vault, training_name)
        self._clear_work(training_name)
        self._trainings.pop(training_name, None)

    def _refuse(self, request: Envelope, error: str, reason: str) -> Answer:
        step = request.kind.removeprefix("ask/")
        self._log.warning("refused %s: %s", step, reason)
        return (self._reply(request, "refusal", Refusal(step, error, reason)),)

    def _reply(self, request: Envelope, kind: str, body: object) -> Envelope:
        return envelope(self.identity, kind, request.context, COORDINATOR, body)

    def _open(self, cls: type[Body], request: Envelope, context: Callable[[Body], str]) -> Body:
        """Verify a request whose context follows from its own body."""
        body = open_body(
            cls,
            request,
            key=self._consortium.coordinator,
            kind=request.kind,
            context=request.context,
            sender=COORDINATOR,
            receiver=self.identity.name,
        )
        if context(body) != request.context:
            raise Refused(self.identity.name, request.kind, "the request is signed for another context")
        return body

    def _join(self, request: Envelope) -> Answer:
        ask = self._open(AskJoin, request, lambda ask: join_context(ask.training, plan_digest(ask.plan)))
        if self._only not in (None, ask.training):
            raise Refused(self.identity.name, "join", "this participation is in another training")
        plan = make_plan(parse(dict[str, object], ask.plan, party=COORDINATOR, step="join"), source="plan")
        if plan.to_json() != ask.plan:
            raise Refused(self.identity.name, "join", "the plan does not read as the coordinator's: versions differ")
        check_policy(self._policy, plan, self.identity.name)
        self._check_decision(ask.training, plan)
        agreed = self._load(plan)
        self._check_budget(ask.training, agreed)
        if not self.vault.agree(ask.training, plan.digest):
            raise Refused(self.identity.name, "join", "this site agreed to another plan for this training")
        self._trainings[ask.training] = agreed
        return (self._reply(request, "joined", Joined(plan.digest, agreed.data.monitored[0])),)

    def _check_decision(self, training_name: str, plan: Plan) -> None:
        """Refuse what the data steward has withdrawn from, or has still to approve of."""
        me, known = self.identity.name, self.vault.decision(training_name)
        if known is not None and known.decision == "revoked":
            raise Refused(me, "join", "this site has withdrawn from this training")
        approved = known is not None and (known.decision, known.plan) == ("approved", plan.digest)
        if self._policy.approval == "by-hand" and not approved:
            self.vault.decide(Decision(training_name, plan.digest, plan.to_json(), "pending"))
            raise Pending(me, "join", f"waits for its data steward: fedseal site approve {training_name}")

    def _load(self, plan: Plan) -> Agreed:
        task = load_task(plan.task)
        parameters = training.initial_vector(task, plan.seed).size
        if parameters > self._policy.max_parameters:
            raise Refused(self.identity.name, "join", f"the model's {parameters} parameters are too many here")
        folder = self._data.get(plan.data)
        if task.needs_data and folder is None:
            raise DataError(f"no folder is named for the data set {plan.data}: use --data, or [data] in site.toml")
        data = task.load(folder, self.identity.name)
        if max(len(data.train), len(data.test), len(data.monitored[1])) > plan.protection.max_examples:
            raise DataError("this site has more examples than protection.max_examples: raise it in the plan")
        return Agreed(plan, task, data, parameters, fingerprint(data))

    def _check_budget(self, training_name: str, agreed: Agreed) -> None:
        """Refuse a plan that does not keep to its own epsilon, or that the data set's budget has no room for."""
        plan, parameters, features = agreed.plan, agreed.parameters, len(agreed.task.features)
        check_privacy(plan, parameters=parameters, features=features)
        if (budget := self._policy.budget(plan.data)) is not None:
            own = self._contexts(training_name)  # a site that comes back is not charged twice
            others = [entry for entry in self.vault.ledger() if entry.context not in own]
            whole = charges_of(plan, parameters=parameters, features=features, content=agreed.content)
            afford(self.identity.name, others, whole, budget)

    def _contexts(self, training_name: str) -> set[str]:
        """The attempt contexts of a training, by which the ledger's lines are its own."""
        return {known.attempt_context for known in self.vault.of_training(training_name)}

    def _finish(self, request: Envelope) -> Answer:
        name = self._open(
            AskFinish, request, lambda ask: join_context(ask.training, self._agreed(ask.training))
        ).training
        self.leave(name)
        return (self._reply(request, "done", Done(0.0)),)

    def _agreed(self, name: str) -> str:
        plan = self.vault.agreed(name)
        if plan is None or name not in self._trainings:
            raise Refused(self.identity.name, "join", "this site has not joined this training")
        return plan

    def _moments(self, request: Envelope) -> Answer:
        def work(agreed: Agreed, context: AttemptContext, model: GlobalModel) -> Values:
            examples = one_each(agreed.data.train) if agreed.private else agreed.data.train
            return {"moments": tabular.moments(examples.features, agreed.task.features)}

        return self._work(request, "moments", work)

    def _train(self, request: Envelope) -> Answer:
        def work(agreed: Agreed, context: AttemptContext, model: GlobalModel) -> Values:
            plan, examples = agreed.plan, agreed.data.train
            if plan.privacy.unit == "record":
                return {"update": self._private_update(agreed, model)}
            settings = LocalTraining(**plan.local.model_dump())
            seed = self._batch_seed(agreed, context.round)
            update = training.train(agreed.task, examples, model.vector, model.standardisation, settings, seed)
            if plan.privacy.unit == "none":
                return training_values(plan, len(examples), update)
            return clipped_values(plan, self.identity.name, len(examples), update, clip_of(plan, model))

        return self._work(request, "train", work)

    def _evaluate(self, request: Envelope) -> Answer:
        def work(agreed: Agreed, context: AttemptContext, model: GlobalModel) -> Values:
            examples = agreed.data.test if context.purpose == "evaluation" else agreed.data.monitored[1]
            examples = one_each(examples) if agreed.plan.privacy.unit == "record" else examples
            return count_values(training.evaluate(agreed.task, examples, model.vector, model.standardisation))

        return self._work(request, "evaluate", work)

    def _batch_seed(self, agreed: Agreed, round_: int) -> int:
        """What batches are drawn with: with privacy, nothing that the coordinator knows."""
        if agreed.private:
            return int.from_bytes(system_entropy(8)) >> 1
        return training_seed(agreed.plan, self.identity.name, round_)

    def _private_update(self, agreed: Agreed, model: GlobalModel) -> NDArray[np.floating]:
        """With distributed noise the sum of a step's clipped gradients, in units of the clip: ``mask`` adds the noise.

        With local noise, the update of several steps that are private by themselves.
        """
        plan, rules, examples = agreed.plan, agreed.plan.privacy, agreed.data.train

        def choose(present: int) -> NDArray[np.bool_]:
            return poisson_sample(present, rules.sampling_rate, system_entropy(KEY_BYTES))

        given = (agreed.task, examples)
        if rules.noise == "distributed":
            chosen = choose(count_units(examples))
            return clipped_sum(*given, chosen, model.vector, model.standardisation, rules.clip)
        table, sigmas = alone(plan, agreed.parameters)

        def noise(total: NDArray[np.float64]) -> NDArray[np.float64]:
            key = system_entropy(KEY_BYTES)
            vector = encode(self.identity.name, {"update": total}, table, key, count_clamped=False)
            add_noise(vector, table, sigmas)
            return decode(vector, table)["update"]

        length = plan.local.learning_rate * rules.clip / rules.expected_batch
        return private_steps(
            *given, model.vector, model.standardisation, plan.local.steps, rules.clip, length, choose, noise
        )

    def _work(self, request: Envelope, step: str, work: Work) -> Answer:
        """Do local work once and keep its values for ``mask``; asked again, it is done already."""
        began = time.monotonic()
        context = self._open(AskWork, request, lambda ask: ask.context.digest).context
        agreed = self._agreed_context(context, step)
        newest = max(((old.round, old.attempt) for old in self.vault.of_training(context.training)), default=(0, 0))
        if (context.round, context.attempt) < newest:
            raise Refused(self.identity.name, step, "a newer attempt has begun")
        path = self._work_folder(context.training, context.digest) / f"{step}.npz"
        if not path.exists():
            features = len(agreed.task.features)
            size = 4 * (agreed.parameters + 2 * features) + HEADER_BYTES
            content = self._exchange.get(shelf(context.training), context.model, size=size)
            model = GlobalModel.from_bytes(
                content, parameters=agreed.parameters, features=features, adaptive=agreed.plan.privacy.adaptive
            )
            values = work(agreed, context, model)
            for name, array in values.items():
                if not np.isfinite(array).all():
                    raise BadInput(self.identity.name, step, f"{name} holds NaN or infinity")
            archive = io.BytesIO()
            np.savez(archive, **values)  # type: ignore[arg-type]
            try:
                write_whole(path, archive.getbuffer())
            except FileNotFoundError:  # its folder was cleared while the work was done
                raise Refused(self.identity.name, step, "a newer attempt has begun") from None
        return (self._reply(request, "done", Done(time.monotonic() - began)),)

    def _agreed_context(self, context: AttemptContext, step: str) -> Agreed:
        """Refuse a context that does not follow from the plan agreed to (SPEC 8, rule 4)."""
        me = self.identity.name
        check_context(context, me, self._consortium.sites)
        if self._agreed(context.training) != context.plan:
            raise Refused(me, step, "this is not the plan that the site agreed to")
        agreed = self._trainings[context.training]
        rules = agreed.plan.protection
        last = {"statistics": 0, "training": agreed.plan.rounds, "evaluation": agreed.plan.rounds + 1}
        first = last | {"training": 1}
        if not first[context.purpose] <= context.round <= last[context.purpose]:
            raise Refused(me, step, f"the plan has no {context.purpose} in round {context.round}")
        if (context.threshold, context.colluding) != (rules.threshold, rules.colluding):
            raise Refused(me, step, "threshold and colluding are not those of the plan")
        if set(context.sites) != set(agreed.plan.sites):
            raise Refused(me, step, "the invited sites are not those of the plan")
        table = segments_of(
            agreed.plan, context.purpose, parameters=agreed.parameters, features=len(agreed.task.features)
        )
        if context.segments != table:
            raise Refused(me, step, "the segment table is not the plan's")
        if context.noise != shares_of(agreed.plan, context.purpose, table):
            raise Refused(me, step, "the noise is not the plan's")
        return agreed

    def _work_folder(self, training_name: str, attempt_context: str) -> Path:
        folder = self.vault.folder / "work" / training_name / attempt_context
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        return folder

    def _clear_work(self, training_name: str, keep: str = "") -> None:
        """Delete the values and the exchange's vectors of every attempt of a training but ``keep``."""
        for folder in (self.vault.folder / "work" / training_name).glob("*"):
            if folder.name != keep:
                for vector in folder.glob("*.vector"):
                    self._exchange.delete(self.identity.name, vector.stem)
                shutil.rmtree(folder, ignore_errors=True)

    def _hand_over(self, training_name: str, attempt_context: str, vector: bytes) -> None:
        """Put a vector on the exchange, noting first that it must be deleted from there."""
        digest = hashlib.sha256(vector).hexdigest()
        (self._work_folder(training_name, attempt_context) / f"{digest}.vector").touch()
        self._exchange.put(self.identity.name, vector)

    def _values(self, name: str, attempt_context: str) -> Values:
        values: Values = {}
        for path in sorted(self._work_folder(name, attempt_context).glob("*.npz")):
            with np.load(path, allow_pickle=False) as arrays:
                values |= {segment: arrays[segment] for segment in arrays.files}
        return values

    def _advertise(self, request: Envelope) -> Answer:
        context = self._open(AskAdvertise, request, lambda ask: ask.context.digest).context
        agreed = self._agreed_context(context, "advertise")
        charge = charge_of(agreed.plan, context.purpose, context.segments, context.noise, agreed.content)

        def within(entries: Sequence[LedgerEntry], charge: Charge) -> None:
            contexts = self._contexts(context.training)
            own = [entry for entry in entries if entry.context in contexts]
            check_plan_kept(self.identity.name, agreed.plan, own, charge)
            if (budget := self._policy.budget(agreed.plan.data)) is not None:
                afford(self.identity.name, entries, [charge], budget)

        answer = protocol.advertise(self.vault, self._consortium, request, charge=charge, afford=within)
        self._clear_work(context.training, keep=context.digest)
        return answer

    def _advertised(self, request: Envelope, step: str) -> Context:
        """The context of a request, in a training that this process has joined."""
        context = self.vault.find(request.context)
        if context is None:
            raise Refused(self.identity.name, step, "this site has not advertised in this context")
        self._agreed(context.training)
        return context

    def _share(self, request: Envelope) -> Answer:
        self._advertised(request, "share")
        return protocol.share(self.vault, self._consortium, request)

    def _confirm(self, request: Envelope) -> Answer:
        self._advertised(request, "confirm")
        return protocol.confirm(self.vault, self._consortium, request)

    def _reveal(self, request: Envelope) -> Answer:
        self._advertised(request, "reveal")
        return protocol.reveal(self.vault, self._consortium, request)

    def _mask(self, request: Envelope) -> Answer:
        context = self._advertised(request, "mask")
        agreed = self._trainings[context.training]
        name = self.identity.name
        key = system_entropy(KEY_BYTES) if agreed.private else rounding_key(agreed.plan, name, context.round)
        seed = rotation_seed(agreed.plan, context.attempt_context)
        values = turned(self._values(context.training, context.attempt_context), seed, rotate)
        answer = protocol.mask(self.vault, self._consortium, request, values, key)
        masked = self.vault.masked_path(context.attempt_context).read_bytes()
        self._hand_over(context.training, context.attempt_context, masked)
        return answer

    def _submit(self, request: Envelope) -> Answer:
        """The plain protocol's only step: the encoded vector, unmasked, where plan and policy allow it."""
        context = self._open(AskWork, request, lambda ask: ask.context.digest).context
        plan = self._agreed_context(context, "submit").plan
        self._clear_work(context.training, keep=context.digest)
        if plan.protection.protocol != "plain" or "plain" not in self._policy.protocols:
            raise Refused(self.identity.name, "submit", "this training is not a plain one")
        key = rounding_key(plan, self.identity.name, context.round)
        values = turned(self._values(context.training, context.digest), rotation_seed(plan, context.digest), rotate)
        vector = encode(self.identity.name, values, context.segments, key)
        self._hand_over(context.training, context.digest, vector.tobytes())
        return (plain.submit(self.identity, context, vector),)
