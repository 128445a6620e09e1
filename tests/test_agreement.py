"""`harness agreement`: what one model says of the images that changed the others' labels."""

from __future__ import annotations

import json
import math
import shutil

import numpy as np
import pytest
from click.testing import CliRunner
from handmade import Handmade, threat
from safetensors.numpy import load_file
from support import board_text, run

from harness.agreement import Agreement, Tally, agreements
from harness.cli import cli
from harness.errors import PluginError, UsageError
from harness.outcome import Outcome
from harness.recheck import verify_records
from harness.records import Store
from harness.render.agreement import grid, sections
from harness.run import Settings, weights_key
from harness.session import cache_folder
from harness.stand_in import StandIn

# Counted by hand. Eight samples, the last of which A gets wrong. Each image's one pixel says which
# attack column and which sample it is of, so the judge can look up what it is to answer.

Y = [0, 0, 0, 0, 1, 1, 1, 1]
CLEAN = [0, 0, 0, 0, 1, 1, 1, 0]
COLUMNS = {
    # seed: outcomes, A's labels, and the judge's, of each ε
    0: [
        ("AAArbuA-", "12101000", "1100--0-"),  # of 0, 1, 2, 6: change, neither, no, change
        ("ArrrrrrA", "20001112", "2------2"),  # of 0 alone: 7 was wrong before
    ],
    1: [
        ("rrrrrrr-", "00001110", "--------"),
        ("AAAxnrA-", "21100000", "0121--1-"),  # no change, change, neither; 6: no change
    ],
}


class LookedUp:
    """Answers from the table above, and nothing else."""

    label, shape = "J", (1, 1, 1)

    def labels(self, seed, x, ids):
        column, sample = np.divmod(x[:, 0, 0, 0].astype(int), 10)
        assert sample.tolist() == list(ids)
        return np.array([int(COLUMNS[seed][c][2][i]) for c, i in zip(column, sample, strict=True)])


def digits(text):
    return [int(c) for c in text]


def images(columns, samples=8):
    value = 10 * np.arange(columns) + np.arange(samples)[:, None]
    return {"x_adv": value[:, :, None, None, None].astype(np.float32)}


def made(**changes):
    fields = {"models": ("A", "J"), "attacks": ("pgd",), "seeds": (0, 1), **changes}
    board = Handmade(Y, (threat(),), **fields)
    for seed in board.seeds:
        board.fit("A", CLEAN, seed)
        board.fit("J", Y if seed else [0] * 8, seed)
    return board


def attacked(board, model="A", seed=0, **more):
    outcomes, labels, _ = zip(*COLUMNS[seed], strict=True)
    distance = np.full((2, 8), 0.1)
    return board.attack(
        model, "pgd", CLEAN, outcomes, [*map(digits, labels)], distance, seed=seed, **more
    )


def stored(board, folder, kept):
    """A store of the board's records, with images for the keys of `kept`."""
    store = Store(folder)
    for key, record in board.records.items():
        store.write(record, kept.get(key))
    return store


@pytest.fixture
def by_hand(tmp_path):
    board = made()
    keys = [attacked(board, seed=seed) for seed in (0, 1)]
    attacked(board, "J")  # the judge's own images are not its to judge
    store = stored(board, tmp_path, {key: images(2) for key in keys})
    return agreements(board.manifest(), store, board.records, LookedUp())


def test_images_are_counted_as_by_hand(by_hand):
    assert by_hand.rows == (
        Agreement("A", "pgd", "Linf", "0.1", (0, 1), Tally(4, 2, 1)),
        Agreement("A", "pgd", "Linf", "0.2", (0, 1), Tally(1, 1, 0) + Tally(4, 1, 2)),
    )
    assert by_hand.gaps == ()
    assert by_hand.clean == (0.5 + 1) / 2


