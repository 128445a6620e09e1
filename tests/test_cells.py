"""What an attack or a model does, good or bad, and what its cell makes of it."""

import re
from types import SimpleNamespace

import numpy as np
import pytest
import testkit_parts
from support import board_text, run

from harness.cell import failure
from harness.errors import UsageError
from harness.executors.inline import Inline
from harness.executors.process import Process
from harness.outcome import Outcome

LINF = 0


def test_an_attack_is_judged_at_each_budget_and_its_queries_are_counted(tmp_path):
    ran = run(board_text(["tiny"], ["ascend"]), tmp_path)
    record = ran.of("tiny", "ascend")
    a = record.arrays
    assert record.status == "ok"
    assert record.facts["access"] == "gradients"
    assert a["outcome"].shape == (20, 3)
    attacked = a["clean"] == a["y"]
    assert (a["forward"][attacked] == 3).all()
    assert (a["backward"][attacked] == 3).all()
    assert record.cost["forward"] == a["forward"].sum()
    found = a["outcome"] == Outcome.ADVERSARIAL
    assert found[:, 2].sum() > found[:, 0].sum()
    assert (a["label"] != a["y"][:, None])[found].all()
    assert (a["distance"][:, :, LINF] <= np.array([0.05, 0.1, 0.2]) * 1.0001 + 1e-6).all()
    assert "label8" in a


def test_results_do_not_depend_on_the_batch(tmp_path):
    """Bit for bit, for gradients, random numbers, restarts, targets and randomised models."""
    text = board_text(
        ["tiny", "noisy"],
        [
            "ascend:restarts=2",
            "ascend:target=random",
            "wander",
            "ascend:eot=2",
            "borrowed",
            "alone",
        ],
    )
    whole = run(text, tmp_path / "a", batch=64)
    few = run(text, tmp_path / "b", batch=8)
    assert len(whole.records) == len(few.records) == 14
    for key, record in whole.records.items():
        assert record.status == "ok", record.reason
        for name, values in record.arrays.items():
            assert np.array_equal(values, few.records[key].arrays[name]), (record.identity, name)


def test_results_do_not_depend_on_which_other_cells_ran(tmp_path):
    one = run(board_text(["noisy"], ["ascend"]), tmp_path / "a")
    many = run(board_text(["tiny", "noisy"], ["wander", "ascend", "alone"]), tmp_path / "b")
    a, b = one.of("noisy", "ascend"), many.of("noisy", "ascend")
    assert a.key == b.key
    assert all(np.array_equal(v, b.arrays[k]) for k, v in a.arrays.items())


def test_restarts_only_help_and_cost_the_robust_samples_alone(tmp_path):
    ran = run(board_text(["tiny"], ["wander", "wander:restarts=6"], eps=(0.2,)), tmp_path)
    once, more = (ran.of("tiny", a).arrays for a in ("wander", "wander:restarts=6"))
    fooled_once = once["outcome"][:, 0] == Outcome.ADVERSARIAL
    fooled = more["outcome"][:, 0] == Outcome.ADVERSARIAL
    assert fooled[fooled_once].all()
    attacked = more["clean"] == more["y"]
    robust = attacked & ~fooled
    assert (more["forward"][robust, 0] == 12).all()  # six times a query and a check
    assert (more["forward"][attacked & fooled_once, 0] == 2).all()


def test_restarting_what_cannot_differ_is_a_usage_error(tmp_path):
    with pytest.raises(UsageError, match="still"):
        run(board_text(["tiny"], ["still:restarts=2"]), tmp_path)


def test_targeted_attacks_reach_what_they_are_told_or_any_other_label(tmp_path):
    """As an option any wrong label counts; as the threat model's only the label asked for."""
    option = run(board_text(["tiny"], ["ascend:target=next"]), tmp_path / "a")
    a = option.of("tiny", "ascend:target=next").arrays
    assert "target" not in a
    text = board_text(["tiny"], ["ascend"], eps=(0.1, 0.4)) + 'target = "next"\n'
    b = run(text, tmp_path / "b").of("tiny", "ascend").arrays
    assert (b["target"] == (b["y"] + 1) % 3).all()
    found = b["outcome"] == Outcome.ADVERSARIAL
    assert found.any()
    assert ((b["label"] == b["target"][:, None]) == found)[b["outcome"] != Outcome.SKIPPED].all()


