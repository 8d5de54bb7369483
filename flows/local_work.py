"""A site's local work itself: task, data and an incoming model in, one array a segment out (SPEC 3.5, 6.2).

This is the one place at a site where a task's code runs. It is given no vault, key or exchange. Whatever a task does
wrong is a ``WorkFailed`` of the caller's: ``InProcess`` makes one of any exception, and of time that is over.
"""

import queue
import threading
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from flows.code_digest import check_same_code
from flows.model import GlobalModel
from flows.plan import Plan
from flows.policy import load_task
from flows.privacy import alone, fingerprint
from flows.report import NAMED, shares_text
from flows.tables import (
    clamped_shares,
    clip_of,
    clipped_values,
    count_values,
    noised_count_values,
    statistics_values,
    training_seed,
    training_values,
)
from flows.task_errors import in_full, noted, what
from flows.workshop import Checked, Described, Values, Worked, WorkFailed, WorkOrder
from ml_tasks import tabular, training
from ml_tasks.alone import evaluate_alone
from ml_tasks.independence import check_stands_alone
from ml_tasks.layout import Layout
from ml_tasks.misfits import given, misfits, oddities, unusable
from ml_tasks.noised_metrics import count_noised
from ml_tasks.private import clipped_sum, count_units, one_each, private_steps
from ml_tasks.task import DataError, Examples, SiteData, Task
from ml_tasks.training import LocalTraining
from protocols.encoding import decode, encode
from protocols.keys import KEY_BYTES, system_entropy
from protocols.masks import keystream
from protocols.privacy.noise import add_noise
from protocols.privacy.sampling import poisson_sample

Result = TypeVar("Result")


