"""What a site runs: it answers the coordinator's signed requests, one function a step (SPEC 6).

The protocol's steps are ``protocols.site``'s; ``flows.joining`` decides what the site agrees to. Local work is done in
a workshop and its result stays in the vault's folder until ``mask`` reads it: training code is handed no exchange.

What leaves before a masked vector is a function of public things and of the data steward's decisions alone (SPEC 1):
local work always ends in the same ``done``, and what failed in it makes the site contribute nothing to the sum, where
it is counted. Whatever else goes wrong leaves as a signed refusal with safe text; the details stay in the site's log.
"""

import hashlib
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
from safetensors.numpy import load, save

from flows.authors import check_template, read_template
from flows.data_sets import Chosen, DataSet, choose
from flows.exchange import Exchange, ExchangeAway
from flows.joining import Agreed, contexts_of, join, read_plan_of
from flows.leftovers import VECTOR, clear_work, erase, work_folder
from flows.messages import AskFinish, AskJoin, AskWork, Done, Joined, join_context
from flows.model import HEADER_BYTES, GlobalModel, check_model, shelf
from flows.plan import Plan, PlanError, plan_digest
from flows.policy import Policy, check_policy
from flows.privacy import afford, charge_of, check_plan_kept, shares_of
from flows.roster_memory import check_roster, roster_of, waiting
from flows.settings import SettingsError
from flows.site_log import SiteLog
from flows.tables import (
    FAILED,
    rotation_seed,
    rounding_key,
    segments_of,
    subset_seed,
    turned,
)
from flows.workshop import Values, WorkFailed, WorkOrder, Workshop, Workshops, steps_of, zeros
from protocols import plain
from protocols import site as protocol
from protocols.contexts import SPEC_VERSION, AttemptContext, Purpose, check_context
from protocols.encoding import CLAMPED, Segment, encode
from protocols.errors import BadInput, ProtocolError, Refused
from protocols.files import is_full, write_whole
from protocols.keys import KEY_BYTES, Consortium, derive, framed, system_entropy
from protocols.ledger import Charge, LedgerEntry
from protocols.messages import (
    COORDINATOR,
    AskAdvertise,
    Body,
    Confirmation,
    Envelope,
    Refusal,
    envelope,
    open_body,
    parse,
)
from protocols.rotation import rotate
from protocols.vault import Context, Vault

if TYPE_CHECKING:
    from flows.local_work import InProcess

Answer = tuple[Envelope, ...]
FLOATS = (np.dtype(np.float32), np.dtype(np.float64))
RESUMED = 8
"""How often a round may use up the plan's attempts at a site: a coordinator that is cut off and resumed begins anew."""
ADVERT_S = 10.0
"""Seconds that asked work waits for this site's advert: the coordinator asks for both at once."""
KEPT = ".safetensors"
"""What local work gives, by segment. Numpy reads its own files with Python's compiler, which in CPython 3.11 fails now
and then where other threads compile (gh-106905): a site was lost to a sum by it."""
CONTENT = "content"
"""In an attempt's folder of local work: what stands for the data that it was done on."""