def test_a_minimum_norm_attack_runs_once_and_keeps_its_own_distances(tmp_path):
    ran = run(board_text(["tiny"], ["shortest"], norm="L2", eps=(0.1, 1.0)), tmp_path)
    a = ran.of("tiny", "shortest").arrays
    assert a["outcome"].shape == (20, 1)
    found = a["outcome"][:, 0] == Outcome.ADVERSARIAL
    assert found.any()
    assert len(set(a["distance"][found, 0, 1])) == found.sum()
    cell = next(e for e in ran.plan.cells.values() if e.kind == "attack")
    assert cell.identity["threat"]["eps"] is None


def test_a_budget_stops_an_attack_and_its_closest_query_is_judged(tmp_path):
    """`thirsty` walks to black and returns the clean image: under a budget it is cut at its 6th
    query, and what it had found by then counts."""
    attacks = ["thirsty", "thirsty:query_budget=5", "thirsty:query_budget=20"]
    ran = run(board_text(["tiny"], attacks, eps=(0.5,)), tmp_path)
    free, capped, roomy = (ran.of("tiny", a).arrays for a in attacks)
    assert (free["outcome"] != Outcome.ADVERSARIAL).all()
    assert (roomy["outcome"] != Outcome.ADVERSARIAL).all()
    found = capped["outcome"][:, 0] == Outcome.ADVERSARIAL
    assert found.any()
    assert capped["forward"].max() == 5
    assert free["forward"].max() == 11


def test_a_preparing_attack_leaves_rounds_and_its_seeds_are_not_evaluated(tmp_path):
    ran = run(board_text(["tiny"], ["student", "ascend"], more=""), tmp_path)
    record = ran.of("tiny", "student")
    assert record.status == "ok", record.reason
    assert record.facts["access"] == "substitute"
    told = {"match", "queries", "substitute_accuracy", "match_clean", "match_adversarial"}
    assert [set(r) for r in record.facts["rounds"]] == [told] * 2
    wrong, right = record.facts["rounds"]  # the first substitute says one class whatever it sees
    assert wrong["match_clean"] == np.mean(record.arrays["clean"] == record.arrays["clean"].max())
    assert (right["match_clean"], right["match_adversarial"]) == (1.0, [1.0] * 3)
    assert right["substitute_accuracy"] == np.mean(record.arrays["clean"] == record.arrays["y"])
    assert record.facts["rounds"][-1]["match"] == 1.0
    assert record.facts["preparation_queries"] == 12 + 2 * 24
    a = record.arrays
    assert a["round_label"].shape == (2, 20, 3)
    assert np.array_equal(a["round_label"][-1], a["label"])
    assert (a["forward"] == 0).all()  # judging is not charged
    assert record.cost["forward"] == record.facts["preparation_queries"] > 0
    assert np.array_equal(a["ids"], ran.of("tiny", "ascend").arrays["ids"])


def test_a_preparing_attack_may_run_out_of_queries(tmp_path):
    """12 queries name the seeds, 24 go to the first round: the second round is not reached."""
    budgets = ["student:query_budget=40", "student:query_budget=20"]
    ran = run(board_text(["tiny"], budgets), tmp_path)
    first = ran.of("tiny", budgets[0])
    assert (first.status, len(first.facts["rounds"])) == ("ok", 1)
    second = ran.of("tiny", budgets[1])
    assert second.status == "ok"
    assert second.facts["flags"] == ["its queries were spent after 0 rounds"]
    assert np.array_equal(second.arrays["label"], np.repeat(second.arrays["clean"][:, None], 3, 1))
    assert (second.arrays["distance"] == 0).all()
    assert not ran.leaderboard.gaps


