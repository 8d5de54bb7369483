"""What is said of an exception in a task's code: its line to the site's people, its text alone to anybody else."""

import re

import pytest

from flows.local_work import InProcess
from flows.sandbox.child import failed
from flows.task_errors import in_full, noted, place, what
from flows.workshop import WorkFailed
from ml_tasks.task import DataError
from tests.flows.consortium import plan_for
from tests.flows.tasks import LEAK, Tiny

PLACE = r"tests/flows/test_task_errors\.py, line \d+, in "


def caught(error: BaseException) -> BaseException:
    """The error as it is when it was raised here and caught."""
    try:
        with noted("on 3 examples"):
            raise error
    except BaseException as raised:
        return raised


def test_the_place_is_the_innermost_line_of_the_author_s_code_and_not_of_a_library() -> None:
    def load() -> None:
        re.compile("(")

    with pytest.raises(re.error) as raised:
        load()
    assert re.fullmatch(PLACE + "load", place(raised.value, "tests.flows:Task"))
    assert re.fullmatch(PLACE + "load", place(raised.value, "other.package:Task")), "a package beside the task's"


def test_an_error_is_one_line_with_place_text_and_what_it_was_about() -> None:
    error = caught(KeyError("two\nlines"))
    assert re.fullmatch(PLACE + r"caught: KeyError: 'two\\nlines' \(on 3 examples\)", in_full(error, "tests:Task"))
    assert re.fullmatch(PLACE + r"caught: SystemExit: 3", in_full(caught(SystemExit(3)), "tests:Task"))


def test_a_task_s_own_word_on_its_data_is_said_as_it_is() -> None:
    assert in_full(DataError("a.csv: line 3: mend it"), "tests:Task") == "a.csv: line 3: mend it"


def test_what_a_refusal_to_join_quotes_has_no_place(monkeypatch: pytest.MonkeyPatch) -> None:
    def model(self: Tiny) -> None:
        raise RuntimeError(LEAK)

    monkeypatch.setattr(Tiny, "model", model)
    with pytest.raises(WorkFailed) as raised:
        InProcess(plan_for(), "ann", None).describe(60)
    assert str(raised.value) == f"RuntimeError: {LEAK}"
    assert re.fullmatch(PLACE + f"model: RuntimeError: {LEAK}", raised.value.in_full)


def test_a_locked_child_says_both_over_its_pipe() -> None:
    error, plan = caught(ValueError("x")), plan_for()
    assert failed(error, {"plan": plan.to_json()}).words == {
        "failed": what(error),
        "in full": in_full(error, plan.task),
    }