def test_shares_are_of_the_images_and_have_wilson_intervals(by_hand):
    """2 of 4 is [15.0, 85.0], 1 of 4 [4.6, 69.9], 2 of 5 [11.8, 76.9], 1 of 5 [3.6, 62.4]."""
    assert [row[3:] for row in grid(by_hand).rows] == [
        ("0.1", "0, 1", "4", "50.0 [15.0, 85.0]", "25.0 [4.6, 69.9]", "25.0 [4.6, 69.9]"),
        ("0.2", "0, 1", "5", "40.0 [11.8, 76.9]", "40.0 [11.8, 76.9]", "20.0 [3.6, 62.4]"),
    ]


def test_the_heading_names_it_a_stand_in(by_hand):
    ((title, _),) = sections("b", by_hand)
    assert "J as a stand-in for people" in title
    assert "J is right on 75.0 % of the clean images" in title


def test_without_images_there_are_no_shares(tmp_path):
    board = made(seeds=(0,))
    outcomes = ["rrrrrrr-"] * 2
    labels, distance = [CLEAN] * 2, np.zeros((2, 8))
    key = board.attack("A", "pgd", CLEAN, outcomes, labels, distance)
    store = stored(board, tmp_path, {key: images(2)})
    found = agreements(board.manifest(), store, board.records, LookedUp())
    assert [row[5:] for row in grid(found).rows] == [("0", "–", "–", "–")] * 2


def test_a_label_that_is_the_true_one_is_no_change_whatever_the_record_says(tmp_path):
    board = made(seeds=(0,))
    labels = [digits("02100000"), digits("00000000")]
    outcomes, distance = ["AArrrrr-", "rrrrrrr-"], np.zeros((2, 8))
    key = board.attack("A", "pgd", CLEAN, outcomes, labels, distance)
    store = stored(board, tmp_path, {key: images(2)})
    found = agreements(board.manifest(), store, board.records, LookedUp())
    assert found.rows[0].tally == Tally(1, 0, 0)


def told(found):
    return {(g.model, g.seeds): (g.status, g.reason) for g in found.gaps}


def test_each_cell_that_is_not_judged_is_listed_with_its_reason(tmp_path):
    """Of A: judged with seed 0, without images with seed 1; all others not judged."""
    models = ("A", "J", "failed", "absent", "unfitted", "misfit", "twisted", "short", "double")
    board = made(models=models, incompatible={("misfit", "pgd", "Linf"): "has no gradients"})
    for model in models[2:]:
        for seed in () if model == "unfitted" else (0, 1):
            board.fit(model, CLEAN, seed)
    kept = {attacked(board): images(2)}
    attacked(board, seed=1)
    board.add("failed", 0, "pgd", "Linf", status="failed", reason="no luck")
    broken = {
        "twisted": {"x_adv": np.zeros((8, 2, 1, 2, 1), np.float32)},
        "short": {"other": np.zeros(3)},
        "double": {"x_adv": np.zeros((8, 2, 1, 1, 1))},
    }
    kept |= {attacked(board, model): wrong for model, wrong in broken.items()}
    store = stored(board, tmp_path, kept)
    found = agreements(board.manifest(), store, board.records, LookedUp())
    assert [(row.model, row.seeds) for row in found.rows] == [("A", (0,))] * 2
    gaps = told(found)
    assert gaps["A", (1,)] == ("not kept", "the run was without --keep-examples")
    assert gaps["failed", (0,)] == ("failed", "no luck")
    assert gaps["absent", (0, 1)][0] == "not run"
    assert gaps["unfitted", (0, 1)][0] == "not fitted"
    assert gaps["misfit", (0, 1)] == ("incompatible", "has no gradients")
    for model, form in [("twisted", "float32 (8, 2, 1, 2, 1)"), ("double", "float64 (8, 2")]:
        assert gaps[model, (0,)][0] == "unreadable"
        assert f"the kept images are {form}" in gaps[model, (0,)][1]
    assert gaps["short", (0,)][0] == "unreadable"


