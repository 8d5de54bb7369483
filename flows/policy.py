"""What a site allows, decided by its data steward and checked before anything is imported (SPEC 8, rule 4)."""

import importlib
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from flows.code_digest import CodeRule, import_from_source
from flows.plan import Plan, PlanError
from flows.sandbox.host import Setting
from protocols.errors import Refused
from protocols.ledger import Budget

if TYPE_CHECKING:  # a site's worker reads policies and has no need of PyTorch
    from ml_tasks.task import Task

MOST_PARAMETERS = 50_000_000
"""The longest model vector of a site that does not say another, and of local mode."""

TaskPath = Annotated[str, Field(pattern=r"^[\w.]+:\w+$")]


class BudgetTable(BaseModel):
    """How much privacy the data sets of a budget group may lose in all, over every training."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    epsilon: float = Field(gt=0, description="Of everything that the group was ever charged with.")
    delta: float = Field(gt=0, lt=1, description="At which that epsilon is counted.")


class Policy(BaseModel):
    """A site's rules: the ``[policy]`` table of its ``site.toml``."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    tasks: list[TaskPath] = Field(description="Import paths of the tasks that may run here.")
    code: CodeRule = Field(
        default="named",
        description="pinned: a plan must name the digest of the code that is installed here (site.toml's default). "
        "named: it names that one or none. any: the code is not compared.",
    )
    data: list[str] | None = Field(
        default=None, description="Data sets that plans may use; without it, all that [data] names."
    )
    protocols: list[Literal["secagg", "plain"]] = Field(
        default=["secagg"], description="Protocols that may be used; plain protects nothing."
    )
    min_sites: int = Field(default=3, ge=3, description="Fewest sites that a plan may name.")
    min_threshold: int = Field(default=3, ge=3, description="Fewest sites that a sum may be opened with.")
    colluding: int = Field(default=1, ge=1, description="Sites that a plan must at least assume to collude.")
    max_rounds: int = Field(default=1000, ge=1, description="Most rounds that a plan may have.")
    max_parameters: int = Field(default=MOST_PARAMETERS, ge=1, description="Longest model vector.")
    max_train_s: float = Field(default=86_400.0, gt=0, description="Longest local step that a plan may ask for.")
    max_memory_mib: int = Field(
        default=8192, ge=256, description="Mebibytes that a task may take beside Python and PyTorch."
    )
    sandbox: Setting = Field(
        default="strongest",
        description="required: no local work where files and network are not shut off; strongest: whatever layers "
        "this host has; none: in the site's own process.",
    )
    max_trainings: int = Field(default=4, ge=1, description="Trainings that may run here at once.")
    lease_s: float = Field(default=3600.0, gt=0, description="Seconds without a request after which the site leaves.")
    budgets: dict[str, BudgetTable] = Field(
        default={}, description="Privacy budget by budget group; its data sets take no plan without privacy."
    )
    keep_s: float = Field(
        default=604_800.0,
        ge=0,
        description="Seconds that the last secrets of a training that has not finished stay: resuming may need them.",
    )
    approval: Literal["automatic", "by-hand"] = Field(
        default="automatic", description="Whether each training waits for fedseal site approve."
    )

    def budget(self, group: str) -> Budget | None:
        """The budget of a budget group, if it has one."""
        table = self.budgets.get(group)
        return Budget(table.epsilon, table.delta) if table else None


def check_policy(policy: Policy, plan: Plan, site: str) -> None:
    """Refuse a plan that this site does not allow.

    Raises:
        Refused: naming the rule.
    """

    def refuse_unless(allowed: bool, reason: str) -> None:
        if not allowed:
            raise Refused(site, "join", reason)

    rules = plan.protection
    refuse_unless(site in plan.sites, "the plan does not name this site")
    refuse_unless(plan.task in policy.tasks, f"the task {plan.task} is not on this site's list")
    refuse_unless(policy.data is None or plan.data in policy.data, f"the data set {plan.data} may not be used here")
    refuse_unless(rules.protocol in policy.protocols, f"this site does not allow the {rules.protocol} protocol")
    for value, least, name in (
        (len(plan.sites), policy.min_sites, "sites"),
        (rules.threshold, policy.min_threshold, "threshold"),
        (rules.colluding, policy.colluding, "colluding"),
    ):
        refuse_unless(value >= least, f"the plan's {name} ({value}) must be at least {least} here")
    for amount, most, name in (
        (plan.rounds, policy.max_rounds, "rounds"),
        (plan.deadlines.train_s, policy.max_train_s, "deadlines.train_s"),
    ):
        refuse_unless(amount <= most, f"the plan's {name} ({amount:g}) may be at most {most:g} here")


def load_task(path: str) -> "Task":
    """Import a task by ``module:Class``. At a site, only after ``check_policy``.

    Raises:
        PlanError: if it does not import, is not a task, or does not say what it is; of what the import raised, the
            cause knows the line.
    """
    from ml_tasks.task import Task

    module, _, name = path.partition(":")
    import_from_source(module.partition(".")[0])
    try:
        found = getattr(importlib.import_module(module), name)
        task = found() if isinstance(found, type) and issubclass(found, Task) else None
    except Exception as error:  # a user's module may fail in any way
        why = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise PlanError(f"task {path}: does not import ({why}): install its package or mend it") from error
    if task is None:
        raise PlanError(f"task {path}: is not a subclass of ml_tasks.task.Task")
    for words in ("title", "provenance"):
        if not isinstance(getattr(task, words, None), str):
            raise PlanError(f'task {path}: has no {words}: write {words} = "..." in its class')
    return task
