"""What ``fedseal run`` tells the author of a task: one line before the first round, with the line of their own code."""

import re
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load

from deploy import run as runs
from deploy.cli import STARTING
from flows.local import LocalSites
from flows.model import GlobalModel
from flows.plan import read_plan
from flows.session import session
from ml_tasks.averaging import load_vector, to_vector, vector_parts
from protocols.errors import TooManyFailed
from tests.deploy import mistakes
from tests.deploy.command import fedseal, refused

PLAN = f"""
name = "told"
task = "tests.deploy.mistakes:TASK"
data = "told"
sites = {list(mistakes.SITES)}
rounds = 1
max_attempts = 1
"""
PLACE = r"tests/deploy/mistakes\.py, line \d+, in "


def plan(folder: Path, task: str) -> Path:
    """A plan for one of the mistakes."""
    path = folder / "told.toml"
    path.write_text(PLAN.replace("TASK", task).replace("'", '"'))
    return path


@pytest.mark.parametrize(
    ("task", "said"),
    [
        ("LoadRaises", f"^ann: task .*LoadRaises: {PLACE}load: KeyError: 'lactate': mend the task$"),
        ("LoadRefuses", "^ann, bob, cat: admissions.csv: cannot be read: export it as numbers$"),
        ("LoadExits", f"{PLACE}load: SystemExit: 3"),
        ("LoadGivesTuple", r"^ann, bob, cat: load gives a tuple: give SiteData\(train, test\)$"),
        ("LoadGivesArrays", PLACE + r"load: ValueError: train is a ndarray: give Examples\(features, targets\)"),
        ("LoadGivesText", PLACE + "load: ValueError: features are of type <U.*: convert them to float32"),
        ("ModelRaises", f"cannot be made: {PLACE}model: RuntimeError: hidden size must be positive: mend it$"),
        ("ModelIsAttribute", "cannot be made: TypeError: .*missing 1 required positional argument"),
        ("ModelIsNone", "cannot be made: ValueError: model gives a NoneType: give a torch.nn.Module"),
        ("NoParameters", "cannot be made: ValueError: it has no parameters"),
        ("Lazy", "cannot be made: ValueError: 0.weight has no size before its first batch: give the layer its sizes"),
        ("NotLoadable", f"cannot be saved and loaded: {PLACE}load_state_dict: ValueError: from checkpoints"),
        (
            "OtherColumns",
            r"^ann: .*mat1 and mat2 shapes .*12x5 and 6x1.*evaluating the train.*float32 of shape \(12, 5\)",
        ),
        ("TwoOutputs", r"^ann: .*the model gives \(12, 2\) for 12 examples, not one logit for each"),
        ("LossRaises", f"^ann: .*{PLACE}loss: RuntimeError: boom in loss .*: mend the task$"),
        ("LossIsMean", r"^ann: .*the loss gives \(\) for 12 examples, not one value for each"),
        ("LossIsDetached", "^ann: .*does not require grad.*a step of training on 12 of the train examples"),
        ("Indices", r"^ann: .*'indices'.*\.long\(\) in forward makes indices"),
        ("HalfWeights", "^ann: .*BFloat16.*its weights must be float32"),
        ("OneExample", "^ann: .*Expected more than 1 value per channel.*a step of training on 1 of the train examples"),
        ("SignedTargets", "^ann, bob, cat: train: 4 of 12 targets are neither 0 nor 1: have load give 0 and 1$"),
        ("MissingTargets", r"^bob: train: 1 of 12 targets are missing \(NaN\): leave these examples out$"),
        (
            "InfiniteFeatures",
            "^bob: train: 2 of 12 examples have an infinite value, in column 1, column 2: mend the data",
        ),
        ("Unmeasured", "^bob: train: 1 of 12 examples have a value beyond 1e.09, in column 1: mend the data"),
        ("NamedUnmeasured", "^bob: train: .*1000 times the width of its declared bounds away, in feature lactate: "),
        ("Uncapped", "cannot be made: ValueError: loss_cap is inf: give the largest loss"),
        ("NamedInfiniteFeatures", "^bob: train: .*in feature lactate, feature sodium: "),
        (
            "TooFewFeatures",
            r"^ann, bob, cat: train: load gives features of shape \(12, 5\), the task names 2: give one",
        ),
        ("NoExamples", "^no site has an example to train on"),
        ("NoTitle", 'has no title: write title = "..." in its class$'),
    ],
)
def test_a_mistake_in_a_task_is_told_once_before_the_first_round(
    task: str, said: str, home: Path, tmp_path: Path
) -> None:
    line = refused(home, plan(tmp_path, task)).removeprefix("fedseal: ")
    assert re.search(said, line), line