def test_transfer_is_made_on_the_other_model_and_judged_on_this_one(tmp_path):
    """Made on `tiny`, judged on `tiny:shift=5`, of which the same attack knows nothing."""
    ran = run(board_text(["tiny:shift=0.3"], ["borrowed", "ascend"]), tmp_path)
    record = ran.of("tiny:shift=0.3", "borrowed")
    assert record.facts["access"] == "transfer"
    assert (record.arrays["forward"] == 0).all()
    fits = [c for c in ran.plan.cells.values() if c.kind == "fit"]
    assert sorted((c.label, c.row) for c in fits) == [("tiny", False), ("tiny:shift=0.3", True)]
    other = ran.of("tiny:shift=0.3", "ascend").arrays
    assert not np.array_equal(record.arrays["label"], other["label"])


def test_a_model_that_refers_to_another_is_fitted_after_it(tmp_path):
    ran = run(board_text(["distilled"], ["wander"]), tmp_path)
    assert ran.of("distilled").status == "ok"
    assert [e.cell.label for e in ran.events[:2]] == ["tiny", "distilled"]


def test_what_a_training_notes_is_in_its_record_and_told_once_it_ends(tmp_path, monkeypatch):
    plain = testkit_parts.Tiny.fit

    def fit(self, data, run):
        run.note("two\n  lines")
        run.note("and a second note")
        return plain(self, data, run)

    monkeypatch.setattr(testkit_parts.Tiny, "fit", fit)
    notes = ["two lines", "and a second note"]
    text = board_text(["tiny", "stepped"], ["wander"])
    for limit in (20, 10):  # trained, and from the cache of weights
        ran = run(text.replace("limit = 20", f"limit = {limit}"), tmp_path / str(limit))
        assert ran.of("tiny").facts["notes"] == notes
        assert ran.of("stepped").facts["notes"] == []
        assert "notes" not in ran.of("tiny", "wander").facts
        told = {str(e.cell): e.notes for e in ran.events if e.notes}
        assert told == {"fit tiny seed 0": tuple(notes)}
        monkeypatch.setattr(testkit_parts.Tiny, "fit", plain)


@pytest.mark.parametrize(("how", "reaches"), [("exact", 0), ("bpda", 1), ("surrogate", 1)])
def test_models_without_gradients_are_attacked_through_their_surrogate(tmp_path, how, reaches):
    label = "ascend" if how == "exact" else f"ascend:gradient={how}"
    ran = run(board_text(["stepped"], [label], eps=(0.2,)), tmp_path)
    if not reaches:
        assert "gradient=bpda" in ran.plan.incompatible[0].reason
        return
    record = ran.of("stepped", label)
    assert record.facts["access"] == how
    assert (record.arrays["outcome"] == Outcome.ADVERSARIAL).sum() > 5


def test_named_parts_are_given_to_those_that_declared_them(tmp_path):
    ran = run(board_text(["stepped", "tiny"], ["reads_threshold"]), tmp_path)
    assert ran.of("stepped", "reads_threshold").status == "ok"
    assert "needs the part threshold, which tiny has not" in ran.plan.incompatible[0].reason


@pytest.mark.parametrize(
    ("how", "outcome"),
    [("ball", Outcome.OUT_OF_BALL), ("box", Outcome.OUT_OF_BOX), ("nan", Outcome.NOT_FINITE)],
)
def test_invalid_images_are_no_success_and_are_counted(tmp_path, how, outcome):
    ran = run(board_text(["tiny"], [f"misbehaves:how={how}"]), tmp_path)
    record = ran.of("tiny", f"misbehaves:how={how}")
    assert record.status == "ok"
    attacked = record.arrays["clean"] == record.arrays["y"]
    assert (record.arrays["outcome"][attacked] == outcome).all()
    row = ran.leaderboard.tables[0].rows[0]
    assert row.cells[0].robust[0] == row.clean


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("shape", "returned images of shape"),
        ("dtype", "of type torch.float64"),
        ("none", "NoneType"),
        ("raises", r"ValueError: attack is broken \(testkit_parts.py:\d+\)"),
        ("exits", "SystemExit: bye"),
    ],
)
def test_a_broken_attack_fails_its_cell_in_one_line(tmp_path, how, reason):
    ran = run(board_text(["tiny"], [f"misbehaves:how={how}", "wander"]), tmp_path)
    record = ran.of("tiny", f"misbehaves:how={how}")
    assert record.status == "failed"
    assert not record.arrays
    assert "\n" not in record.reason
    assert re.search(reason, record.reason), record.reason
    assert ran.of("tiny", "wander").status == "ok"


