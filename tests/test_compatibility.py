"""What fits what, where the parts that a model has depend on its options and on the data."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, replace
from types import SimpleNamespace

import numpy as np
import pytest
from support import board_text, session_of

from harness.api import Info
from harness.board import parse_board
from harness.compatibility import misfit
from harness.data import DataRef
from harness.errors import BrokenPlugin, PluginError, UsageError
from harness.options import AttackOptions, ModelOptions, resolve
from harness.plan import board_data
from harness.registry import discover
from harness.selection import parse_selection
from harness_plugins.defenses.zero_one import SCD01

INFO = Info((1, 3, 4), 2, 10)


def planned(folder, dataset, model, attack):
    """The plan's word on the attack cell; no cell of it is run."""
    text = board_text([model], [attack]).replace('"blobs"', f'"{dataset}"')
    plan = session_of(text, folder).plan
    (cell,) = [c for c in (*plan.cells.values(), *plan.incompatible) if c.kind == "attack"]
    return cell.reason


NO_PART = "linear_sign needs the part linear, which scd01 has not, as it is set"
NO_SOURCE = (
    "linear_sign needs the part linear, and scd01, which transfer makes its images on, has none"
)


@pytest.mark.parametrize(
    ("dataset", "model", "attack", "reason"),
    [
        ("blobs:classes=0-1", "scd01", "linear_sign", ""),
        ("blobs:classes=0-1", "scd01:votes=2", "linear_sign", NO_PART),
        ("blobs", "scd01", "linear_sign", NO_PART),
        ("blobs:classes=0-1", "scd01:saturate=inf", "linear_sign", NO_PART),
        ("blobs", "scd01:votes=2", "sign_search", ""),
        ("blobs:classes=0-1", "tiny", "transfer:source=scd01,attack=linear_sign", ""),
        ("blobs", "tiny", "transfer:source=scd01,attack=linear_sign", NO_SOURCE),
        (
            "blobs:classes=0-1",
            "tiny",
            "transfer:source=tiny,attack=(transfer:source=(scd01:votes=2),attack=linear_sign)",
            NO_SOURCE,
        ),
        ("blobs", "svm", "linear_sign", ""),
        (
            "blobs",
            "tiny",
            "substitute:seed_points=12,attack=linear_sign",
            "linear_sign needs the part linear, and what substitute learns has none",
        ),
        (
            "blobs",
            "tiny",
            "substitute:seed_points=12,attack=(pgd:gradient=bpda)",
            "gradient=bpda: what substitute learns has gradients of its own",
        ),
        (
            "blobs",
            "tiny",
            "substitute:seed_points=12,model=noisy",
            "noisy is randomised, and what substitute learns may not be",
        ),
    ],
)
def test_votes_of_linear_classifiers_are_told_before_they_are_trained(
    tmp_path, dataset, model, attack, reason
):
    assert planned(tmp_path, dataset, model, attack) == reason


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("votes", [1, 2])
def test_what_is_declared_is_what_the_classifier_gives(votes, classes):
    model, info = SCD01(votes=votes), replace(INFO, classes=classes)
    classifier = model.build(info)
    given = set()
    for name in ("sign_network", "linear"):
        with contextlib.suppress(PluginError):
            classifier.part(name)
            given.add(name)
    assert set(model.parts(info)) == given


@dataclass(frozen=True)
class Varying:
    told: tuple[str, ...] = ()

    def parts(self, info):
        if not self.told:
            raise ValueError("no\nluck")
        return self.told


def stepped(told):
    """The model `stepped`, which declares the part `threshold`, as a class that varies."""
    catalogue = discover()
    found = resolve(
        parse_selection("stepped", "t"), catalogue.model("stepped"), ModelOptions, catalogue, "t"
    )
    spec = replace(found.entry.spec, parts_vary=True)
    return replace(found, entry=replace(found.entry, spec=spec), component=Varying(told))


def verdict(model, name):
    catalogue = discover()
    entry = catalogue.attack(name)
    attack = resolve(parse_selection(name, "t"), entry, AttackOptions, catalogue, "t")
    return misfit(model, attack, "Linf", INFO)


def test_a_recipe_may_leave_out_parts_and_not_add_any():
    both = stepped(("threshold", "sign_network"))
    assert verdict(both, "reads_threshold") == ""
    assert "needs the part sign_network" in verdict(both, "sign_search")
    assert "needs the part threshold" in verdict(stepped(("x",)), "reads_threshold")


def test_one_that_raises_is_a_broken_plugin():
    model = stepped(())
    with pytest.raises(
        BrokenPlugin, match=r"stepped: parts\(info\) raised ValueError\('no\\nluck'\)$"
    ):
        verdict(model, "reads_threshold")


@pytest.mark.parametrize(
    ("order", "seeds", "said"),
    [
        (
            "first",
            4,
            "the last 4 images in the order samples = 'first' have none of class 0; 'stra",
        ),
        ("first", 1, ""),  # too few for both classes, whatever the order
        ("stratified", 4, ""),
    ],
)
def test_seed_points_that_lack_a_class_are_refused(order, seeds, said):
    """Six test images of either class, in the files one class after the other."""
    board = parse_board(
        board_text(["tiny"], ["student"], more=f'samples = "{order}"').encode(), "b"
    )
    ref = DataRef("", "", (1, 3, 4), 2, 10, 12, on_grid=True)
    named = SimpleNamespace(identity={})
    with pytest.raises(UsageError, match=said) if said else contextlib.nullcontext():
        board_data(board, ref, named, np.repeat([0, 1], 6), seeds)