def test_torn_images_are_a_gap(tmp_path):
    board = made(seeds=(0,))
    key = attacked(board)
    store = stored(board, tmp_path, {key: images(2)})
    (path,) = store.folder.glob("*.examples.safetensors")
    path.write_bytes(path.read_bytes()[:50])
    found = agreements(board.manifest(), store, board.records, LookedUp())
    assert found.rows == ()
    assert found.kept
    ((status, reason),) = told(found).values()
    assert status == "unreadable"
    assert path.name in reason


@pytest.mark.parametrize("judge_fit", ["absent", "failed"])
def test_a_judge_without_a_fit_asks_for_a_run(tmp_path, judge_fit):
    board = made(seeds=(0,))
    key = attacked(board)
    fit = board._entry("J", 0, "", "").key
    del board.records[fit]
    if judge_fit == "failed":
        board.add("J", status="failed", reason="no luck in training")
    store = stored(board, tmp_path, {key: images(2)})
    with pytest.raises(UsageError, match=r"no fit with seed 0 .* `harness run`"):
        agreements(board.manifest(), store, board.records, LookedUp())


# Linear models of one number, the image's mean m: class 1 from m = 90/255, class 2 from 150/255,
# both moved by −51/240 · shift (see `Tiny`). `shortest` darkens an image until its label changes.

SHIFT = 0.2
MODELS = """
models = [
    { use = "tiny", label = "M" },
    { use = "tiny", shift = 0.2, label = "darker" },
    { use = "tiny", shift = -0.2, label = "lighter" },
]
"""
THREE = board_text(
    [], ["shortest", "ascend"], norm="L2", eps=(0.2, 0.6, 1.2), more="seeds = [0, 1]"
)
THREE = THREE.replace("models = []\n", MODELS)


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """The board of three models, run once, and its cache."""
    root = tmp_path_factory.mktemp("three")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HARNESS_CACHE", str(root / "cache"))
        ran = run(THREE, root / "board", keep_examples=True)
    return root, ran


@pytest.fixture
def three(shared, cache):
    """The same with a cache that a test may spoil."""
    root, ran = shared
    shutil.copytree(root / "cache", cache, dirs_exist_ok=True)
    return ran


def asked(ran, judge):
    settings = Settings(cache=cache_folder())
    stand_in = StandIn.of(judge, ran.plan, ran.records, settings)
    return agreements(ran.plan.manifest, ran.store, ran.records, stand_in)


@pytest.mark.parametrize("judge", ["darker", "lighter"])
def test_images_just_across_a_boundary_are_changed_for_who_sees_it_sooner(three, judge):
    """An image that stands on a model's boundary is on the near side of a darker one and on the far
    side of a lighter one. Black can only be reached from classes 1 and 2, which is so of all."""
    rows = {r.model: r for r in asked(three, judge).rows if r.attack == "shortest"}
    assert set(rows) == {"M", "darker", "lighter"} - {judge}
    n = 2 * int((three.of("M").arrays["y"] > 0).sum())
    assert n > 20
    for row in rows.values():
        assert (row.eps, row.seeds) == ("", (0, 1))
        assert row.tally == (Tally(n, 0, n) if judge == "darker" else Tally(n, n, 0))


def test_images_of_each_budget_are_judged_by_their_grey_level(three):
    """The oracle is the mean of each image, and the judge's two thresholds."""
    rows = [r for r in asked(three, "lighter").rows if (r.model, r.attack) == ("M", "ascend")]
    assert [r.eps for r in rows] == ["0.2", "0.6", "1.2"]
    expected = []
    for column in range(3):
        counts = np.zeros(3, int)
        for seed in (0, 1):
            record = three.of("M", "ascend", seed=seed)
            x = three.store.examples(record.key)["x_adv"][:, column].astype(float)
            label = record.arrays["label"][:, column]
            grey = x.mean(axis=(1, 2, 3)) * 255
            says = sum((grey > t + 255 * 51 / 240 * SHIFT).astype(int) for t in (90, 150))
            there = record.arrays["outcome"][:, column] == Outcome.ADVERSARIAL
            pairs = [(says == label), (says == record.arrays["y"])]
            counts += [there.sum(), *((there & same).sum() for same in pairs)]
        expected.append(Tally(*map(int, counts)))
    assert [r.tally for r in rows] == expected
    assert 0 < expected[1].images < expected[2].images
    assert 0 < expected[2].change < expected[2].images