def test_an_attack_that_asks_for_more_than_it_declared_fails(tmp_path):
    ran = run(board_text(["tiny"], ["greedy"]), tmp_path)
    assert "declared that it needs labels and asked for scores" in ran.of("tiny", "greedy").reason


def test_a_batch_that_memory_cannot_hold_is_halved(tmp_path):
    ran = run(board_text(["tiny"], ["misbehaves:how=memory"]), tmp_path, batch=64)
    assert ran.of("tiny", "misbehaves:how=memory").status == "ok"


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        ("nan", "NaN or infinite"),
        ("nan:kind=shape", r"shape \(60, 2\)"),
        ("nan:kind=raises", "forward is broken"),
        ("raises_in_fit", "no luck in training"),
    ],
)
def test_a_broken_model_is_a_row_with_a_reason_and_its_attacks_are_blocked(tmp_path, model, reason):
    ran = run(board_text([model, "tiny"], ["wander"], core=["wander"]), tmp_path)
    assert re.search(reason, ran.of(model).reason)
    assert ran.of(model, "wander") is None
    assert [e.status for e in ran.events if e.cell.label == model] == ["failed", "blocked"]
    rows = {r.model: r for r in ran.leaderboard.tables[0].rows}
    assert rows[model].rank is None
    assert rows["tiny"].rank == 1


@pytest.mark.parametrize(("model", "flag"), [("fickle", "between two calls"), ("batchy", "batch")])
def test_a_model_that_changes_its_mind_gains_nothing_by_it(tmp_path, model, flag):
    ran = run(board_text([model, "tiny"], ["ascend", "wander"]), tmp_path)
    facts = [ran.of(model).facts, ran.of(model, "ascend").facts]
    assert any(flag in f for fact in facts for f in fact["flags"])
    rows = {r.model: r for r in ran.leaderboard.tables[0].rows}
    assert rows[model].everything[0].mean <= rows["tiny"].everything[0].mean


def test_transfer_in_a_targeted_threat_is_driven_to_the_same_label(tmp_path):
    """On a twin of the source, transfer finds what the attack on the model itself finds."""
    text = board_text(["tiny"], ["borrowed", "ascend"], eps=(0.4,)) + 'target = "next"\n'
    ran = run(text, tmp_path)
    own, borrowed = (ran.of("tiny", a).arrays["outcome"] for a in ("ascend", "borrowed"))
    assert (own == Outcome.ADVERSARIAL).any()
    assert abs((own == Outcome.ADVERSARIAL).mean() - (borrowed == Outcome.ADVERSARIAL).mean()) < 0.2


def test_a_randomised_model_may_be_a_source(tmp_path):
    ran = run(board_text(["tiny"], ["borrowed:source=noisy"]), tmp_path)
    assert ran.of("tiny", "borrowed:source=noisy").status == "ok"


def test_bpda_goes_through_the_surrogate_of_a_randomised_model_too(tmp_path):
    labels = ["ascend", "ascend:gradient=bpda"]
    ran = run(board_text(["noisy_steps"], labels, eps=(0.2,)), tmp_path)
    exact, bpda = (ran.of("noisy_steps", a).arrays["outcome"] for a in labels)
    assert (bpda == Outcome.ADVERSARIAL).sum() > (exact == Outcome.ADVERSARIAL).sum() + 3