class LocalWork:
    """One training's local work at one site; task and data are loaded once.

    Args:
        plan: the training's.
        site: the site's name.
        folder: where its data set lies; ``None`` for a task without one.

    Raises:
        PlanError: the task does not import, or its code is not what the plan names.
    """

    def __init__(self, plan: Plan, site: str, folder: Path | None) -> None:
        self.plan, self.site, self._folder = plan, site, folder
        check_same_code(plan)
        self.task: Task = load_task(plan.task)
        self._loaded: tuple[SiteData, str] | None = None

    @cached_property
    def described(self) -> Described:
        """The task by its model and its features; no data are read."""
        bounds = tuple((feature.low, feature.high) for feature in self.task.features)
        return Described(self._layout.sizes, bounds)

    @cached_property
    def _layout(self) -> Layout:
        return training.describe(self.task)

    @property
    def data(self) -> SiteData:
        """The site's examples, read at the first use.

        Raises:
            DataError: they cannot be used.
        """
        return self._load()[0]

    def _load(self) -> tuple[SiteData, str]:
        if self._loaded is None:
            if self.task.needs_data and self._folder is None:
                raise DataError(
                    f"no folder is named for the data set {self.plan.data}: use --data, or [data] in site.toml"
                )
            data = self.task.load(self._folder, self.site)
            if not isinstance(data, SiteData):
                raise DataError(f"load gives a {type(data).__name__}: give SiteData(train, test)")
            if (data.validation is not None) != self.task.validates:
                raise DataError(
                    "load gives validation examples if and only if the task says validates = True: make them agree"
                )
            self._loaded = data, fingerprint(data)
        return self._loaded

    def perform(self, order: WorkOrder, check_time: Callable[[], None] = lambda: None) -> Worked:
        """Do one piece of work; ``check_time`` is called at each step of a training, and may raise.

        Raises:
            Exception: whatever the task's code raises.
        """
        data, content = self._load()
        model = GlobalModel.from_bytes(
            order.model,
            parameters=self.described.sizes.parameters,
            features=self.described.sizes.features,
            adaptive=self.plan.privacy.adaptive,
        )
        match order.step:
            case "moments":
                values = self._moments(data.train, order)
            case "train":
                values = self._train(data.train, order, model, check_time)
            case "evaluate":
                values = self._evaluate(data, order, model, check_time)
            case _:
                raise ValueError(f"there is no local work called {order.step}")
        return Worked(values, content)

    def _moments(self, examples: Examples, order: WorkOrder) -> Values:
        examples = one_each(examples) if self.plan.privacy.unit != "none" else examples
        return statistics_values(self.plan, self._bounded(examples, order).features, self.task.features)

    def _train(
        self, examples: Examples, order: WorkOrder, model: GlobalModel, check_time: Callable[[], None]
    ) -> Values:
        plan, unit = self.plan, self.plan.privacy.unit
        if unit == "record":
            return {"update": self._private_update(examples, model, check_time)}
        examples = self._usable(self._bounded(examples, order))
        settings = LocalTraining(**plan.local.model_dump())
        # With privacy batches are drawn with nothing that the coordinator knows.
        seed = training_seed(plan, self.site, order.round) if unit == "none" else secret_seed()
        update = training.train(
            self.task, examples, model.vector, model.standardisation, settings, seed, check_time=check_time
        )
        if unit == "none":
            return training_values(plan, len(examples), update, self._layout)
        return clipped_values(plan, self.site, len(examples), update, clip_of(plan, model))

    def _evaluate(self, data: SiteData, order: WorkOrder, model: GlobalModel, check_time: Callable[[], None]) -> Values:
        examples = data.test if order.purpose == "evaluation" else data.monitored[1]
        if self.plan.privacy.unit == "record":
            given = (self.task, one_each(examples), model.vector, model.standardisation)
            counted = partial(count_noised, counting=self.plan.counting)
            return count_values(evaluate_alone(*given, counted, check_time=check_time))
        given = (self.task, self._usable(self._bounded(examples, order)), model.vector, model.standardisation)
        if self.plan.privacy.unit == "none":
            return count_values(training.evaluate(*given))
        return noised_count_values(self.plan, self.site, training.evaluate(*given, self.plan.counting))

    def _bounded(self, examples: Examples, order: WorkOrder) -> Examples:
        """At most as many examples as the plan's public bound, chosen at random and the same in the whole training.

        With privacy for records all stay: one more would put another out, and a unit stands alone (SPEC 12.4). There
        the ring clamps.
        """
        most = self.plan.protection.max_examples
        if len(examples) <= most or self.plan.privacy.unit == "record":
            return examples
        draws = np.frombuffer(keystream(order.subset)(8 * len(examples)), "<u8")
        rows = np.sort(np.argsort(draws, kind="stable")[:most])
        groups = None if examples.groups is None else examples.groups[rows]
        return replace(examples, features=examples.features[rows], targets=examples.targets[rows], groups=groups)

    def _usable(self, examples: Examples) -> Examples:
        """The examples, unless one of them would drown all others in the model: the site counts as failed then.

        Not with privacy for records, where each stands alone (SPEC 12.4).

        Raises:
            DataError: they hold infinity, or a value far beyond its feature's bounds.
        """
        if reasons := unusable(examples, self.task.features):
            raise DataError(reasons[0])
        return examples

    def _private_update(
        self, examples: Examples, model: GlobalModel, check_time: Callable[[], None]
    ) -> NDArray[np.floating]:
        """With distributed noise the sum of a step's clipped gradients, in units of the clip: ``mask`` adds the noise.

        With local noise, the update of several steps that are private by themselves.
        """
        plan, rules = self.plan, self.plan.privacy

        def choose(present: int) -> NDArray[np.bool_]:
            return poisson_sample(present, rules.sampling_rate, system_entropy(KEY_BYTES))

        given = (self.task, examples)
        if rules.noise == "distributed":
            chosen = choose(count_units(examples))
            return clipped_sum(*given, chosen, model.vector, model.standardisation, rules.clip, check_time=check_time)
        table, sigmas = alone(plan, len(model.vector))

        def noise(total: NDArray[np.float64]) -> NDArray[np.float64]:
            key = system_entropy(KEY_BYTES)
            vector = encode(self.site, {"update": total}, table, key, count_clamped=False)
            add_noise(vector, table, sigmas)
            return decode(vector, table)["update"]

        length = plan.local.learning_rate * rules.clip / rules.expected_batch
        steps = plan.local.steps
        return private_steps(
            *given, model.vector, model.standardisation, steps, rules.clip, length, choose, noise, check_time=check_time
        )

    def check(self, check_time: Callable[[], None] = lambda: None) -> Checked:
        """Read the data and try the task on them, as a site does in its rounds.

        They must load, hold numbers, targets and columns as the task says, and give each example one finite logit and
        loss with the untrained model; one step of training must succeed. With privacy for records each unit must stand
        alone (SPEC 12.4). The task is not tried on data that do not fit: it would fail for them.

        Raises:
            Exception: whatever the task's code raises, with a note that says on what.
        """
        try:
            data = self.data
        except DataError as error:
            return Checked((str(error),), {})
        found = [
            f"{part}: {reason}"
            for part, examples in data.parts.items()
            for reason in misfits(examples, self.task.features)
        ]
        odd = [
            f"{part}: {line}"
            for part, examples in data.parts.items()
            for line in oddities(examples, self.task.features)
        ]
        if not found:
            odd += self._try(data, check_time)
        if self.plan.privacy.unit == "record":
            try:
                check_stands_alone(self.task, data.train)
            except DataError as error:
                found.append(str(error))
        return Checked(tuple(found), {part: len(examples) for part, examples in data.parts.items()}, tuple(odd))

    def _try(self, data: SiteData, check_time: Callable[[], None]) -> list[str]:
        """Evaluate the untrained model on all examples and train it for one step; with privacy for records, which never
        meet in a step, only evaluate it.

        Returns:
            What of that step a sum would clamp.
        """
        vector = training.initial_vector(self.task, self.plan.seed)
        bounds = tabular.from_bounds(self.task.features) if self.task.features else None
        for part, examples in data.parts.items():
            with noted(f"evaluating the {part} examples, {given(examples)}"):
                training.evaluate(self.task, examples, vector, bounds)
        if self.plan.privacy.unit != "record":
            step = replace(LocalTraining(**self.plan.local.model_dump()), steps=1)
            size = min(step.batch_size, len(data.train))
            with noted(f"a step of training on {size} of the train examples, {given(data.train)}"):
                update = training.train(self.task, data.train, vector, bounds, step, self.plan.seed, check_time)
            return self._clamped_of(len(data.train), update)
        return []

    def _clamped_of(self, examples: int, update: NDArray[np.float32]) -> list[str]:
        plan = self.plan
        if plan.privacy.unit != "none" or plan.protection.update.rotated:
            return []
        shares = clamped_shares(training_values(plan, examples, update, self._layout), self._layout, 1)
        if not (named := {name: share for name, share in shares.items() if share > NAMED}):
            return []
        return [
            f"train: one step is clamped to its range, {shares_text(named)}: lower local.learning_rate "
            f"({plan.local.learning_rate:g}), standardise the inputs, or raise protection.update.max_abs "
            f"({plan.protection.update.max_abs:g})"
        ]


