"""Images made on one model, judged on another: whose images, which facts, what does not fit."""

from __future__ import annotations

import numpy as np
import pytest
from safetensors.torch import load_file
from support import board_text, run, session_of

from harness.compatibility import inside
from harness.errors import BrokenPlugin, UsageError
from harness.options import AttackOptions, resolve
from harness.plugin import FOLLOWED, AttackSpec
from harness.registry import discover
from harness.selection import parse_selection
from harness.session import cache_folder

COMPARED = ("outcome", "label", "distance")


def digits(models, attacks, **more):
    text = board_text(models, attacks, **more).replace("blobs", "digits:classes=3+8")
    return text.replace("limit = 20", "limit = 60")


def spec(text):
    selection, catalogue = parse_selection(text, "test"), discover()
    entry = catalogue.attack(selection.name)
    return resolve(selection, entry, AttackOptions, catalogue, "test")


@pytest.mark.parametrize(
    ("attack", "norm"),
    [
        ("fgsm", "Linf"),
        ("pgd:steps=4", "Linf"),
        ("pgd:steps=3,loss=margin,restarts=2", "L2"),
        ("deepfool", "L2"),
        ("uniform_noise", "L1"),
    ],
)
def test_from_the_judged_model_itself_it_is_the_attack_itself(tmp_path, attack, norm):
    inner = f"({attack})" if ":" in attack else attack
    transferred = f"transfer:source=(mlp:epochs=2),attack={inner}"
    text = digits(["mlp:epochs=2"], [attack, transferred], norm=norm)
    ran = run(text, tmp_path)
    own, same = (ran.of("mlp:epochs=2", a) for a in (attack, transferred))
    for name in COMPARED:
        assert np.array_equal(own.arrays[name], same.arrays[name]), name
    assert same.facts["access"] == own.facts["access"]
    asked = {"forward": int(own.arrays["forward"].sum()), "backward": own.cost["backward"]}
    assert same.facts["source_queries"] == asked
    assert same.arrays["forward"].sum() == 0


@pytest.mark.parametrize("model", ["noisy", "stepped"])
def test_so_it_is_on_a_randomised_model_and_through_a_surrogate(tmp_path, model):
    attack = {"noisy": "ascend:restarts=2,eot=2", "stepped": "ascend:gradient=bpda"}[model]
    transferred = f"transfer:source={model},attack=({attack})"
    ran = run(board_text([model], [attack, transferred]), tmp_path)
    own, same = (ran.of(model, a) for a in (attack, transferred))
    for name in COMPARED:
        assert np.array_equal(own.arrays[name], same.arrays[name]), name
    assert same.facts["access"] == own.facts["access"]


def test_every_sample_is_perturbed_up_the_sources_loss_whoever_has_it_right(tmp_path):
    """The tables of 'On the transferability of adversarial examples': x − ε y sign(w), clipped."""
    attack = "transfer:source=(linear:epochs=1,lr=0.0005),attack=fgsm"
    models = ["linear:epochs=1,lr=0.0005", "mlp:epochs=1,lr=0.0005"]
    ran = run(
        digits(models, [attack], eps=(0.2,), more="all_samples = true"),
        tmp_path,
        keep_examples=True,
    )
    for path in (cache_folder() / "weights").glob("*.safetensors"):
        state = load_file(path)
        if len(state) == 2:
            (w,) = (v for v in state.values() if v.ndim == 2)
    data = ran.plan.data.ref.open()
    made = []
    for model in models:
        record = ran.of(model, attack)
        assert (record.arrays["clean"] != record.arrays["y"]).any()  # so the law is not empty
        x, y = data.test_x[record.arrays["ids"]], record.arrays["y"]
        up = np.where(y[:, None] == 0, 1, -1) * np.sign((w[1] - w[0]).numpy())
        expected = np.clip(x + np.float32(0.2) * up.reshape(x.shape).astype(np.float32), 0, 1)
        (x_adv,) = np.moveaxis(ran.store.examples(record.key)["x_adv"], 1, 0)
        assert np.abs(x_adv - expected).max() < 1e-6
        made.append(x_adv)
    assert np.array_equal(*made)


