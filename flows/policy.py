"""What a site allows, decided by its data steward and checked before anything is imported (SPEC 8, rule 4)."""

import importlib
from dataclasses import dataclass

from flows.plan import Plan, PlanError
from ml_tasks.task import Task
from protocols.errors import Refused


@dataclass(frozen=True, slots=True)
class Policy:
    """A site's rules.

    Attributes:
        tasks: import paths of the tasks that may run here.
        allow_insecure: whether the plain protocol may be used.
    """

    tasks: tuple[str, ...]
    allow_insecure: bool = False


def check_policy(policy: Policy, plan: Plan, site: str) -> None:
    """Refuse a plan that this site does not allow.

    Raises:
        Refused: naming the rule.
    """
    if site not in plan.sites:
        raise Refused(site, "join", "the plan does not name this site")
    if plan.task not in policy.tasks:
        raise Refused(site, "join", f"the task {plan.task} is not on this site's list")
    if plan.protection.protocol == "plain" and not policy.allow_insecure:
        raise Refused(site, "join", "this site does not allow the plain protocol")


def load_task(path: str) -> Task:
    """Import a task by ``module:Class``. At a site, only after ``check_policy``.

    Raises:
        PlanError: if it does not import or is not a task.
    """
    module, _, name = path.partition(":")
    try:
        found = getattr(importlib.import_module(module), name)
        task = found() if isinstance(found, type) and issubclass(found, Task) else None
    except Exception as error:  # a user's module may fail in any way
        why = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise PlanError(f"task {path}: does not import ({why}): install its package or mend it") from None
    if task is None:
        raise PlanError(f"task {path}: is not a subclass of ml_tasks.task.Task")
    return task