def secret_seed() -> int:
    """A seed below 2^63 that nobody knows."""
    return int.from_bytes(system_entropy(8)) >> 1


class Stopped(BaseException):
    """Work that nobody waits for any more; no ``Exception``, so that a task's code does not swallow it."""


class InProcess:
    """A workshop in this process, for local mode and tests: the task's code runs beside everything else.

    A piece of work that is not done in time is told to stop between two steps of its training; a task that is stuck
    in its own code is left behind, which only a process of its own could end (``flows.sandbox``).
    """

    def __init__(self, plan: Plan, site: str, folder: Path | None) -> None:
        self._given = (plan, site, folder)
        self._made: LocalWork | None = None
        self._ended = threading.Event()

    def describe(self, limit_s: float) -> Described:
        """As ``Workshop``."""
        return self._within(limit_s, lambda work, check_time: work.described)

    def check(self, limit_s: float) -> Checked:
        """As ``Workshop``."""
        return self._within(limit_s, lambda work, check_time: work.check(check_time))

    def work(self, order: WorkOrder, limit_s: float) -> Worked:
        """As ``Workshop``."""
        return self._within(limit_s, lambda work, check_time: work.perform(order, check_time))

    def stop(self) -> None:
        """Tell what still runs to stop."""
        self._ended.set()

    def _within(self, limit_s: float, run: Callable[[LocalWork, Callable[[], None]], Result]) -> Result:
        ended = self._ended = threading.Event()
        answers: queue.SimpleQueue[Result | BaseException] = queue.SimpleQueue()

        def check_time() -> None:
            if ended.is_set():
                raise Stopped

        def attempt() -> None:
            try:
                if self._made is None:
                    self._made = LocalWork(*self._given)
                answers.put(run(self._made, check_time))
            except BaseException as error:  # a task may raise what is no Exception
                answers.put(error)

        threading.Thread(target=attempt, daemon=True).start()
        try:
            answer = answers.get(timeout=limit_s)
        except queue.Empty:
            raise WorkFailed(f"it was not done within {limit_s:g} s") from None
        finally:
            ended.set()
        if isinstance(answer, BaseException):
            raise WorkFailed(what(answer), in_full(answer, self._given[0].task)) from answer
        return answer