def test_a_minimum_norm_attacks_images_are_the_sources(tmp_path):
    attack = "transfer:source=(mlp:epochs=2),attack=deepfool"
    text = digits(["mlp:epochs=2", "linear:epochs=2"], [attack], norm="L2", eps=(0.5, 2))
    ran = run(text, tmp_path, keep_examples=True)
    cells = [c for c in ran.plan.cells.values() if c.kind == "attack"]
    assert [c.identity["threat"]["eps"] for c in cells] == [None, None]
    own, other = (ran.of(m, attack) for m in ("mlp:epochs=2", "linear:epochs=2"))
    assert (own.facts["kind"], own.arrays["outcome"].shape) == ("minimum-norm", (60, 1))
    both = (own.arrays["clean"] == own.arrays["y"]) & (other.arrays["clean"] == other.arrays["y"])
    images = [ran.store.examples(r.key)["x_adv"][both] for r in (own, other)]
    assert np.array_equal(*images)
    assert (other.facts["access"], own.facts["access"]) == ("transfer", "gradients")


def test_the_batch_changes_nothing(tmp_path):
    attacks = ["transfer:source=noisy,attack=ascend", "transfer:source=tiny,attack=alone"]
    text = board_text(["tiny"], attacks)
    one, two = run(text, tmp_path / "one", batch=8), run(text, tmp_path / "two")
    for key, record in one.records.items():
        assert record.status == "ok", record.reason
        for name, array in record.arrays.items():
            assert np.array_equal(array, two.records[key].arrays[name]), name


def test_samples_leave_only_where_the_source_is_the_judged_model(tmp_path):
    """An image that fools the source may yet be made to fool another model."""
    attack = "transfer:source=tiny,attack=unjudged"
    ran = run(board_text(["tiny", "tiny:shift=0.1"], [attack]), tmp_path)
    assert "this target is judged" in ran.of("tiny", attack).reason
    assert ran.of("tiny:shift=0.1", attack).status == "ok"


def test_facts_follow_the_attack_inside():
    catalogue = discover()
    for name in ("fgsm", "deepfool", "uniform_noise", "alone"):
        inner = catalogue.attack(name).spec
        for text in (name, f"(transfer:source=tiny,attack={name})"):
            outer = spec(f"transfer:source=mlp,attack={text}")
            for fact in FOLLOWED:
                assert getattr(outer.entry.spec, fact) == getattr(inner, fact), fact
            assert (outer.entry.spec.needs, outer.entry.spec.parts) == ("labels", ())
            assert inside(outer).entry.spec == inner


def test_like_has_to_name_an_attack(monkeypatch):
    catalogue = discover()
    for like in ("source", "nothing"):
        entry = catalogue.attack("transfer")
        wrong = AttackSpec("x", entry.spec.factory, norms=("Linf",), like=like)
        entry = type(entry)(wrong, entry.dist, entry.version)
        with pytest.raises(BrokenPlugin, match=f"like='{like}': no option that names an attack"):
            resolve(parse_selection("x:source=mlp", "t"), entry, AttackOptions, catalogue, "t")


def states(tmp_path, attack, model="tiny_labels", norm="Linf"):
    plan = session_of(board_text([model], [attack], norm=norm), tmp_path).plan
    return [c.reason for c in (*plan.cells.values(), *plan.incompatible) if c.kind == "attack"]


@pytest.mark.parametrize(
    ("attack", "reason"),
    [
        ("transfer:source=mlp,attack=(pgd:steps=3)", ""),  # judged without a gradient
        ("transfer:source=stepped,attack=reads_threshold", ""),
        ("transfer:source=stepped,attack=(pgd:gradient=bpda)", ""),
        (
            "transfer:source=stepped,attack=pgd",
            "pgd needs gradients, and stepped, which transfer makes its images on, offers labels; "
            "pgd:gradient=bpda attacks through its surrogate",
        ),
        (
            "transfer:source=tiny_scores,attack=pgd",
            "pgd needs gradients, and tiny_scores, which transfer makes its images on, offers "
            "scores",
        ),
        (
            "transfer:source=tiny,attack=reads_threshold",
            "reads_threshold needs the part threshold, and tiny, which transfer makes its images "
            "on, has none",
        ),
        (
            "transfer:source=tiny,attack=(pgd:gradient=surrogate)",
            "gradient=surrogate needs a surrogate, and tiny, which transfer makes its images on, "
            "has none",
        ),
        (
            "transfer:source=(stepped:saturate=4),attack=reads_threshold",
            "reads_threshold needs the part threshold, and stepped, which transfer makes its "
            "images on, has none",
        ),
    ],
)
def test_what_is_needed_is_asked_of_the_source(tmp_path, attack, reason):
    assert states(tmp_path, attack) == [reason]