def test_images_of_a_seed_are_judged_by_the_model_of_that_seed(tmp_path, cache):
    """A trained linear judge, its labels computed from its weights; its seeds do not agree."""
    judge = "standard:arch=linear,epochs=1"
    text = board_text(["tiny", judge], ["ascend"], eps=(0.2,), more="seeds = [0, 1]")
    ran = run(text, tmp_path, keep_examples=True)
    changes = []
    for seed in (0, 1):
        record = ran.of("tiny", "ascend", seed=seed)
        there = record.arrays["outcome"][:, 0] == Outcome.ADVERSARIAL
        x = ran.store.examples(record.key)["x_adv"][there, 0].reshape(-1, 16)
        w = load_file(weights(ran, cache, judge, seed))
        (matrix,), (bias,) = ([v for v in w.values() if v.ndim == d] for d in (2, 1))
        says = (x @ matrix.T + bias).argmax(axis=1)
        changes.append(int((says == record.arrays["label"][there, 0]).sum()))
    assert changes[0] != changes[1]
    (row,) = asked(ran, judge).rows
    assert (row.seeds, row.tally.change) == ((0, 1), sum(changes))


def test_clean_accuracy_is_the_fits(three):
    fits = [three.of("darker", seed=seed).facts["clean_accuracy"] for seed in (0, 1)]
    assert math.isclose(asked(three, "darker").clean, sum(fits) / 2)


def test_a_judge_that_is_not_on_the_board_is_refused(three):
    with pytest.raises(UsageError) as error:
        asked(three, "darkr")
    assert "'darkr': not a model of the board, did you mean 'darker'?" in str(error.value)
    assert "(models: M, darker, lighter)" in str(error.value)


def weights(ran, cache, label, seed):
    stand_in = StandIn.of(label, ran.plan, ran.records, Settings(cache=cache))
    return cache / "weights" / f"{weights_key(stand_in.fits[seed], ran.plan)}.safetensors"


def test_each_seeds_judge_has_its_own_weights_and_lost_ones_are_told(three, cache):
    weights(three, cache, "darker", 1).unlink()
    with pytest.raises(UsageError, match="of seed 1 are not in the cache; `harness verify`"):
        asked(three, "darker")
    assert asked(three, "lighter").rows
    for _ in verify_records(three.plan, three.store, Settings(cache=cache)):
        pass
    assert asked(three, "darker").rows


def test_torn_or_other_weights_are_not_used(three, cache):
    path = weights(three, cache, "darker", 0)
    other = weights(three, cache, "M", 0).read_bytes()
    for data in (path.read_bytes()[:40], other):
        path.write_bytes(data)
        with pytest.raises(PluginError, match=r"--judge darker: the weights of .* are not the fit"):
            asked(three, "darker")


# Judges that are no judges


def test_images_that_were_made_on_the_judge_are_not_its_to_judge(tmp_path):
    """Borrowed from the judge, by transfer; from another, they are."""
    models = ["tiny", "tiny:shift=0.2", "stepped"]
    ran = run(board_text(models, ["borrowed", "wander"]), tmp_path, keep_examples=True)
    found = asked(ran, "tiny")
    assert {(g.model, g.attack, g.status) for g in found.gaps} == {
        (model, "borrowed", "not independent") for model in models[1:]
    }
    assert {(r.model, r.attack) for r in found.rows} == {(m, "wander") for m in models[1:]}
    assert not asked(ran, "stepped").gaps


