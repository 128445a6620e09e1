"""What `harness verify` finds in honest records, in forged ones and in torn ones."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
from support import board_text, run

from harness.outcome import Outcome
from harness.recheck import verify_records
from harness.run import Settings
from harness.session import cache_folder


def checked(ran) -> dict[str, str | None]:
    """What is said of each cell, by its name."""
    settings = Settings(cache=cache_folder())
    return {str(cell): told for cell, told in verify_records(ran.plan, ran.store, settings)}


def rewrite(ran, model, attack="", *, keep=True, **changes):
    """Store a record again with fields changed; its images stay as they are."""
    record = ran.of(model, attack)
    images = ran.store.examples(record.key) if attack and keep else None
    ran.store.write(replace(record, **changes), images)


def lie(ran, model, attack="", **arrays):
    known = ran.of(model, attack).arrays
    rewrite(ran, model, attack, arrays={**known, **arrays})


@pytest.fixture
def ran(tmp_path):
    return run(board_text(["tiny"], ["ascend"]), tmp_path, keep_examples=True)


FIT, ASCEND = "fit tiny seed 0", "ascend on tiny Linf seed 0"


@pytest.mark.parametrize(
    ("models", "attacks", "norm", "more"),
    [
        (["tiny", "noisy"], ["ascend", "wander:restarts=2", "student", "borrowed"], "Linf", ""),
        (["tiny"], ["shortest", "ascend:target=next"], "L2", ""),
        (["tiny"], ["ascend"], "L1", "all_samples = true"),
        (["batchy"], ["wander", "student", "student:query_budget=5"], "Linf", ""),
        (["tiny"], ["misbehaves:how=ball", "misbehaves:how=nan", "misbehaves:how=box"], "Linf", ""),
    ],
)
def test_honest_records_agree(tmp_path, models, attacks, norm, more):
    ran = run(board_text(models, attacks, norm, more=more), tmp_path, keep_examples=True)
    told = checked(ran)
    assert len(told) == len(ran.plan.cells) == len(ran.records)
    assert set(told.values()) == {""}


@pytest.mark.parametrize("mode", ["least", "next", "random"])
def test_honest_targeted_records_agree(tmp_path, mode):
    text = board_text(["tiny"], ["ascend"]) + f'target = "{mode}"\n'
    ran = run(text, tmp_path, keep_examples=True)
    assert "target" in ran.of("tiny", "ascend").arrays
    assert checked(ran) == {FIT: "", ASCEND: ""}
    target = (ran.of("tiny", "ascend").arrays["target"] + 1) % 3
    lie(ran, "tiny", "ascend", target=target)
    assert "target of 20" in checked(ran)[ASCEND]


def test_nothing_may_be_said_to_be_skipped(ran):
    """Skipped samples are not those that the model gets wrong: nobody would be attacked."""
    outcome = ran.of("tiny", "ascend").arrays["outcome"]
    lie(ran, "tiny", "ascend", outcome=np.zeros_like(outcome))
    assert "said to be skipped" in checked(ran)[ASCEND]


def test_clean_labels_are_predicted_again(tmp_path):
    """In the fit record and in the attack's, even where both tell the same lie."""
    text = board_text(["tiny:shift=0.4"], ["ascend"])
    ran = run(text, tmp_path, keep_examples=True)
    model = ran.plan.manifest.models[0].label
    wrong = ran.of(model).arrays["clean"] != ran.of(model).arrays["y"]
    assert wrong.any()
    assert set(checked(ran).values()) == {""}
    known = ran.of(model, "ascend").arrays
    lie(ran, model, clean=known["y"])
    robust = np.where(wrong[:, None], Outcome.ROBUST, known["outcome"]).astype(np.uint8)
    lie(ran, model, "ascend", clean=known["y"], outcome=robust)
    assert all(f"clean of {wrong.sum()}" in told for told in checked(ran).values())