@pytest.mark.parametrize("how", ["zeroes", "trains", "edits_x"])
def test_what_an_attack_does_to_the_model_or_the_images_gains_it_nothing(tmp_path, how):
    ran = run(board_text(["mlp:epochs=1"], [f"vandal:how={how}"]), tmp_path)
    record = ran.of("mlp:epochs=1", f"vandal:how={how}")
    if how == "zeroes":
        assert record.status == "failed"
        assert "changed the model's weights" in record.reason
    else:
        assert record.status == "ok"
        attacked = record.arrays["clean"] == record.arrays["y"]
        assert (record.arrays["outcome"][attacked] == Outcome.ROBUST).all()


@pytest.mark.parametrize("limit", [20, 24])
def test_a_forward_that_edits_its_input_is_refused_whatever_the_batch(tmp_path, limit):
    text = board_text(["inplace"], ["wander"]).replace("limit = 20", f"limit = {limit}")
    ran = run(text, tmp_path)
    assert ran.of("inplace").status == "failed"
    assert "changes its input in place" in ran.of("inplace").reason


@pytest.mark.parametrize("kind", ["attribute", "shape"])
def test_a_classifier_that_is_more_than_its_state_is_refused(tmp_path, kind):
    ran = run(board_text([f"forgetful:kind={kind}"], ["wander"]), tmp_path)
    record = ran.of(f"forgetful:kind={kind}")
    assert record.status == "failed"
    assert "build()" in record.reason


@pytest.mark.parametrize("model", ["undeclared", "hidden_draws"])
def test_a_random_classifier_is_told_so_and_not_that_its_state_lacks_something(tmp_path, model):
    ran = run(board_text([model], ["wander"]), tmp_path)
    record = ran.of(model)
    assert record.status == "failed"
    assert "its answers change between calls" in record.reason
    assert "randomised=True" in record.reason
    assert "parameters and buffers" not in record.reason


def test_the_place_of_an_error_is_the_plugins_last_line_before_a_librarys(tmp_path, capfd):
    ran = run(board_text(["too_few_classes"], ["wander"]), tmp_path)
    reason = ran.of("too_few_classes").reason
    assert re.fullmatch(r"IndexError: .* \(testkit_parts\.py:\d+\)", reason), reason
    assert "Traceback" not in capfd.readouterr().err


def test_the_place_has_a_line_of_the_attacks_author_and_of_the_models():
    def module(name, text):
        names = {"__name__": name}
        exec(compile(text, f"{name.replace('.', '/')}.py", "exec"), names)
        return names

    attack = module("acme.attack", "def climb(forward):\n    return forward(1)\n")
    model = module("svm", "def forward(x):\n    return x + 'a'\n")
    with pytest.raises(TypeError) as raised:
        attack["climb"](model["forward"])
    for packages, place in [
        ({"acme", "svm"}, "(attack.py:2, svm.py:2)"),
        ({"acme"}, "(attack.py:2)"),
        (set(), "(svm.py:2)"),
    ]:
        reason = failure(raised.value, SimpleNamespace(packages=packages)).reason
        assert reason.startswith("TypeError: ")
        assert reason.endswith(place)


@pytest.mark.parametrize("executor", [Inline, lambda: Process(1)])
def test_a_plugins_traceback_is_on_stderr_where_it_is_asked_for(
    tmp_path, capfd, monkeypatch, executor
):
    monkeypatch.setenv("HARNESS_DEBUG", "1")
    run(board_text(["raises_in_fit"], ["wander"]), tmp_path, executor())
    err = capfd.readouterr().err
    assert err.count("Traceback") == 1
    assert 'raise ValueError("no luck in training")' in err


def test_a_budget_is_each_samples_own_whatever_the_batch(tmp_path):
    """`uneven` asks more for some samples; those that have spent theirs end nobody else's."""
    text = board_text(["tiny"], ["uneven:query_budget=10"], eps=(0.5,))
    whole = run(text, tmp_path / "a", batch=64).of("tiny", "uneven:query_budget=10").arrays
    few = run(text, tmp_path / "b", batch=8).of("tiny", "uneven:query_budget=10").arrays
    assert set(whole["forward"][:, 0]) == {6, 10}
    for name, values in whole.items():
        assert np.array_equal(values, few[name]), name