def test_a_model_that_no_site_takes_is_refused_with_the_limit_and_its_setting(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs, "MOST_PARAMETERS", 28)
    line = refused(home, plan(tmp_path, "Large"))
    assert "the model has 29 parameters, and in local mode a site takes 28 at most" in line
    assert "max_parameters" in line


def test_sites_that_add_nothing_are_named_before_the_training(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    runs.check_data(read_plan(plan(tmp_path, "NoTestExamples")), runs.Options(None, None, False))
    assert capsys.readouterr().err.splitlines() == [
        "fedseal: bob: no examples to train on: this adds nothing to the model",
        "fedseal: no site has an example to be tested on: there will be no final metrics",
    ]


def test_what_is_odd_about_the_data_is_said_before_the_training(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    checked = read_plan(plan(tmp_path, "Odd"))
    runs.check_data(checked, runs.Options(None, None, False))
    bounds = "its declared bounds: the statistics clamp them, the model sees them as they are"
    assert capsys.readouterr().err.splitlines() == [
        f"fedseal: bob: train: 3 of 12 values of lactate are outside of [-4, 4], {bounds}",
        "fedseal: cat: train: all 12 targets are of one class",
        "fedseal: cat: test: all 12 targets are of one class",
    ]


def test_a_step_that_would_be_clamped_is_said_before_the_training(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    checked = read_plan(plan(tmp_path, "Sound"), ["local.learning_rate=1e9"])
    runs.check_data(checked, runs.Options(None, None, False))
    said = "fedseal: ann, bob, cat: train: one step is clamped to its range, 100% of weight, 100% of bias: lower local."
    assert capsys.readouterr().err.startswith(said)


@pytest.mark.parametrize(("most", "said"), [(10_000_000, 1), (10_000, 0)])
def test_a_bound_on_the_examples_that_drowns_the_update_is_said_of_the_plan_alone(
    most: int, said: int, home: Path, tmp_path: Path
) -> None:
    wanted = f"with fewer than 6,743 training examples in all, rounding adds more than 0.001 .*max_examples .{most:,}."
    _, out, err = fedseal("plan", plan(tmp_path, "Sound"), "--set", f"protection.max_examples={most}")
    assert len(re.findall(wanted, " ".join((out + err).split()))) == said


def test_a_bound_that_only_these_data_fall_short_of_is_said_of_them(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    checked = read_plan(plan(tmp_path, "Sound"), ["protection.max_examples=1000000"])
    runs.check_data(checked, runs.Options(None, None, False))
    assert "fedseal: with 36 training examples in all, rounding adds" in capsys.readouterr().err


def test_what_a_task_prints_is_not_on_standard_output(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    path = plan(tmp_path, "Printing")
    checked, task, vector = runs.check_plan(lambda: read_plan(path))
    runs.check_data(checked, runs.Options(None, None, False))
    runs.save_model(tmp_path / "model", task, GlobalModel(vector))
    said = capsys.readouterr()
    assert said.out == ""
    assert {"load was called", "model was called"} <= set(said.err.splitlines())


def test_a_failure_in_a_round_is_told_once_and_no_resume_is_offered(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(plan: object, training: str) -> None:
        sites = session(training).sites
        assert isinstance(sites, LocalSites)
        for site in mistakes.SITES:
            sites.sites[site].failures[training] = "tests/deploy/mistakes.py, line 7, in loss: RuntimeError: boom"
        raise TooManyFailed("coordinator", "training", "3 of 3")

    monkeypatch.setattr(runs, "federated_training", fail)
    monkeypatch.setattr(runs, "patient_engine", lambda tries: nullcontext())
    code, out, err = fedseal("run", plan(tmp_path, "Sound"))
    place = "tests/deploy/mistakes.py, line 7, in loss: RuntimeError: boom"
    assert (code, out) == (1, "")
    said = f"fedseal: training: ann, bob, cat: {place}: mend it and start a new training"
    assert err.splitlines() == [STARTING, said]


def test_tied_weights_are_saved_under_both_names_as_the_sum_has_them() -> None:
    task = mistakes.Tied()
    vector = np.arange(to_vector(task.model()).size, dtype=np.float32)
    tensors = load(runs.model_file(task, GlobalModel(vector)))
    parts = [tensors[name].reshape(-1).numpy() for name, _ in vector_parts(task.model())]
    assert np.array_equal(np.concatenate(parts), vector), "verify compares the file with the vector"
    model, same = task.model(), task.model()
    model.load_state_dict(tensors)
    load_vector(same, vector)
    assert np.array_equal(to_vector(model), to_vector(same))