@pytest.mark.parametrize(
    ("attack", "said"),
    [
        ("transfer:source=tiny,attack=gaussian_noise", "'gaussian_noise' is a corruption, which"),
        ("transfer:source=tiny,attack=substitute", "'substitute' prepares, so it cannot be inside"),
        ("transfer:source=tiny,attack=fgsm,restarts=2", "restarts=2 of a deterministic attack"),
        (
            "transfer:source=tiny,attack=pgd,restarts=2",
            "restarts belong to the attack inside transfer, which never asks the judged model",
        ),
        ("transfer:source=tiny,attack=deepfool", "supports L2, Linf, none of which"),
        (
            "transfer:source=tiny,gradient=bpda",
            "gradient and eot belong to the attack inside",
        ),
        (
            "transfer:source=tiny,attack=(ascend:query_budget=3)",
            "only restarts, gradient and eot apply to the attack 'ascend:query_budget=3' inside",
        ),
        ("borrowed:attack=(ascend:eot=3)", "only restarts applies to the attack 'ascend:eot=3'"),
        ("transfer:source=tinny", "no model is called 'tinny', did you mean 'tiny'"),
    ],
)
def test_what_does_not_fit_is_said_in_one_line_before_any_work(tmp_path, attack, said):
    with pytest.raises(UsageError, match=said) as error:
        states(tmp_path, attack, norm="L1")
    assert "\n" not in str(error.value)
    assert not (cache_folder() / "weights").exists()


def test_a_target_of_labels_alone_is_judged_and_never_asked(tmp_path):
    attack = "transfer:source=tiny,attack=ascend"
    record = run(board_text(["tiny_labels:shift=0.1"], [attack]), tmp_path).of(
        "tiny_labels:shift=0.1", attack
    )
    assert record.status == "ok"
    assert record.facts["access"] == "transfer"
    assert record.arrays["forward"].sum() + record.arrays["backward"].sum() == 0
    attacked = int((record.arrays["clean"] == record.arrays["y"]).sum())
    asked = 3 * 3 * attacked  # three steps at three budgets
    assert record.facts["source_queries"] == {"forward": asked, "backward": asked}


def test_a_labels_model_may_be_named_by_its_label_on_the_board(tmp_path):
    models = '[{ use = "tiny", shift = 0.2, label = "T 0.2" }, "tiny"]'
    text = board_text(["tiny"], [{"use": "x"}]).replace("['tiny']", models)
    choice = '{ use = "transfer", source = "T 0.2", attack = "ascend", label = "A" }'
    text = text.replace("[{'use': 'x'}]", f"[{choice}]")
    plan = session_of(text, tmp_path).plan
    fits = {c.label: c.key for c in plan.cells.values() if c.kind == "fit"}
    needs = [c.needs for c in plan.cells.values() if c.kind == "attack"]
    assert list(fits) == ["T 0.2", "tiny"]  # the source is the board's own, not a third
    assert [n[1] for n in needs] == [fits["T 0.2"]] * 2


def test_a_source_that_the_attack_spoils_fails_the_cell(tmp_path):
    attack = "transfer:source=(mlp:epochs=1),attack=vandal"
    record = run(board_text(["tiny"], [attack]), tmp_path).of("tiny", attack)
    assert record.status == "failed"
    assert "changed the model's weights" in record.reason


def test_another_librarys_attack_may_be_transferred(tmp_path):
    pytest.importorskip("art")
    attack = "transfer:source=(linear:epochs=2),attack=art:FastGradientMethod"
    ran = run(digits(["mlp:epochs=2", "linear:epochs=2"], [attack, "fgsm"], eps=(0.1,)), tmp_path)
    record = ran.of("mlp:epochs=2", attack)
    assert (record.status, record.facts["counts"]) == ("ok", "means")
    assert "adversarial-robustness-toolbox" in record.provenance["plugins"]
    own, art = (ran.of("linear:epochs=2", a).arrays["label"] for a in ("fgsm", attack))
    assert (own == art).mean() > 0.95
    assert record.facts["source_queries"]["forward"] > 0


def test_a_randomised_source_is_asked_image_by_image_by_another_library(tmp_path):
    pytest.importorskip("art")
    attack = "transfer:source=noisy,attack=art:FastGradientMethod"
    record = run(board_text(["tiny"], [attack], eps=(0.1,)), tmp_path).of("tiny", attack)
    assert (record.status, record.facts["counts"]) == ("ok", "own")