def test_a_sample_that_is_skipped_must_have_been_wrong(ran):
    """To skip a sample its clean label has to be a lie as well; and that is seen."""
    a = ran.of("tiny", "ascend").arrays
    lie(ran, "tiny", "ascend", clean=(a["y"] + 1) % 3, outcome=np.zeros_like(a["outcome"]))
    assert "clean of" in checked(ran)[ASCEND]


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("norm2", lambda v: v * 1.001),
        ("outcome", lambda v: np.where(v == Outcome.ADVERSARIAL, Outcome.ROBUST, v)),
        ("outcome", lambda v: np.where(v == Outcome.ROBUST, Outcome.UNSTABLE, v)),
        ("outcome", lambda v: np.where(v == Outcome.ADVERSARIAL, Outcome.OUT_OF_BALL, v)),
        ("label", lambda v: (v + 1) % 3),
        ("distance", lambda v: v * np.float32(1.001)),
        ("label8", lambda v: (v + 1) % 3),
        ("distance8", lambda v: v * np.float32(1.001)),
    ],
)
def test_every_array_is_compared(ran, name, change):
    known = ran.of("tiny", "ascend").arrays[name]
    lie(ran, "tiny", "ascend", **{name: change(known).astype(known.dtype)})
    told = checked(ran)
    assert told[FIT] == ""
    assert told[ASCEND].startswith(f"differs in {name} of ")


def test_one_sample_is_enough(ran):
    label = ran.of("tiny", "ascend").arrays["label"].copy()
    label[7, 1] = (label[7, 1] + 1) % 3
    lie(ran, "tiny", "ascend", label=label)
    assert checked(ran)[ASCEND] == "differs in label of 1 of 20 samples"


def test_ids_and_labels_are_those_of_the_slice(ran):
    for attack in ("", "ascend"):
        lie(ran, "tiny", attack, ids=ran.of("tiny", attack).arrays["ids"] + 1)
    assert all("ids of 20" in told for told in checked(ran).values())


def test_arrays_may_neither_be_left_out_nor_added(ran):
    arrays = dict(ran.of("tiny", "ascend").arrays)
    del arrays["label8"], arrays["distance8"]
    rewrite(ran, "tiny", "ascend", arrays=arrays)
    assert checked(ran)[ASCEND] == "arrays missing or not expected: distance8, label8"
    lie(ran, "tiny", "ascend", label=np.zeros((3, 3), int))
    assert "label is int64 (3, 3)" in checked(ran)[ASCEND]


def test_a_label_said_not_to_settle_has_to_do_so_again(tmp_path):
    ran = run(board_text(["batchy"], ["wander"]), tmp_path, keep_examples=True)
    name = "wander on batchy Linf seed 0"
    outcome = ran.of("batchy", "wander").arrays["outcome"]
    assert (outcome == Outcome.UNSTABLE).any()
    robust = np.where(outcome == Outcome.UNSTABLE, Outcome.ROBUST, outcome).astype(np.uint8)
    lie(ran, "batchy", "wander", outcome=robust)
    assert "differs in outcome" in checked(ran)[name]


WANDER = "wander on batchy Linf seed 0"


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize(
    "hide",
    [
        {"flags": [], "batch_dependent": 0},
        {"flags": []},
        {"flags": ["labels of 1 of 32 images depend on the batch"]},
        {"flags": [], "batch_dependent": []},
    ],
)
def test_labels_that_depend_on_the_batch_are_not_kept_quiet(tmp_path, hide, keep):
    """The outcomes tell them, whether the images were kept or not."""
    ran = run(board_text(["batchy"], ["wander"]), tmp_path, keep_examples=keep)
    record = ran.of("batchy", "wander")
    assert record.facts["batch_dependent"] > 1
    (flag,) = record.facts["flags"]
    assert checked(ran)[WANDER] == ("" if keep else None)
    rewrite(ran, "batchy", "wander", keep=keep, facts={**record.facts, **hide})
    assert checked(ran)[WANDER] == f"its facts keep quiet: {flag}"
    rewrite(ran, "batchy", "wander", keep=keep, facts={**record.facts, "batch_dependent": 0})
    assert re.search(r"its facts say batch_dependent 0, not \d", checked(ran)[WANDER])


@pytest.mark.parametrize(("name", "forged"), [("access", "labels"), ("kind", "minimum-norm")])
def test_what_an_attack_was_is_the_plans_word(tmp_path, name, forged):
    ran = run(board_text(["tiny"], ["ascend"], eps=(0.1,)), tmp_path, keep_examples=True)
    facts = ran.of("tiny", "ascend").facts
    rewrite(ran, "tiny", "ascend", facts={**facts, name: forged})
    assert checked(ran)[ASCEND] == f"its facts say {name} {forged!r}, not {facts[name]!r}"


def test_what_a_corruption_was_is_the_plans_word_too(tmp_path):
    ran = run(board_text(["tiny"], ["fog"], norm="corruption", eps=(0.1,)), tmp_path)
    facts = ran.of("tiny", "fog").facts
    rewrite(ran, "tiny", "fog", keep=False, facts={**facts, "access": "gradients"})
    said = checked(ran)["fog on tiny corruption seed 0"]
    assert said == f"its facts say access 'gradients', not {facts['access']!r}"


