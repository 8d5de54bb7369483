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
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from flows.exchange import Exchange, ExchangeAway
from flows.messages import AskFinish, AskJoin, AskWork, Done, Joined, join_context
from flows.model import HEADER_BYTES, GlobalModel
from flows.plan import Plan, PlanError, make_plan, plan_digest
from flows.policy import Policy, check_policy, load_task
from flows.tables import count_values, rounding_key, segments_of, training_seed, training_values
from ml_tasks import tabular, training
from ml_tasks.task import DataError, SiteData, Task
from ml_tasks.training import LocalTraining
from protocols import plain
from protocols import site as protocol
from protocols.contexts import AttemptContext, check_context
from protocols.encoding import encode
from protocols.errors import BadInput, Pending, ProtocolError, Refused
from protocols.files import is_full, write_whole
from protocols.keys import Consortium
from protocols.messages import COORDINATOR, AskAdvertise, Body, Envelope, Refusal, envelope, open_body, parse
from protocols.vault import Decision, Vault

Answer = tuple[Envelope, ...]
Values = dict[str, NDArray[np.floating]]


@dataclass(frozen=True, slots=True, eq=False)
class Agreed:
    """A training that this site has joined: plan, task, its own examples, and the length of the model vector."""

    plan: Plan
    task: Task
    data: SiteData
    parameters: int


Work = Callable[[Agreed, AttemptContext, GlobalModel], Values]


class Site:
    """One site: its vault, its data, its policy.

    Args:
        vault: holds the identity.
        consortium: the pinned keys.
        exchange: where masked vectors go.
        data: the folder of each data set by name.
        policy: what may run here.
    """

    def __init__(
        self, vault: Vault, consortium: Consortium, exchange: Exchange, data: dict[str, Path], policy: Policy
    ) -> None:
        self.vault = vault
        self.identity = vault.identity
        self._consortium = consortium
        self._exchange = exchange
        self._data = data
        self._policy = policy
        self._log = logging.getLogger(f"fedseal.site.{self.identity.name}")
        self._trainings: dict[str, Agreed] = {}
        self._steps: dict[str, Callable[[Envelope], Answer]] = {
            "ask/join": self._join,
            "ask/moments": self._moments,
            "ask/train": self._train,
            "ask/evaluate": self._evaluate,
            "ask/advertise": self._advertise,
            "ask/share": lambda request: protocol.share(vault, consortium, request),
            "ask/mask": self._mask,
            "ask/confirm": lambda request: protocol.confirm(vault, consortium, request),
            "ask/reveal": lambda request: protocol.reveal(vault, consortium, request),
            "ask/submit": self._submit,
            "ask/finish": self._finish,
        }

    def answer(self, request: Envelope) -> Answer:
        """Answer a request, or refuse it in a signed message; never raises for what a request can cause."""
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
        except (
            Exception
        ) as error:  # whatever a task may raise: its text could hold a record, so it goes to the site's log alone
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
        plan = make_plan(parse(dict[str, object], ask.plan, party=COORDINATOR, step="join"), source="plan")
        if plan.to_json() != ask.plan:
            raise Refused(self.identity.name, "join", "the plan does not read as the coordinator's: versions differ")
        check_policy(self._policy, plan, self.identity.name)
        self._check_decision(ask.training, plan)
        agreed = self._load(plan)
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
        return Agreed(plan, task, data, parameters)

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
            return {"moments": tabular.moments(agreed.data.train.features, agreed.task.features)}

        return self._work(request, "moments", work)

    def _train(self, request: Envelope) -> Answer:
        def work(agreed: Agreed, context: AttemptContext, model: GlobalModel) -> Values:
            plan, examples = agreed.plan, agreed.data.train
            settings = LocalTraining(**plan.local.model_dump())
            seed = training_seed(plan, self.identity.name, context.round)
            update = training.train(agreed.task, examples, model.vector, model.standardisation, settings, seed)
            return training_values(plan, len(examples), update)

        return self._work(request, "train", work)

    def _evaluate(self, request: Envelope) -> Answer:
        def work(agreed: Agreed, context: AttemptContext, model: GlobalModel) -> Values:
            examples = agreed.data.test if context.purpose == "evaluation" else agreed.data.monitored[1]
            return count_values(training.evaluate(agreed.task, examples, model.vector, model.standardisation))

        return self._work(request, "evaluate", work)

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
            content = self._exchange.get(COORDINATOR, context.model, size=size)
            model = GlobalModel.from_bytes(content, parameters=agreed.parameters, features=features)
            values = work(agreed, context, model)
            for name, array in values.items():
                if not np.isfinite(array).all():
                    raise BadInput(self.identity.name, step, f"{name} holds NaN or infinity")
            archive = io.BytesIO()
            np.savez(archive, **values)  # type: ignore[arg-type]
            write_whole(path, archive.getbuffer())
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
        self._agreed_context(context, "advertise")
        answer = protocol.advertise(self.vault, self._consortium, request)
        self._clear_work(context.training, keep=context.digest)
        return answer

    def _mask(self, request: Envelope) -> Answer:
        context = self.vault.find(request.context)
        if context is None:
            raise Refused(self.identity.name, "mask", "this site has not advertised in this context")
        self._agreed(context.training)
        key = rounding_key(self._trainings[context.training].plan, self.identity.name, context.round)
        values = self._values(context.training, context.attempt_context)
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
        vector = encode(self.identity.name, self._values(context.training, context.digest), context.segments, key)
        self._hand_over(context.training, context.digest, vector.tobytes())
        return (plain.submit(self.identity, context, vector),)
