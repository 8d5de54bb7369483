"""Take each fix back and see that a test fails: ``python -m tests.mutants [FINDING ...]``.

A fix whose test would pass without it is not tested. Each mutant replaces one exact text of one product file, runs the
tests that are named for it in a copy of the tree, and is *killed* when one of them fails. Prints a line for each, and
exits with 1 where one has survived or does not apply any more.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TREE = ("deploy", "flows", "ml_tasks", "protocols", "tests", "docs", "pyproject.toml", "constraints.txt")
TREE_TEXTS = ("SPEC.md", "SECURITY.md", "README.md", "CHANGELOG.md", "Makefile")


@dataclass(frozen=True, slots=True)
class Mutant:
    """A fix taken back.

    Attributes:
        finding: of ``attacks.md``, or the section of the issue, as in ``1`` or ``before-the-sum``.
        file: the product file, relative to the repository.
        old: text that stands there exactly once.
        new: what takes its place.
        tests: what must fail then: files or test ids for pytest.
    """

    finding: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]


WORLDS = ("tests/attacks/test_nothing_before_the_sum.py",)
ALONE = ("tests/attacks/test_a_unit_alone.py",)
WORK = ("tests/attacks/test_local_work.py",)

BEFORE_THE_SUM: tuple[Mutant, ...] = (
    # What failed in local work is refused, with its reason, or with none.
    Mutant(
        "before-the-sum",
        "flows/site.py",
        "            return {}\n        return worked.values\n",
        "            raise Refused(self.identity.name, step, str(failed)) from None\n        return worked.values\n",
        WORLDS,
    ),
    Mutant(
        "before-the-sum",
        "flows/site.py",
        "        except WorkFailed as failed:\n",
        "        except TimeoutError as failed:\n",
        WORLDS,
    ),
    # Joining tries the data, or counts them.
    Mutant(
        "before-the-sum",
        "flows/joining.py",
        "        agreed = Agreed(plan, described, workshop, chosen)\n",
        "        agreed = Agreed(plan, described, workshop, chosen)\n"
        "        if workshop.check(30.0).wrong:\n"
        "            raise Refused(site, 'join', 'the data cannot be used')\n",
        WORLDS,
    ),
    Mutant(
        "before-the-sum",
        "flows/joining.py",
        "        agreed = Agreed(plan, described, workshop, chosen)\n",
        "        agreed = Agreed(plan, described, workshop, chosen)\n"
        "        from flows.local_work import LocalWork\n"
        "        if len(LocalWork(plan, site, None).data.train) > plan.protection.max_examples:\n"
        "            raise Refused(site, 'join', 'this site has more examples than protection.max_examples')\n",
        WORLDS,
    ),
    # Work that failed shows at mask: as a refusal, or as work that was not done.
    Mutant(
        "before-the-sum",
        "flows/site.py",
        "            values = zeros(expected)\n",
        "            raise Refused(self.identity.name, step, 'the local work failed')\n",
        WORLDS,
    ),
    Mutant(
        "before-the-sum",
        "flows/site.py",
        "                self._keep(path, self._worked(agreed, context, step, model, ends), step)\n",
        "                values = self._worked(agreed, context, step, model, ends)\n"
        "                if values:\n"
        "                    self._keep(path, values, step)\n",
        WORLDS,
    ),
    # The number of messages tells.
    Mutant(
        "before-the-sum",
        "flows/site.py",
        "            time.sleep(max(0.0, ends - time.monotonic()))\n"
        '        return (self._reply(request, "done", Done()),)\n',
        "            time.sleep(max(0.0, ends - time.monotonic()))\n"
        '        return (self._reply(request, "done", Done()),) * (1 + (context.training in self.failures))\n',
        WORLDS,
    ),
    # The next advert's ledger head depends on what was read.
    Mutant(
        "before-the-sum",
        "flows/site.py",
        "        return worked.values\n",
        "        with self.vault.exclusive():\n"
        "            self.vault.enter(LedgerEntry('accepted', worked.content))\n"
        "        return worked.values\n",
        WORLDS,
    ),
    # Something of the work lies on the exchange before it is masked.
    Mutant(
        "before-the-sum",
        "flows/site.py",
        "        return worked.values\n",
        "        self._exchange.put(self.identity.name, worked.content.encode())\n        return worked.values\n",
        WORLDS,
    ),
    # A later step is refused for what failed earlier.
    Mutant(
        "before-the-sum",
        "flows/site.py",
        "        self._check_attempts(context, plan)\n",
        "        self._check_attempts(context, plan)\n"
        "        if context.training in self.failures:\n"
        "            raise Refused(self.identity.name, 'advertise', 'its data steward must look first')\n",
        WORLDS,
    ),
)

TABLES = ("tests/flows/test_tables.py",)

FINDINGS: tuple[Mutant, ...] = (
    # Numbers that are not so.
    Mutant("numbers", "flows/tables.py", "False: MOST_STATISTIC}", "False: plan.protection.update.max_abs}", TABLES),
    Mutant(
        "numbers",
        "flows/tables.py",
        '            if unit == "none":\n                table.append(',
        "            if True:\n                table.append(",
        TABLES,
    ),
    Mutant("numbers", "ml_tasks/layout.py", "name in weights)", "True)", ("tests/ml_tasks/test_layout.py",)),
    Mutant(
        "numbers",
        "ml_tasks/metrics.py",
        '"capped": np.array([(np.abs(losses64) > loss_cap).sum()], dtype=np.float64)',
        '"capped": np.zeros(1)',
        ("tests/ml_tasks/test_metrics.py",),
    ),
    Mutant(
        "numbers",
        "flows/checkpoint.py",
        "not best.capped and ",
        "",
        ("tests/flows/test_checkpoint.py",),
    ),
    Mutant(
        "numbers",
        "flows/federated_training.py",
        "        check_clamped(plan, finished)\n",
        "",
        ("tests/flows/test_training.py",),
    ),
    Mutant(
        "noised-metrics",
        "ml_tasks/noised_metrics.py",
        "first = np.clip((wholes + left - right) / 2, 0.0, wholes)",
        "first = (wholes + left - right) / 2",
        ("tests/ml_tasks/test_noised_metrics.py",),
    ),
    Mutant(
        "noised-metrics",
        "ml_tasks/noised_metrics.py",
        "wholes = np.maximum(levels.pop(), 0.0)",
        "wholes = np.maximum(cells, 0.0).sum(keepdims=True).reshape(-1)",
        ("tests/ml_tasks/test_noised_metrics.py",),
    ),
    Mutant(
        "noised-metrics",
        "ml_tasks/noised_metrics.py",
        "    square = QUANTILE**2\n",
        "    square = QUANTILE**2 / 4\n",
        ("tests/ml_tasks/test_noised_metrics.py",),
    ),
    Mutant(
        "noised-metrics",
        "flows/steps.py",
        'if one.clear or name == "examples"}',
        "}",
        ("tests/flows/test_privacy.py",),
    ),
    Mutant(
        "1",
        "flows/site.py",
        'raise Refused(me, step, "this site has not advertised in this context")',
        "return",
        WORK,
    ),
    Mutant("1", "flows/site.py", "        check_model(model, agreed.described.bounds)\n", "", WORK),
    Mutant(
        "5",
        "flows/local_work.py",
        '        if len(examples) <= most or self.plan.privacy.unit == "record":\n',
        "        if len(examples) >= 0:\n",
        WORK,
    ),
    Mutant("12", "flows/site.py", "        self._check_attempts(context, plan)\n", "", WORK),
    Mutant(
        "12",
        "flows/site.py",
        "        ends = began + min(plan.deadlines.train_s, self._policy.max_train_s)\n",
        "        ends = began + plan.deadlines.train_s\n",
        WORK,
    ),
    Mutant("12", "flows/site.py", "        self.stop_work(training_name)\n", "", WORK),
    Mutant(
        "16",
        "flows/site.py",
        '        if plan.protection.timing == "fixed":\n',
        '        if plan.protection.timing == "never":\n',
        WORK,
    ),
    Mutant(
        "14",
        "protocols/messages.py",
        "        if message.answers != request.digest:\n",
        "        if not message.kind:\n",
        (
            "tests/attacks/test_answers.py",
            "tests/protocols/test_messages.py::test_an_answer_names_its_request_under_the_signature",
        ),
    ),
    Mutant(
        "14",
        "protocols/messages.py",
        "self.sender, self.receiver, self.answers)",
        "self.sender, self.receiver)",
        ("tests/attacks/test_answers.py", "tests/attacks/test_messages_that_bite.py"),
    ),
    Mutant(
        "14",
        "flows/session.py",
        "            check_answers(answer, request)\n",
        "            pass\n",
        ("tests/attacks/test_answers.py",),
    ),
    Mutant(
        "14",
        "flows/remote.py",
        "        check_answers(messages, question.request)\n",
        "",
        ("tests/flows/test_remote.py::test_a_forged_answer_is_thrown_away_and_the_true_one_taken",),
    ),
    Mutant(
        "14",
        "protocols/encoding.py",
        'raise Refused(site, "encode"',
        'raise BadInput(site, "encode"',
        ("tests/attacks/test_fail_closed.py::test_wrong_segments_are_refused_and_blame_no_data",),
    ),
    Mutant(
        "15",
        "deploy/warm.py",
        "            del sys.path[0]  # where the worker was started from, or its script lies\n",
        "            pass\n",
        ("tests/hostile/test_planted.py::test_a_worker_s_program_imports_nothing_from_where_it_was_started",),
    ),
    Mutant(
        "15",
        "protocols/files.py",
        "    os.fchmod(file.fileno(), 0o600)\n",
        "",
        ("tests/hostile/test_planted.py::test_a_worker_s_program_imports_nothing_from_where_it_was_started",),
    ),
    Mutant(
        "15",
        "deploy/child.py",
        '[sys.executable, "-P", "-m", "deploy.child"',
        '[sys.executable, "-m", "deploy.child"',
        ("tests/hostile/test_planted.py::test_a_party_of_fedseal_up_imports_nothing_from_where_it_was_started",),
    ),
    Mutant(
        "17",
        "flows/remote.py",
        "        if question is None:\n            self._answers.delete(key)\n",
        "        if question is None:\n            self._read.add(key)\n",
        ("tests/flows/test_floods.py",),
    ),
    Mutant(
        "17",
        "flows/remote.py",
        "                with suppress(MailboxError):  # what was read must not be what makes every look fail\n"
        "                    self._tidy()\n",
        "",
        ("tests/flows/test_floods.py::test_a_look_that_fails_still_tidies",),
    ),
    Mutant(
        "17",
        "flows/participation.py",
        " or len(seat.answered) > MOST_ANSWERED",
        "",
        ("tests/flows/test_floods.py::test_a_site_that_is_always_busy_forgets_what_it_has_answered",),
    ),
    Mutant(
        "B",
        "deploy/coordinate.py",
        "{in_markdown(why)}",
        "{why}",
        ("tests/deploy/test_coordinate.py::test_what_a_site_writes_is_text_in_the_table_of_results",),
    ),
    Mutant(
        "B",
        "flows/session.py",
        "    return letters.translate(LOOKALIKES)\n",
        "    return letters\n",
        ("tests/deploy/test_coordinate.py::test_what_a_site_writes_is_text_in_prefect_s_states_and_logs",),
    ),
    Mutant(
        "B",
        "deploy/coordinate.py",
        "    if (of_nobody or ",
        "    return folder\n    if (of_nobody or ",
        ("tests/deploy/test_coordinate.py::test_a_run_takes_up_its_own_folder_and_no_other_takes_it",),
    ),
    Mutant(
        "B",
        "flows/site.py",
        "            if self._settings is not None:\n",
        "            if self._settings is None:\n",
        ("tests/attacks/test_settings_bind.py",),
    ),
    Mutant(
        "13",
        "protocols/decisions.py",
        'where, values = ("training = ? AND plan = ?", [training, plan]) if plan else ("training = ?", [training])',
        'where, values = ("training = ?", [training])',
        ("tests/attacks/test_approval.py", "tests/protocols/test_decisions.py"),
    ),
    Mutant(
        "13",
        "protocols/decisions.py",
        '"ON CONFLICT (training, plan) DO UPDATE SET approved = excluded.approved",',
        '"ON CONFLICT (training, plan) DO NOTHING",',
        ("tests/attacks/test_approval.py", "tests/protocols/test_decisions.py"),
    ),
    Mutant(
        "13",
        "deploy/steward.py",
        "and found[0] in shown else None",
        "else None",
        ("tests/deploy/test_steward.py",),
    ),
    Mutant(
        "7",
        "protocols/decisions.py",
        "            if barred:\n",
        "            if False:\n",
        ("tests/attacks/test_approval.py", "tests/protocols/test_decisions.py"),
    ),
    Mutant(
        "what-runs-is-approved",
        "flows/joining.py",
        "    check_code(policy.code, plan, site)\n",
        "",
        ("tests/attacks/test_approval.py",),
    ),
    Mutant(
        "what-runs-is-approved",
        "flows/local_work.py",
        "        check_same_code(plan)\n",
        "",
        ("tests/flows/test_code_digest.py",),
    ),
    Mutant(
        "what-runs-is-approved",
        "flows/policy.py",
        '    import_from_source(module.partition(".")[0])\n',
        "",
        ("tests/flows/test_code_digest.py",),
    ),
    Mutant(
        "8",
        "flows/data_sets.py",
        "    refuse_unless(name in sets, ",
        "    sets, data = {name: DataSet(), **sets}, {name: DataSet(), **data}\n    refuse_unless(True, ",
        ("tests/attacks/test_trainings_add_up.py",),
    ),
    Mutant(
        "8",
        "flows/data_sets.py",
        "        if overlap(sets[one].path, sets[other].path):\n",
        "        if sets[one].path is not None and sets[one].path == sets[other].path:\n",
        ("tests/flows/test_data_sets.py",),
    ),
    Mutant(
        "8",
        "flows/data_sets.py",
        "        if budgets and said[name] not in (NO_BUDGET, *budgets):\n",
        "        if False:\n",
        ("tests/flows/test_data_sets.py",),
    ),
    Mutant(
        "8",
        "protocols/ledger.py",
        "    counted = related(groups, contents_of(entries))\n",
        "    counted = set(groups)\n",
        ("tests/protocols/test_ledger.py",),
    ),
    Mutant(
        "18",
        "flows/joining.py",
        "        check_roster(site, training, vault, chosen, plan, consortium)\n",
        "        pass\n",
        ("tests/attacks/test_trainings_add_up.py",),
    ),
    Mutant(
        "18",
        "flows/site.py",
        "            check_roster(self.identity.name, context.training, self.vault, chosen, plan, self._consortium)\n",
        "",
        ("tests/attacks/test_trainings_add_up.py",),
    ),
    Mutant(
        "18",
        "protocols/rosters.py",
        "    least = max(one.threshold for one in (*earlier, roster))\n",
        "    least = roster.threshold - 1\n",
        ("tests/protocols/test_rosters.py",),
    ),
    Mutant(
        "18",
        "flows/tables.py",
        '",".join(sorted(plan.sites))',
        '""',
        ("tests/attacks/test_trainings_add_up.py",),
    ),
    Mutant(
        "18",
        "flows/site.py",
        "        check_template(self.identity.name, plan, ask.template, self._consortium.authors)\n",
        "",
        ("tests/attacks/test_authors.py",),
    ),
    Mutant(
        "2",
        "protocols/vault.py",
        "row = number + 1, line, next_head(head, number + 1, line, salt), salt",
        "row = number + 1, line, next_head(head, number + 1, line), None",
        ("tests/attacks/test_what_adverts_tell.py",),
    ),
    Mutant(
        "2",
        "protocols/vault.py",
        'return hmac.digest(key, digest.encode(), "sha256").hex()',
        "return digest",
        ("tests/protocols/test_ledger.py",),
    ),
    Mutant(
        "6",
        "protocols/vault.py",
        "                or (kept is not None and kept != anchor.kept(changes))\n",
        "",
        ("tests/attacks/test_restored_vault.py",),
    ),
    Mutant(
        "6",
        "protocols/vault.py",
        "latest = max(anchor.changes, anchor.epoch(epoch))",
        "latest = anchor.changes",
        ("tests/attacks/test_restored_vault.py",),
    ),
    Mutant(
        "6",
        "protocols/history.py",
        "    return first.past is None or first.past.answers < second.past.answers\n",
        "    return True\n",
        ("tests/attacks/test_what_adverts_tell.py",),
    ),
    Mutant(
        "9",
        "protocols/decode.py",
        "    while len(second) > most:",
        "    while False:",
        ("tests/protocols/test_decode.py",),
    ),
    Mutant(
        "9",
        "protocols/secagg_coordinator.py",
        "    yield decode(shares, threshold=threshold)\n",
        "",
        ("tests/attacks/test_many_wrong_shares.py",),
    ),
    Mutant(
        "10",
        "protocols/history.py",
        "    return not (_follows(first, second) and _follows_in_training(first.past, second.past))",
        "    return one.entries > other.entries",
        ("tests/attacks/test_what_adverts_tell.py",),
    ),
    Mutant(
        "11",
        "protocols/audit.py",
        "    check_confirmed(receipt)\n",
        "",
        ("tests/attacks/test_receipts_hide_nothing.py",),
    ),
    Mutant(
        "11",
        "protocols/audit.py",
        "ended = not terms.private and (",
        "ended = (",
        ("tests/attacks/test_receipts_hide_nothing.py",),
    ),
    Mutant(
        "12",
        "flows/sandbox/seccomp.py",
        '("clone", _masked(0, THREAD | NOT_THREAD, THREAD)),',
        '("clone", [(RETURN, 0, 0, ALLOW)]),',
        ("tests/attacks/test_sandbox.py::test_no_escape_succeeds",),
    ),
    Mutant(
        "12",
        "flows/sandbox/seccomp.py",
        "FCNTL = (0, 1, 2, 3, 4, 5, 6, 7, 36,",
        "FCNTL = (0, 1, 2, 3, 4, 5, 6, 7, 8, 36,",
        ("tests/attacks/test_sandbox.py::test_no_escape_succeeds",),
    ),
    Mutant(
        "12",
        "flows/sandbox/syscalls.py",
        "\nread 0 63\n",
        "\nread 0 63\nsocket 41 198\n",
        ("tests/attacks/test_sandbox.py::test_no_call_that_leads_out_is_on_the_list_of_either_machine",),
    ),
    Mutant(
        "12",
        "flows/sandbox/child.py",
        '    if words["landlock"]:\n',
        "    if not words:\n",
        ("tests/attacks/test_sandbox.py::test_no_escape_succeeds",),
    ),
    Mutant(
        "12",
        "flows/sandbox/child.py",
        '    if words["seccomp"]:\n',
        "    if not words:\n",
        ("tests/attacks/test_sandbox.py::test_no_escape_succeeds",),
    ),
    Mutant(
        "12",
        "flows/sandbox/process.py",
        "    kept = {name: given[name] for name in PASSED if name in given}\n",
        "    kept = dict(given)\n",
        ("tests/attacks/test_sandbox.py::test_a_task_s_environment_is_a_short_list",),
    ),
    Mutant(
        "12",
        "flows/sandbox/frames.py",
        "    if words > MOST_JSON or size > most:\n",
        "    if words > MOST_JSON:\n",
        (
            "tests/attacks/test_sandbox.py::test_a_task_that_takes_too_much_is_killed_and_the_next_order_gets_a_new_process",
        ),
    ),
    Mutant(
        "12",
        "flows/sandbox/sandboxed.py",
        '            child.parent.tell("pause", child.number)\n',
        "",
        ("tests/attacks/test_sandbox.py::test_between_two_orders_nothing_of_a_task_runs",),
    ),
    Mutant(
        "12",
        "flows/sandbox/parent.py",
        '        if rules.setting == "required" and (lacks',
        "        if not rules and (lacks",
        ("tests/attacks/test_sandbox.py::test_a_site_that_requires_the_sandbox_does_not_work_without",),
    ),
    Mutant(
        "12",
        "flows/participation.py",
        "    seat.site.stop_work(seat.training)\n",
        "",
        ("tests/attacks/test_sandbox.py::test_a_participation_that_ends_stops_its_local_work",),
    ),
    # A unit's draws follow its place; what a module remembers reaches the next unit.
    Mutant("3", "ml_tasks/alone.py", "        _draw_from(seed, self._device)\n", "", ALONE),
    Mutant(
        "3",
        "ml_tasks/alone.py",
        "        if not _same(_state(self._model), self._built):\n            self._build()\n",
        "",
        ALONE,
    ),
    Mutant("3", "ml_tasks/private.py", "seed_of(*own)", "int(np.random.default_rng().integers(2**63))", ALONE),
    # A unit's gradient is computed among others, and so are the noised counts.
    Mutant(
        "4",
        "ml_tasks/private.py",
        "            gradient = model.gradient(*own, seed_of(*own))\n",
        "            until = [model.gradient(features[:one], targets[:one], 0) for one in (start, end)]\n"
        "            gradient = until[1] - until[0]\n",
        ALONE,
    ),
    Mutant(
        "4",
        "flows/local_work.py",
        "evaluate_alone(*given, counted, check_time=check_time)",
        "training.evaluate(*given, self.plan.counting)",
        ALONE,
    ),
    # A unit that fails is its own matter, and no unit is longer than 1 in exact numbers.
    Mutant(
        "unit-alone",
        "ml_tasks/alone.py",
        "        except BaseException as error:\n",
        "        except ArithmeticError as error:\n",
        ("tests/ml_tasks/test_private.py",),
    ),
    Mutant("unit-alone", "ml_tasks/private.py", "    if not 0 < square < np.inf:\n", "    if square == 0:\n", ALONE),
    Mutant(
        "unit-alone",
        "ml_tasks/private.py",
        "(gradient * (GRID / max(norm, clip))).astype(np.int64)",
        "np.rint(gradient * (GRID / max(norm, clip))).astype(np.int64)",
        ("tests/ml_tasks/test_independence.py",),
    ),
    Mutant(
        "unit-alone",
        "ml_tasks/alone.py",
        "        if training:\n            refuse_mixing(self._model)\n",
        "",
        ("tests/ml_tasks/test_private.py",),
    ),
    Mutant(
        "unit-alone",
        "ml_tasks/independence.py",
        "        refuse_mixing(model)\n",
        "        return\n",
        ("tests/ml_tasks/test_independence.py",),
    ),
)

MUTANTS = (*BEFORE_THE_SUM, *FINDINGS)


def apply(mutant: Mutant, tree: Path) -> None:
    """Replace the mutant's text in a copy of the tree.

    Raises:
        ValueError: the text does not stand there exactly once.
    """
    path = tree / mutant.file
    text = path.read_text(encoding="utf-8")
    if text.count(mutant.old) != 1:
        raise ValueError(f"{mutant.file}: the mutant's text stands there {text.count(mutant.old)} times, not once")
    path.write_text(text.replace(mutant.old, mutant.new), encoding="utf-8")


def copy_tree(into: Path) -> None:
    """Copy what the tests need."""
    for name in TREE:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, into / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, into / name)
    for name in TREE_TEXTS:
        shutil.copy(ROOT / name, into / name)


def survives(mutant: Mutant) -> str:
    """Run a mutant's tests; returns why it is not killed, or an empty text where it is."""
    with tempfile.TemporaryDirectory(prefix="fedseal-mutant-") as folder:
        tree = Path(folder)
        copy_tree(tree)
        try:
            apply(mutant, tree)
        except ValueError as error:
            return str(error)
        data = os.environ.get("FEDSEAL_TEST_DATA", str(ROOT.parent / "shared" / "data"))
        ran = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-x", "--timeout=240", "-p", "no:cacheprovider", *mutant.tests],
            cwd=tree,
            env={**os.environ, "PYTHONPATH": str(tree), "FEDSEAL_TEST_DATA": data},
            capture_output=True,
            text=True,
            check=False,
        )
    if ran.returncode == 1 or " failed" in ran.stdout.rpartition("\n")[0].rpartition("\n")[2]:
        return ""  # whatever the mutant's endless work makes of the end of the process
    return "no test fails" if ran.returncode == 0 else f"pytest could not run: {ran.stdout.strip()[-300:]}"


def main(findings: list[str]) -> int:
    """Try the mutants of the named findings, or all."""
    left = 0
    for mutant in MUTANTS:
        if findings and mutant.finding not in findings:
            continue
        why = survives(mutant)
        left += bool(why)
        print(f"{mutant.finding:>16} {mutant.file}: {'SURVIVED: ' + why if why else 'killed'}", flush=True)
    return 1 if left else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