def test_the_labels_of_the_last_round_are_the_rows(tmp_path):
    ran = run(board_text(["tiny"], ["student"]), tmp_path, keep_examples=True)
    labels = ran.of("tiny", "student").arrays["round_label"].copy()
    labels[-1, 0] = (labels[-1, 0] + 1) % 3
    lie(ran, "tiny", "student", round_label=labels)
    said = checked(ran)["student on tiny Linf seed 0"]
    assert said == "the labels of its last round are not its labels"


def test_clean_labels_that_change_between_two_calls_are_not_kept_quiet(tmp_path):
    """How many do may be chance, so that is not compared; that some do is."""
    ran = run(board_text(["fickle"], ["ascend"]), tmp_path, keep_examples=True)
    facts = ran.of("fickle").facts
    (flag,) = facts["flags"]
    name = "fit fickle seed 0"
    assert checked(ran)[name] == ""
    fewer = ["labels of 1 of 20 images changed between two calls"]
    rewrite(ran, "fickle", facts={**facts, "flags": fewer})
    assert checked(ran)[name] == ""
    rewrite(ran, "fickle", facts={**facts, "flags": []})
    assert checked(ran)[name] == f"its facts keep quiet: {flag}"
    rewrite(ran, "fickle", facts={**facts, "clean_accuracy": 1.0})
    assert checked(ran)[name] == "its facts say clean_accuracy 1.0, not 0.0"


def test_weights_are_compared(ran):
    rewrite(ran, "tiny", weights="0" * 64)
    told = checked(ran)
    assert "other weights" in told[FIT]
    assert told[ASCEND].startswith("stale")
    rewrite(ran, "tiny", "ascend", weights="0" * 64)
    assert "weights of tiny" in checked(ran)[ASCEND]


def test_lost_weights_are_trained_again(ran, cache):
    for path in (cache / "weights").iterdir():
        path.unlink()
    assert checked(ran) == {FIT: "", ASCEND: ""}


def examples_file(ran):
    (path,) = ran.store.folder.glob("*.examples.safetensors")
    return path


@pytest.mark.parametrize("size", [0, 100, None])
def test_torn_or_missing_images_are_no_agreement(ran, size):
    path = examples_file(ran)
    data = path.read_bytes()
    path.unlink()
    if size is not None:
        path.write_bytes(data[:size])
    told = checked(ran)
    assert told[FIT] == ""
    assert path.name in told[ASCEND]


@pytest.mark.parametrize(
    "images", [{"x_adv": np.zeros((20, 2, 1, 4, 4), np.float32)}, {"other": np.zeros(3)}]
)
def test_images_of_another_form_are_no_agreement(ran, images):
    ran.store.write(ran.of("tiny", "ascend"), images)
    assert "kept images have the shape" in checked(ran)[ASCEND]


def test_other_images_are_no_agreement(ran):
    record = ran.of("tiny", "ascend")
    images = ran.store.examples(record.key)["x_adv"]
    ran.store.write(record, {"x_adv": np.ascontiguousarray(images[:, ::-1])})
    assert "distance of" in checked(ran)[ASCEND]
    ran.store.write(record, {"x_adv": images.astype(np.float64)})
    assert "float64" in checked(ran)[ASCEND]


def test_a_torn_record_is_no_agreement(ran):
    key = ran.of("tiny", "ascend").key
    path = ran.store.folder / f"{key}.json"
    path.write_bytes(path.read_bytes()[:50])
    told = checked(ran)
    assert told[FIT] == ""
    assert "torn" in told[ASCEND]


def test_an_attack_without_its_models_record_is_no_agreement(ran):
    ran.store.discard(ran.of("tiny").key)
    assert checked(ran) == {ASCEND: checked(ran)[ASCEND]}
    assert "stale" in checked(ran)[ASCEND]


def test_what_was_not_kept_cannot_be_told(tmp_path):
    ran = run(board_text(["tiny"], ["ascend"]), tmp_path / "a")
    assert checked(ran) == {FIT: "", ASCEND: None}
    text = board_text(["tiny"], ["fog"], norm="corruption", eps=(0.1,))
    ran = run(text, tmp_path / "b", keep_examples=True)
    assert checked(ran) == {FIT: "", "fog on tiny corruption seed 0": None}


def test_what_failed_is_not_checked(tmp_path):
    ran = run(board_text(["raises_in_fit"], ["ascend"]), tmp_path, keep_examples=True)
    assert checked(ran) == {}