class Site:
    """One site: its vault, its data, its policy.

    Args:
        vault: holds the identity.
        consortium: the pinned keys.
        exchange: where masked vectors go.
        data: each data set, or its bare folder, by name.
        policy: what may run here.
        only: the one training that this process answers in; ``None`` for any.
        workshops: makes the workshop of each training; by default one in this process.
        settings: reads data and policy anew before each sum, so that what the steward changes binds a running training.

    Attributes:
        failures: why local work failed last, by training; for this site's people, and for local mode.
        advert_s: seconds that asked work waits for this site's advert in the same attempt.
        record: the site's log for its data steward.
    """

    def __init__(
        self,
        vault: Vault,
        consortium: Consortium,
        exchange: Exchange,
        data: Mapping[str, DataSet | Path],
        policy: Policy,
        only: str | None = None,
        workshops: Workshops | None = None,
        settings: Callable[[], tuple[Mapping[str, DataSet | Path], Policy]] | None = None,
    ) -> None:
        self.vault = vault
        self.identity = vault.identity
        self._consortium = consortium
        self._exchange = exchange
        self._data = data
        self._policy = policy
        self._only = only
        self._workshops = workshops or in_process
        self._settings = settings
        self._at_work = threading.Lock()
        self.advert_s = ADVERT_S
        self._advertising = threading.Condition()
        self._refused_advert = ""
        self.failures: dict[str, str] = {}
        self._log = logging.getLogger(f"fedseal.site.{self.identity.name}")
        self.record = SiteLog(vault.folder)
        self._trainings: dict[str, Agreed] = {}
        self._stopped: set[str] = set()
        self._asked: set[tuple[str, str]] = set()
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
            answer = self._steps[request.kind](request)
            self.record.append("answered", step=step, context=request.context)
            return answer
        except ProtocolError as error:
            return self._refuse(request, type(error).__name__, error.reason)
        except PlanError as error:
            self._log.warning("%s", error)
            return self._refuse(request, BadInput.__name__, "plan or task cannot be used here; the site's log says why")
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
        self.stop_work(training_name)
        self._trainings.pop(training_name, None)
        with self._advertising:
            self._advertising.notify_all()
        erase(self.vault, self._exchange, training_name)

    def rest(self, training_name: str) -> None:
        """Delete what going on with a training later does not need: its secrets stay, to finish a round that is held.

        Its work has been stopped.

        Raises:
            ExchangeAway: its objects may still be on the exchange.
        """
        self._clear_work(training_name)

    def stop_work(self, training_name: str) -> None:
        """End whatever local work of a training still runs."""
        if (agreed := self._trainings.get(training_name)) is not None:
            self._stopped.add(training_name)
            agreed.workshop.stop()

    def _refuse(self, request: Envelope, error: str, reason: str) -> Answer:
        step = request.kind.removeprefix("ask/")
        self._log.warning("refused %s: %s", step, reason)
        self.record.append("refused", step=step, context=request.context, error=error, reason=reason)
        return (self._reply(request, "refusal", Refusal(step, error, reason)),)

    def _reply(self, request: Envelope, kind: str, body: object) -> Envelope:
        return envelope(self.identity, kind, request.context, COORDINATOR, body, request.digest)

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
        plan = read_plan_of(ask.plan, self.identity.name)
        check_template(self.identity.name, plan, ask.template, self._consortium.authors)
        self._note_asked(ask.training, plan, ask.template)
        agreed = join(
            self.identity.name,
            plan,
            ask.training,
            policy=self._policy,
            vault=self.vault,
            consortium=self._consortium,
            data=self._data,
            workshops=lambda *given: self._workshop(ask.training, *given),
        )
        if ask.training not in self._trainings:
            self.record.append(
                "joined",
                training=ask.training,
                plan=plan.digest,
                task=plan.task,
                code=plan.code,
                data=plan.data,
                sites=", ".join(plan.sites),
            )
        self._trainings[ask.training] = agreed
        self._stopped.discard(ask.training)
        return (self._reply(request, "joined", Joined(plan.digest)),)

    def _note_asked(self, training_name: str, plan: Plan, template: str) -> None:
        """Log what is asked for, once for a plan, with the author whose signature was checked, if any was."""
        if (training_name, plan.digest) in self._asked:
            return
        self._asked.add((training_name, plan.digest))
        author = read_template(template).author if self._consortium.authors else None
        fields = {"training": training_name, "plan": plan.digest, "task": plan.task, "data": plan.data}
        self.record.append("asked", author=author, **fields)

    def _workshop(self, training_name: str, plan: Plan, site: str, folder: Path | None) -> Workshop:
        """The workshop that this training has already, so that a question asked again ends no work; or a new one."""
        before = self._trainings.get(training_name)
        return before.workshop if before and before.plan == plan else self._workshops(plan, site, folder)

    def _finish(self, request: Envelope) -> Answer:
        name = self._open(
            AskFinish, request, lambda ask: join_context(ask.training, self._agreed(ask.training))
        ).training
        self.leave(name)
        self.record.append("finished", training=name)
        return (self._reply(request, "done", Done()),)

    def _agreed(self, name: str) -> str:
        plan = self.vault.agreed(name)
        if plan is None or name not in self._trainings:
            raise Refused(self.identity.name, "join", "this site has not joined this training")
        return plan

    def _moments(self, request: Envelope) -> Answer:
        return self._work(request, "moments")

    def _train(self, request: Envelope) -> Answer:
        return self._work(request, "train")

    def _evaluate(self, request: Envelope) -> Answer:
        return self._work(request, "evaluate")

    def _work(self, request: Envelope, step: str) -> Answer:
        """Do local work once, for an attempt that this site has advertised, and keep what it gives for ``mask``.

        Whether it gave anything is not told here: the answer is the same.
        """
        began = time.monotonic()
        context = self._open(AskWork, request, lambda ask: ask.context.digest).context
        agreed = self._agreed_context(context, step)
        plan = agreed.plan
        if step not in steps_of(plan, context.purpose):
            raise Refused(self.identity.name, step, f"a sum of the {context.purpose} takes no such work")
        ends = began + min(plan.deadlines.train_s, self._policy.max_train_s)
        if plan.protection.protocol != "plain":
            self._await_advert(context, ends)
        self._check_current(context, plan, step)
        model = self._model(context, agreed)
        with self._at_work:  # one piece of work at a time
            self._check_current(context, plan, step)
            path = self._work_folder(context.training, context.digest) / f"{step}{KEPT}"
            if not path.exists():
                self._keep(path, self._worked(agreed, context, step, model, ends), step)
        if plan.protection.timing == "fixed":
            time.sleep(max(0.0, ends - time.monotonic()))
        return (self._reply(request, "done", Done()),)

    def _await_advert(self, context: AttemptContext, ends: float) -> None:
        """Wait until this site has advertised in an attempt, or has refused to, or the work's time or training is over.

        Not for longer than ``advert_s``, either.
        """
        with self._advertising:
            self._advertising.wait_for(
                lambda: (
                    self._refused_advert == context.digest
                    or context.training not in self._trainings
                    or self.vault.find(context.digest) is not None
                    or self._overtaken(context)
                ),
                min(self.advert_s, ends - time.monotonic()),
            )

    def _overtaken(self, context: AttemptContext) -> bool:
        """Whether this site has been in a newer attempt of the training."""
        known = self.vault.of_training(context.training)
        return any((context.round, context.attempt) < (one.round, one.attempt) for one in known)

    def _check_current(self, context: AttemptContext, plan: Plan, step: str) -> None:
        """Refuse work for an attempt that is over, or that this site has not advertised."""
        me = self.identity.name
        if self._overtaken(context):
            raise Refused(me, step, "a newer attempt has begun")
        if plan.protection.protocol == "plain":
            return
        known = self.vault.find(context.digest)
        if known is None:
            raise Refused(me, step, "this site has not advertised in this context")
        protocol.refuse_erased(known, self.identity, step)

    def _model(self, context: AttemptContext, agreed: Agreed) -> bytes:
        """The incoming model's file, refused for what it says itself, which is public."""
        sizes = agreed.described.sizes
        size = 4 * (sizes.parameters + 2 * sizes.features) + HEADER_BYTES
        content = self._exchange.get(shelf(context.training), context.model, size=size)
        model = GlobalModel.from_bytes(
            content,
            parameters=sizes.parameters,
            features=sizes.features,
            adaptive=agreed.plan.privacy.adaptive,
        )
        check_model(model, agreed.described.bounds)
        return content

    def _worked(self, agreed: Agreed, context: AttemptContext, step: str, model: bytes, ends: float) -> Values:
        """The values of a piece of work; none of them where it failed, for the reason in the site's own log."""
        subset = (
            derive(self.identity.secret, salt=b"", info=framed(SPEC_VERSION, "subset", context.training))
            if agreed.private
            else subset_seed(agreed.plan, self.identity.name)
        )
        order = WorkOrder(purpose=context.purpose, step=step, round=context.round, model=model, subset=subset)
        try:
            worked = agreed.workshop.work(order, max(ends - time.monotonic(), 0.001))
            check_values(worked.values, context.segments)
            self._note_content(context, worked.content)
        except WorkFailed as failed:
            if context.training in self._stopped:  # by this site itself, which is no failure
                self.record.append("stopped", step=step, training=context.training, round=context.round)
                return {}
            # The text may say what is in the data: it is for this site's people alone.
            self.failures[context.training] = failed.in_full
            self.record.fail(
                failed.in_full, step=step, training=context.training, round=context.round, attempt=context.attempt
            )
            self._log.error("%s failed in %s: %s", step, context.training, failed.in_full, exc_info=failed.__cause__)
            return {}
        return worked.values

    def _note_content(self, context: AttemptContext, content: str) -> None:
        """Keep what stands for the data that were used, for the ledger's line: nobody else can tell it from chance."""
        with suppress(FileNotFoundError):  # its folder was cleared while the work was done
            folder = self.vault.folder / "work" / context.training / context.digest
            write_whole(folder / CONTENT, self.vault.fingerprint(content).encode())

    def _keep(self, path: Path, values: Values, step: str) -> None:
        try:
            write_whole(path, save(values))
        except FileNotFoundError:  # its folder was cleared while the work was done
            raise Refused(self.identity.name, step, "a newer attempt has begun") from None

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
        table = segments_of(agreed.plan, context.purpose, agreed.described.sizes)
        if context.segments != table:
            raise Refused(me, step, "the segment table is not the plan's")
        if context.noise != shares_of(agreed.plan, context.purpose, table):
            raise Refused(me, step, "the noise is not the plan's")
        return agreed

    def _work_folder(self, training_name: str, attempt_context: str) -> Path:
        folder = work_folder(self.vault, training_name) / attempt_context
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        return folder

    def _clear_work(self, training_name: str, keep: str = "") -> None:
        clear_work(self.vault, self._exchange, training_name, keep)

    def _hand_over(self, training_name: str, attempt_context: str, vector: bytes) -> None:
        """Put a vector on the exchange, noting first that it must be deleted from there."""
        digest = hashlib.sha256(vector).hexdigest()
        (self._work_folder(training_name, attempt_context) / f"{digest}{VECTOR}").touch()
        self._exchange.put(self.identity.name, vector)

    def _values(self, agreed: Agreed, purpose: Purpose, folder: Path, step: str) -> Values:
        """What this site contributes: the values of its local work, or nothing at all where any of it failed."""
        values = Values()
        for work in steps_of(agreed.plan, purpose):
            path = folder / f"{work}{KEPT}"
            if not path.exists():
                raise Refused(self.identity.name, step, "this site has not done its local work for this attempt")
            values |= load(path.read_bytes())
        table = segments_of(agreed.plan, purpose, agreed.described.sizes)
        expected = [(one.name, one.length) for one in table if one.name not in (CLAMPED, FAILED)]
        failed = set(values) != {name for name, _ in expected}
        if failed:
            values = zeros(expected)
        if not agreed.private:
            values[FAILED] = np.array([float(failed)])
        return values

    def _advertise(self, request: Envelope) -> Answer:
        """Advertise, and let the work go on that waits for it."""
        context = self._open(AskAdvertise, request, lambda ask: ask.context.digest).context
        refused = context.digest
        try:
            answer = self._enter(request, context)
            refused = ""
            return answer
        finally:
            with self._advertising:
                self._refused_advert = refused
                self._advertising.notify_all()

    def _enter(self, request: Envelope, context: AttemptContext) -> Answer:
        agreed = self._agreed_context(context, "advertise")
        plan, chosen = agreed.plan, self._as_of_now(agreed)
        charge = charge_of(plan, context.purpose, context.segments, context.noise, chosen.group)

        def within(entries: Sequence[LedgerEntry], charge: Charge) -> None:
            contexts = contexts_of(self.vault, context.training)
            own = [entry for entry in entries if entry.context in contexts]
            check_plan_kept(self.identity.name, plan, own, charge)
            if (budget := self._policy.budget(chosen.group)) is not None:
                afford(self.identity.name, entries, [charge], budget, chosen.names)

        def admit(context: AttemptContext) -> None:
            check_roster(self.identity.name, context.training, self.vault, chosen, plan, self._consortium)
            if not agreed.private:
                self.vault.remember(chosen.group, context.training, roster_of(plan, self._consortium))

        self._check_attempts(context, plan)
        with waiting(self.vault, context.training, plan):
            answer = protocol.advertise(
                self.vault, self._consortium, request, charge=charge, afford=within, admit=admit
            )
        self.record.append(
            "advertised",
            **attempt_of(context),
            context=context.digest,
            cost=str(charge.events) if charge else "no privacy: not noised",
        )
        self._clear_work(context.training, keep=context.digest)
        self._work_folder(context.training, context.digest)  # by whose age what is left over is known
        return answer

    def _as_of_now(self, agreed: Agreed) -> Chosen:
        """The training's data set as the steward describes it now, if policy and data still allow its plan."""
        me = self.identity.name
        try:
            if self._settings is not None:
                self._data, self._policy = self._settings()
        except SettingsError as error:
            self._log.error("%s", error)
            raise Refused(me, "advertise", "this site's settings cannot be read: its log says why") from None
        check_policy(self._policy, agreed.plan, me)
        chosen = choose(agreed.plan, me, self._data, self._policy)
        if chosen.data_set.path != agreed.chosen.data_set.path:
            raise Refused(me, "advertise", f"the data set {agreed.plan.data} is another folder since this site joined")
        # That its folder is taken away is the data steward's doing, and says nothing of what was in it.
        if chosen.data_set.path is not None and not chosen.data_set.path.exists():
            raise Refused(me, "advertise", f"the data set {agreed.plan.data} is not there: its folder was taken away")
        return chosen

    def _check_attempts(self, context: AttemptContext, plan: Plan) -> None:
        """Refuse more attempts at a round than the plan allows, whatever the coordinator counts."""
        known = self.vault.of_training(context.training)
        others = [old for old in known if old.round == context.round and old.attempt_context != context.digest]
        if len(others) >= RESUMED * plan.max_attempts:
            raise Refused(
                self.identity.name,
                "advertise",
                f"the plan allows {plan.max_attempts} attempts at a round, and this site has been in {len(others)}",
            )

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
        context = self._advertised(request, "confirm")
        answer = protocol.confirm(self.vault, self._consortium, request)
        if not context.confirmed:  # else it is asked again
            made = parse(Confirmation, answer[0].body, party=self.identity.name, step="confirm")
            self.record.append("confirmed", **attempt_of(context), sites=", ".join(made.survivors))
        return answer

    def _reveal(self, request: Envelope) -> Answer:
        self._advertised(request, "reveal")
        return protocol.reveal(self.vault, self._consortium, request)

    def _mask(self, request: Envelope) -> Answer:
        context = self._advertised(request, "mask")
        protocol.refuse_erased(context, self.identity, "mask")
        agreed = self._trainings[context.training]
        name = self.identity.name
        key = system_entropy(KEY_BYTES) if agreed.private else rounding_key(agreed.plan, name, context.round)
        seed = rotation_seed(agreed.plan, context.attempt_context)
        folder = self._work_folder(context.training, context.attempt_context)
        values = turned(self._values(agreed, cast(Purpose, context.purpose), folder, "mask"), seed, rotate)
        content = (folder / CONTENT).read_text() if (folder / CONTENT).exists() else None
        answer = protocol.mask(self.vault, self._consortium, request, values, key, content=content)
        masked = self.vault.masked_path(context.attempt_context).read_bytes()
        self._hand_over(context.training, context.attempt_context, masked)
        return answer

    def _submit(self, request: Envelope) -> Answer:
        """The plain protocol's only step: the encoded vector, unmasked, where plan and policy allow it."""
        context = self._open(AskWork, request, lambda ask: ask.context.digest).context
        agreed = self._agreed_context(context, "submit")
        plan = agreed.plan
        self._clear_work(context.training, keep=context.digest)
        if plan.protection.protocol != "plain" or "plain" not in self._policy.protocols:
            raise Refused(self.identity.name, "submit", "this training is not a plain one")
        key = rounding_key(plan, self.identity.name, context.round)
        folder = self._work_folder(context.training, context.digest)
        values = turned(
            self._values(agreed, context.purpose, folder, "submit"), rotation_seed(plan, context.digest), rotate
        )
        vector = encode(self.identity.name, values, context.segments, key)
        self._hand_over(context.training, context.digest, vector.tobytes())
        self.record.append("unmasked", **attempt_of(context))
        return (plain.submit(self.identity, context, vector, request.digest),)