def test_the_judge_under_another_label_is_not_independent(tmp_path):
    models = '[{ use = "tiny", label = "a" }, { use = "tiny", label = "b" }]'
    text = board_text([], ["wander"]).replace("models = []", f"models = {models}")
    ran = run(text, tmp_path, keep_examples=True)
    for judge, other in ("ab", "ba"):
        found = asked(ran, judge)
        assert [(g.model, g.status) for g in found.gaps] == [(other, "not independent")]
        assert found.rows == ()


def test_a_corruption_keeps_no_images(tmp_path):
    text = board_text(["tiny", "stepped"], ["fog"], norm="corruption", eps=(0.1,))
    found = asked(run(text, tmp_path, keep_examples=True), "tiny")
    assert [(g.model, g.reason) for g in found.gaps] == [
        ("stepped", "images of corruptions are never kept")
    ]
    assert not found.kept


def test_a_randomised_judge_answers_alike_each_time(tmp_path):
    ran = run(board_text(["tiny", "noisy"], ["ascend"]), tmp_path, keep_examples=True)
    first = asked(ran, "noisy").rows
    assert sum(row.tally.images for row in first) > 0
    assert asked(ran, "noisy").rows == first


def test_a_judge_that_fails_is_named(three, monkeypatch):
    def broken(*_):
        raise ValueError("forward is\nbroken")

    monkeypatch.setattr("harness.predict.Predictor.labels", broken)
    with pytest.raises(PluginError, match=r"^--judge darker: ValueError: forward is broken"):
        asked(three, "darker")


# The command


def agreement(*arguments):
    return CliRunner().invoke(cli, ["agreement", *arguments])


@pytest.fixture
def folder(shared, three):
    return str(shared[0] / "board")


def test_the_command_prints_a_stand_in_for_people(folder):
    result = agreement(folder, "--judge", "darker")
    assert result.exit_code == 0, result.exception
    title, _, header, *rows = result.stdout.splitlines()
    assert title.startswith("kit: does the image's class change? darker as a stand-in for people,")
    assert header.split("  ")[0] == "Model"
    shown = [line.split() for line in rows if line.split()[1:2] == ["shortest"]]
    assert [row[0] for row in shown] == ["M", "lighter"]
    assert all(row[3] == "–" and row[7] == "0.0" and "100.0 [" in " ".join(row) for row in shown)
    assert "stand-in for people" in " ".join(agreement("--help").stdout.split())


def test_the_command_gives_a_line_of_json_for_each_row(folder):
    result = agreement(folder, "--judge", "lighter", "--json")
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    assert len(rows) == 8
    n = rows[0]["images"]
    assert rows[0] == {
        "judge": "lighter", "clean": rows[0]["clean"], "model": "M", "attack": "shortest",
        "norm": "L2", "eps": "", "seeds": [0, 1], "status": "ok",
        "images": n, "change": n, "no_change": 0,
    }  # fmt: skip


def test_the_command_tells_what_is_missing(folder, tmp_path):
    with pytest.raises(UsageError, match="not a model of the board, did you mean 'lighter'"):
        raise agreement(folder, "--judge", "lihter").exception
    assert "Missing option '--judge'" in agreement(folder).stderr
    run(board_text(["tiny", "stepped"], ["wander"]), tmp_path / "bare")
    with pytest.raises(UsageError, match=r"other than tiny has adv.*--keep-examples --force"):
        raise agreement(str(tmp_path / "bare"), "--judge", "tiny").exception


def test_one_cell_without_images_is_listed_below_the_others(tmp_path):
    text = board_text(["tiny", "stepped"], ["wander", "ascend:gradient=bpda"])
    ran = run(text, tmp_path / "b", keep_examples=True)
    ran.store.write(ran.of("stepped", "wander"))
    out = agreement(str(tmp_path / "b"), "--judge", "tiny").stdout
    below = out.partition("Cells that tiny was not asked of")[2]
    assert "wander" in below
    assert "the run was without --keep-examples" in below
    lines = agreement(str(tmp_path / "b"), "--judge", "tiny", "--json").stdout.splitlines()
    assert json.loads(lines[-1])["status"] == "not kept"