def test_rounds_draw_from_seeded_globals_and_judging_is_under_no_budget(tmp_path):
    attacks = ["student:chance=true", "student:direct=true,query_budget=40"]
    text = board_text(["tiny"], attacks)
    first, second = (run(text, tmp_path / f, force=True) for f in "ab")
    a, b = (r.of("tiny", attacks[0]) for r in (first, second))
    assert a.facts["rounds"] == b.facts["rounds"]
    direct = first.of("tiny", attacks[1])
    assert direct.status == "ok", direct.reason
    assert direct.arrays["outcome"].shape == (20, 3)
    assert direct.arrays["forward"].any()


@pytest.mark.parametrize(
    ("model", "attack", "leaves"),
    [
        ("tiny", "unjudged", True),
        ("noisy", "unjudged", False),
        ("stepped", "unjudged:gradient=bpda", False),
        ("tiny", "student:attack=unjudged", False),
        ("tiny", "borrowed:attack=unjudged", False),
    ],
)
def test_samples_leave_only_where_the_model_crafted_on_is_judged(tmp_path, model, attack, leaves):
    record = run(board_text([model], [attack]), tmp_path).of(model, attack)
    assert ("this target is judged" in record.reason) == leaves
    assert record.status == ("failed" if leaves else "ok")


def test_more_restarts_never_lengthen_a_minimum_norm_distance(tmp_path):
    """`stumbles` gives x itself at first, then points at random distances."""
    labels = [f"stumbles:restarts={n}" for n in (2, 3, 5)]
    ran = run(board_text(["tiny"], labels, norm="L2", eps=(1.0,)), tmp_path)
    distances = []
    for label in labels:
        a = ran.of("tiny", label).arrays
        found = a["outcome"][:, 0] == Outcome.ADVERSARIAL
        distances.append(np.where(found, a["distance"][:, 0, 1], np.inf))
    assert (distances[1] <= distances[0]).all()
    assert (distances[2] <= distances[1]).all()
    assert (distances[2] < distances[0]).any()


def test_restarts_through_a_surrogate_ask_the_model_that_is_judged(tmp_path):
    """The surrogate is always fooled, the model never: every restart is made."""
    ran = run(
        board_text(["stepped"], ["wander:gradient=surrogate,restarts=4"], eps=(0.01,)), tmp_path
    )
    a = ran.of("stepped", "wander:gradient=surrogate,restarts=4").arrays
    assert (a["forward"][a["clean"] == a["y"]] == 8).all()


def test_seed_points_of_one_attack_change_no_other_cells_key(tmp_path):
    one = run(board_text(["tiny"], ["ascend"]), tmp_path / "a")
    two = run(board_text(["tiny"], ["ascend", "student"]), tmp_path / "b")
    assert one.records.keys() < two.records.keys()


def test_corruptions_are_averaged_over_draws_on_all_samples(tmp_path):
    ran = run(
        board_text(["tiny"], ["fog"], norm="corruption", eps=(0.0, 1.0)) + "draws = 4\n", tmp_path
    )
    a = ran.of("tiny", "fog").arrays
    assert a["draw_correct"].shape == (20, 2, 4)
    clean = a["clean"] == a["y"]
    assert (a["draw_correct"][:, 0] == clean[:, None]).all()
    assert len(np.unique(a["draw_correct"][:, 1], axis=1).T) > 1


def test_all_samples_attacks_the_misclassified_too(tmp_path):
    model = "tiny:shift=1"
    some = run(board_text([model], ["wander"]), tmp_path / "a").of(model, "wander").arrays
    every = run(
        board_text([model], ["wander"], more="all_samples = true"), tmp_path / "b"
    ).of(model, "wander").arrays  # fmt: skip
    wrong = some["clean"] != some["y"]
    assert wrong.any()
    assert (some["outcome"][wrong] == Outcome.SKIPPED).all()
    assert (every["outcome"][wrong] != Outcome.SKIPPED).all()
    assert np.array_equal(some["label"][~wrong], every["label"][~wrong])