def in_process(plan: Plan, site: str, folder: Path | None) -> "InProcess":
    """The default workshop; what it imports is only needed where the work is done in this process."""
    from flows.local_work import InProcess

    return InProcess(plan, site, folder)


def attempt_of(context: AttemptContext | Context) -> dict[str, str | int]:
    """What names an attempt in the site's log."""
    return {
        "training": context.training,
        "purpose": context.purpose,
        "round": context.round,
        "attempt": context.attempt,
    }


def check_values(values: Mapping[str, object], segments: Sequence[Segment]) -> None:
    """Check that work gave finite float arrays for segments of the table.

    Raises:
        WorkFailed: naming the segment; nothing else of it.
    """
    lengths = {segment.name: segment.length for segment in segments if segment.name not in (CLAMPED, FAILED)}
    for name, array in values.items():
        if name not in lengths or not isinstance(array, np.ndarray) or array.dtype not in FLOATS:
            raise WorkFailed(f"it gave {name!r}, which is no segment of this sum or holds no floats of 32 or 64 bits")
        if array.shape != (lengths[name],):
            raise WorkFailed(f"{name} has shape {array.shape}, not ({lengths[name]},)")
        if not np.isfinite(array).all():
            raise WorkFailed(f"{name} holds NaN or infinity: it has diverged, or the data hold what is not finite")
