"""ART's and CleverHans's attacks by name: found without importing them, run through the referee."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from attack_kit import Double, Halfspace, draws, judged, small
from support import board_text, run
from torch import nn

from harness import cli
from harness.api import Target, Threat
from harness.craft import Assault, Victim
from harness.errors import PluginError
from harness.fields import options_of
from harness.fit import seeded
from harness.options import AttackOptions, load_factory, resolve
from harness.outcome import Outcome
from harness.plugin import ModelSpec
from harness.predict import Predictor
from harness.registry import discover
from harness.selection import parse_selection
from harness.target import Ledger, Source
from harness.verify import Samples
from harness_plugins.adapters import signatures
from harness_plugins.adapters.art_members import ART
from harness_plugins.adapters.cleverhans_members import CLEVERHANS
from harness_plugins.adapters.handles import Oracle
from harness_plugins.attacks.pgd import BIM, FGSM

HOME = discover()
NAMES = [*(f"art:{n}" for n in ART), *(f"cleverhans:{n}" for n in CLEVERHANS)]
INSTALLED = {name: importlib.util.find_spec(name) is not None for name in ("art", "cleverhans")}
LIBRARIES = {
    "art": pytest.mark.skipif(not INSTALLED["art"], reason="ART is not installed"),
    "cleverhans": pytest.mark.skipif(
        not INSTALLED["cleverhans"],
        reason="CleverHans is not installed (pip install --no-deps cleverhans==4.0.0)",
    ),
}


def of(*selections):
    """Selections, each skipped where its library is not installed."""
    return [pytest.param(s, marks=LIBRARIES[s.partition(":")[0]]) for s in selections]


def resolved(text):
    selection = parse_selection(text, "--attack")
    return resolve(selection, HOME.attack(selection.name), AttackOptions, HOME, "--attack")


def attack(text):
    return resolved(text).component


def call(text, net, x, y, threat, classes=5):
    """The adapted attack's images and the ledger, at the level that it declares."""
    spec = resolved(text).entry.spec
    target = judged(net, len(x), classes, spec.needs)
    with seeded(0):
        x_adv = attack(text)(target, x, y, threat, draws(len(x)))
    return x_adv, target.ledger


class Stubborn(nn.Module):
    """Class 0 whatever it is shown, with gradients."""

    def forward(self, x):
        z = x.flatten(1).sum(dim=1, keepdim=True)
        return torch.cat([z + 1e3, z, -z], dim=1)


net = pytest.fixture(small)


@pytest.fixture
def images():
    rng = torch.Generator().manual_seed(1)
    return 0.3 + 0.4 * torch.rand(6, 1, 8, 8, generator=rng)


# --- found without importing ----------------------------------------------------------------


def test_names_and_options_are_known_without_importing_torch_or_the_libraries():
    code = """
import sys
from harness.registry import discover
names = discover().attacks
assert "robustness-harness/art:DeepFool" in names, names
heavy = {"torch", "art", "cleverhans", "scipy"} & sys.modules.keys()
assert not heavy, heavy
from harness.options import AttackOptions, resolve
from harness.selection import parse_selection
catalogue = discover()
for full in names:
    if ":" in full:
        selection = parse_selection(full, "test")
        resolve(selection, catalogue.attack(selection.name), AttackOptions, catalogue, "test")
heavy = {"art", "cleverhans", "numba"} & {m.partition(".")[0] for m in sys.modules}
assert not heavy, heavy
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", of(*NAMES))
def test_every_name_has_options_of_the_installed_library_with_defaults(name):
    spec = HOME.attack(name).spec
    options = options_of(load_factory(HOME.attack(name)))
    assert spec.one_by_one or spec.pooled
    assert spec.one_by_one or spec.needs == "gradients"
    assert not {"classifier", "estimator", "targeted", "verbose", "model_fn", "y"} & set(options)
    assert resolved(name).identity["options"].keys() == options.keys()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param("art:DeepFool:max_iter=50,nb_grads=3", (50, 3), marks=LIBRARIES["art"]),
        pytest.param(
            {"use": "art:DeepFool", "max_iter": 50, "nb_grads": 3},
            (50, 3),
            marks=LIBRARIES["art"],
        ),
    ],
)
def test_options_are_read_and_typed(text, expected):
    chosen = attack(text)
    assert (chosen.max_iter, chosen.nb_grads) == expected
    assert chosen.epsilon == 1e-6


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("art:DeepFol", "did you mean 'art:DeepFool'"),
        ("art:deepfool", "did you mean 'art:DeepFool'"),
        ("cleverhans:carlini_wagner", "did you mean 'cleverhans:carlini_wagner_l2'"),
        ("art", "did you mean one of art's: AutoAttack, "),
        ("cleverhans:DeepFool", "did you mean one of cleverhans's: carlini_wagner_l2, "),
        ("pgd:steps", "did you mean 'pgd' or 'pgd:steps=…'?"),
        pytest.param("art:DeepFool:steps=3", "no option 'steps'", marks=LIBRARIES["art"]),
        pytest.param("art:DeepFool:max_iter=x", "expected int", marks=LIBRARIES["art"]),
        pytest.param("art:DeepFool:restarts=2", "deterministic", marks=LIBRARIES["art"]),
        pytest.param("art:DeepFool", "supports L2", marks=LIBRARIES["art"]),
    ],
)
def test_what_is_wrong_is_one_line_before_any_work(typed, said, called, tmp_path):
    (tmp_path / "board.toml").write_text(board_text(["tiny"], ["ascend"]))
    code, _, err = called("run", tmp_path, "--attack", typed)
    assert code == 2
    assert said in err.strip().splitlines()[-1]
    assert not (tmp_path / "records").exists()


@pytest.fixture
def called(monkeypatch, capfd):
    """`harness …` in this process: its exit code, stdout and stderr."""

    def called_(*arguments):
        monkeypatch.setattr(sys, "argv", ["harness", *map(str, arguments)])
        code = 0
        try:
            cli.main()
        except SystemExit as done:
            code = done.code or 0
        return code, *capfd.readouterr()

    return called_


@pytest.fixture
def planned(called, tmp_path):
    """State and reason of each attack of a board."""

    def planned_(*attacks):
        (tmp_path / "board.toml").write_text(board_text(["tiny"], attacks))
        code, out, err = called("plan", tmp_path, "--json")
        assert code == 0, err
        cells = [json.loads(line) for line in out.splitlines()]
        return {c["attack"]: (c["state"], c["reason"]) for c in cells if c["kind"] == "attack"}

    return planned_


@pytest.fixture
def without(monkeypatch):
    """Distributions hidden, and the packages of the libraries with them."""

    def hide(*hidden):
        version, find = importlib.metadata.version, importlib.util.find_spec

        def no_version(name):
            if name in hidden:
                raise importlib.metadata.PackageNotFoundError(name)
            return version(name)

        packages = {"adversarial-robustness-toolbox": "art", "cleverhans": "cleverhans"}
        gone = {packages.get(name, name) for name in hidden}
        monkeypatch.setattr(importlib.metadata, "version", no_version)
        monkeypatch.setattr(
            importlib.util, "find_spec", lambda n, *a: None if n in gone else find(n, *a)
        )
        signatures.parameters.cache_clear()
        for package in ("art", "cleverhans"):
            monkeypatch.delitem(sys.modules, f"harness_plugins.adapters.{package}", raising=False)

    yield hide
    signatures.parameters.cache_clear()


def test_without_a_library_its_attacks_are_incompatible_with_the_pip_command(without, planned):
    """Options that cannot be validated then are no error; those inside other attacks neither."""
    without("adversarial-robustness-toolbox", "cleverhans")
    attacks = [
        "art:FastGradientMethod",
        "art:ProjectedGradientDescent:max_iter=3,nonsense=4",
        "cleverhans:noise",
        "borrowed:attack=(art:FastGradientMethod)",
        "ascend",
    ]
    cells = planned(*attacks)
    assert cells.pop("ascend")[0] == "new"
    for name, (state, reason) in cells.items():
        library = "cleverhans" if "cleverhans" in name else "art"
        assert state == "incompatible"
        assert f"pip install 'robustness-harness[{library}]'" in reason
        assert "\n" not in reason


def test_what_is_not_installed_can_be_shown(without, called):
    without("adversarial-robustness-toolbox")
    code, out, _ = called("show", "art:DeepFool")
    assert code == 0
    assert "pip install 'robustness-harness[art]'" in out
    assert "restarts: int" in out


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("art", "is called 'art', did you mean one of art's: "),
        ("art:Nope", "is called 'art:Nope', did you mean one of art's: "),
        ("art:DeepFool:steps", "did you mean 'art:DeepFool' or 'art:DeepFool:steps=…'?"),
        ("art:DeepFool:max_iter=5", "did you mean 'art:DeepFool', without options?"),
        ("art:DeepFol", "is called 'art:DeepFol', did you mean 'art:DeepFool'?"),
    ],
)
def test_showing_what_is_not_there_tells_of_the_attacks(name, said, called):
    code, _, err = called("show", name)
    assert code == 2
    assert said in err


@pytest.mark.parametrize(
    ("name", "part"), [("AutoAttack", "multiprocess"), ("BrendelBethgeAttack", "numba")]
)
@LIBRARIES["art"]
def test_what_a_library_does_not_declare_is_asked_for(name, part, without, planned):
    without(part)
    state, reason = planned(f"art:{name}")[f"art:{name}"]
    assert state == "incompatible"
    assert reason.endswith(f"needs {part}, which is not installed: pip install '{part}'")


@LIBRARIES["cleverhans"]
def test_the_broken_one_is_incompatible(planned):
    if importlib.metadata.version("cleverhans") == "4.0.0":
        state, reason = planned("cleverhans:semantic")["cleverhans:semantic"]
        assert state == "incompatible"
        assert "no such release is known" in reason


def test_what_a_text_does_not_tell_is_left_to_the_library(tmp_path, monkeypatch):
    (tmp_path / "strange").mkdir()
    (tmp_path / "strange" / "__init__.py").write_text("raise RuntimeError('imported')")
    (tmp_path / "strange" / "attack.py").write_text(
        "def f(model, a: int | None = None, b: 'Callable' = print, c=-1.5, d: Optional[str] = 'x',"
        " e: float | int = np.inf, g: np.ndarray | None = None):\n"
        '    """Do.\n\n    :param a: the first\n      of them\n    :param c: third.\n    """\n'
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    found = {p.name: p for p in signatures.parameters("strange", "attack.py", "f")}
    assert {n: p.type for n, p in found.items()} == {
        "model": None, "a": int | None, "b": None, "c": float, "d": str | None, "e": float,
        "g": None,
    }  # fmt: skip
    assert (found["c"].default, found["e"].default) == (-1.5, float("inf"))
    assert found["model"].default is signatures.REQUIRED
    assert found["b"].default is signatures.OPAQUE
    assert (found["a"].doc, found["c"].doc) == ("the first of them", "third.")


# --- the same images as ours -----------------------------------------------------------------


@pytest.mark.parametrize("norm", ["Linf", "L2", "L1"])
@pytest.mark.parametrize("name", of("art:FastGradientMethod", "cleverhans:fast_gradient_method"))
def test_fgsm_is_ours(name, norm, net, images):
    y = net(images).argmax(dim=1)
    threat = Threat(norm, {"Linf": 0.05, "L2": 0.2, "L1": 0.3}[norm])
    theirs, ledger = call(name, net, images, y, threat)
    ours = FGSM()(Target.around(net, 5), images, y, threat, draws(6))
    torch.testing.assert_close(theirs, ours, rtol=0, atol=1e-6)
    assert ledger.forward.tolist() == ledger.backward.tolist() == [1] * 6


@pytest.mark.parametrize("norm", ["Linf", "L2"])
@pytest.mark.parametrize(
    "text",
    of(
        "art:ProjectedGradientDescent:max_iter=10",
        "cleverhans:projected_gradient_descent:nb_iter=10,rand_init=false",
    ),
)
def test_pgd_without_chance_is_ours(text, norm, net, images):
    """With the step's length left to the adapter: 2.5 eps by all steps together, as ours."""
    y = net(images).argmax(dim=1)
    threat = Threat(norm, {"Linf": 0.05, "L2": 0.2}[norm])
    theirs, _ = call(text, net, images, y, threat)
    ours = BIM(steps=10)(Target.around(net, 5), images, y, threat, draws(6))
    torch.testing.assert_close(theirs, ours, rtol=0, atol=1e-5)


# --- what is asked ---------------------------------------------------------------------------


@pytest.fixture
def asked(monkeypatch):
    """How many images each call of a library asked about."""
    sizes = []
    original = Oracle.__call__

    def spy(self, x):
        sizes.append(len(x))
        return original(self, x)

    monkeypatch.setattr(Oracle, "__call__", spy)
    return sizes


HOP = "art:HopSkipJump:max_iter=2,max_eval=20,init_eval=5"
QUERY = [
    HOP,
    "cleverhans:hop_skip_jump_attack:num_iterations=2,initial_num_evals=5,max_num_evals=9",
]


@pytest.mark.parametrize("text", of(*QUERY))
def test_a_query_attacks_counts_are_its_images_and_two_checks(text, net, images, asked):
    y = net(images).argmax(dim=1)
    x_adv, ledger = call(text, net, images[:1], y[:1], Threat("L2", np.inf))
    assert ledger.forward.tolist() == [sum(asked) + 2]
    assert ledger.backward.tolist() == [0]
    assert net(x_adv).argmax(dim=1) != y[0]


@pytest.mark.parametrize(
    "text",
    of("art:CarliniL2Method:max_iter=3", "cleverhans:carlini_wagner_l2:max_iterations=5"),
)
def test_counts_of_a_batch_are_its_mean(text, net, images, asked):
    y = net(images).argmax(dim=1)
    _, ledger = call(text, net, images, y, Threat("L2", np.inf))
    assert ledger.forward.sum() == sum(asked) + 2 * 6
    assert np.ptp(ledger.forward) <= 1
    assert ledger.backward.sum() > 0
    assert np.ptp(ledger.backward) <= 1


def test_a_pool_spreads_what_it_is_charged_exactly():
    target = judged(Stubborn(), 4, 3)
    pooled = target.at(torch.tensor([1, 3, 2])).pooled()
    for m in (1, 1, 5, 2):
        pooled.scores(torch.zeros(m, 1, 2, 2))
    assert target.ledger.forward.tolist() == [0, 3, 3, 3]
    pooled.scores(torch.zeros(2, 1, 2, 2))
    assert target.ledger.forward.tolist() == [0, 4, 3, 4]
    x = torch.zeros(3, 1, 2, 2, requires_grad=True)
    pooled(x).sum().backward()
    assert target.ledger.backward.tolist() == [0, 1, 1, 1]


def test_a_target_that_must_know_whose_images_it_is_asked_does_not_pool():
    aimed = Target(
        Source(Stubborn(), 3, 512), "scores", Ledger(2), np.arange(2), np.ones(2, np.int64),
        wanted=torch.tensor([1, 2]),
    )  # fmt: skip
    with pytest.raises(PluginError, match="whose images"):
        aimed.pooled()


@pytest.mark.parametrize(
    ("text", "level", "norm"),
    [
        pytest.param("art:SquareAttack:max_iter=5", "labels", "Linf", marks=LIBRARIES["art"]),
        pytest.param("art:FastGradientMethod", "scores", "Linf", marks=LIBRARIES["art"]),
        pytest.param("cleverhans:spsa:nb_iter=1", "labels", "Linf", marks=LIBRARIES["cleverhans"]),
        pytest.param(
            "cleverhans:fast_gradient_method", "labels", "Linf", marks=LIBRARIES["cleverhans"]
        ),
    ],
)
def test_a_level_is_not_exceeded(text, level, norm, net, images):
    """The members' own levels are the least they can do with: below, the target refuses."""
    y = net(images).argmax(dim=1)
    target = judged(net, 1, 5, level)
    with pytest.raises(PluginError, match="the attack declared that it needs"):
        attack(text)(target, images[:1], y[:1], Threat(norm, 0.1), draws(1))


def assault(text, net, images, wanted=None):
    y = net(images).argmax(dim=1)
    samples = Samples(images, y, y, range(len(images)), wanted)
    victim = Victim(ModelSpec("net", "x:Net"), Predictor(net, 5, 512), net)
    return Assault(resolved(text), victim, 0, 96, lambda _: (net, None)), samples


@LIBRARIES["art"]
def test_a_budget_and_a_target_go_image_by_image(net, images):
    plain, samples = assault("art:DeepFool", net, images[:3])
    assert not plain.image_by_image(samples)
    threat = Threat("L2", np.inf)

    capped, samples = assault("art:DeepFool:max_iter=9,query_budget=4", net, images[:3])
    assert capped.image_by_image(samples)
    _, ledger = capped.craft(samples, threat)
    assert 0 < ledger.forward.min() <= ledger.forward.max() <= 4

    aimed, samples = assault("art:DeepFool:max_iter=9,epsilon=0.02,target=next", net, images[:3])
    assert aimed.image_by_image(samples)
    x_adv, _ = aimed.craft(samples, threat)
    moved = (x_adv != samples.x).flatten(1).any(dim=1)
    assert moved.any()
    assert (net(x_adv).argmax(dim=1) == (samples.y + 1) % 5)[moved].all()

    _, samples = assault("art:DeepFool", net, images[:3], wanted=(samples.y + 1) % 5)
    assert plain.image_by_image(samples)


@pytest.mark.parametrize("text", of(*QUERY))
def test_generators_without_a_seed_are_seeded(text, net, images):
    y = net(images).argmax(dim=1)
    threat = Threat("L2", np.inf)
    one, again = (call(text, net, images[:1], y[:1], threat) for _ in range(2))
    assert torch.equal(one[0], again[0])
    assert one[1].forward.tolist() == again[1].forward.tolist()


@LIBRARIES["art"]
def test_the_first_run_of_a_process_draws_what_every_other_does():
    """Importing ART draws from the global generators, and makes generators of no seed."""
    code = """
import torch
from torch import nn
from test_adapters import HOP, Threat, call, np

torch.manual_seed(0)
net = nn.Sequential(nn.Flatten(), nn.Linear(64, 5)).requires_grad_(False)
x = 0.3 + 0.4 * torch.rand(1, 1, 8, 8)
runs = [call(HOP, net, x, net(x).argmax(1), Threat("L2", np.inf)) for _ in range(2)]
assert torch.equal(runs[0][0], runs[1][0])
assert runs[0][1].forward.tolist() == runs[1][1].forward.tolist()
"""
    here = Path(__file__).parent
    paths = f"import sys; sys.path[:0] = [{str(here)!r}, {str(here / 'kit')!r}]\n"
    command = [sys.executable, "-c", paths + code]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


# --- what is returned ------------------------------------------------------------------------

MINIMUM = of(
    "art:CarliniL2Method:max_iter=3,binary_search_steps=2",
    "art:DeepFool:max_iter=3",
    "art:ElasticNet:max_iter=3,binary_search_steps=2",
    "art:NewtonFool:max_iter=3",
    "art:ZooAttack:max_iter=2,nb_parallel=4,use_resize=false,use_importance=false",
    "cleverhans:carlini_wagner_l2:max_iterations=3",
)


@pytest.mark.parametrize("text", MINIMUM)
def test_what_is_not_fooled_comes_back_bit_for_bit(text, images):
    alone = resolved(text).entry.spec.one_by_one
    x = images[: 1 if alone else 6]
    y = torch.zeros(len(x), dtype=torch.long)
    x_adv, _ = call(text, Stubborn(), x, y, Threat("L2", np.inf), classes=3)
    assert torch.equal(x_adv, x)


@pytest.mark.parametrize("text", MINIMUM)
def test_what_is_fooled_already_comes_back_for_one_query(text, images):
    x, y = images[:1], torch.ones(1, dtype=torch.long)
    x_adv, ledger = call(text, Stubborn(), x, y, Threat("L2", np.inf), classes=3)
    assert torch.equal(x_adv, x)
    assert ledger.forward.tolist() == [1]


LINEAR = [
    ("art:DeepFool", "L2", 1.01),
    ("art:CarliniL2Method:max_iter=50,learning_rate=0.1", "L2", 1.1),
    ("art:CarliniLInfMethod:max_iter=30,learning_rate=0.1", "Linf", 4),  # far from it
    ("art:ElasticNet:beta=0.1,max_iter=30,learning_rate=0.1", "L1", 1.5),
    ("art:HopSkipJump:max_iter=20,max_eval=300,init_eval=50", "L2", 1.3),
    ("art:SaliencyMapMethod:theta=1.0", "L0", 2.1),
    ("cleverhans:carlini_wagner_l2:max_iterations=100,lr=0.05", "L2", 1.1),
    ("cleverhans:hop_skip_jump_attack:num_iterations=15,max_num_evals=300", "L2", 1.2),
    ("cleverhans:hop_skip_jump_attack:num_iterations=15,max_num_evals=300", "Linf", 2),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("text", "norm", "factor"),
    [pytest.param(*case, marks=LIBRARIES[case[0].partition(":")[0]]) for case in LINEAR],
)
def test_distances_on_a_linear_model_are_near_the_optimum_and_never_below(
    text, norm, factor, dtype
):
    """Hölder: the boundary of w·(x − ½) + b = 0 is b / ‖w‖* away, and for L0 the fewest entries
    moved to the corner that bring as much. A model may answer in double precision."""
    rng = torch.Generator().manual_seed(3)
    w = torch.randn(64, generator=rng)
    x, y = torch.full((1, 1, 8, 8), 0.5), torch.ones(1, dtype=torch.long)
    threat = Threat(norm, np.inf)
    b = 0.6
    if norm == "L0":
        gain = (w.abs() / 2).sort(descending=True).values.cumsum(dim=0)
        optimum = float((gain < b).sum()) + 1
    else:
        optimum = b / float(threat.geometry.dual.size(w[None]))
    answer = Double() if dtype == torch.float64 else nn.Identity()
    net = nn.Sequential(Halfspace(w, b), answer)
    x_adv, _ = call(text, net, x, y, threat, classes=2)
    assert net(x_adv).argmax(dim=1) == 0
    assert x_adv.dtype == torch.float32
    distance = float(threat.distance(x_adv, x))
    assert optimum * (1 - 1e-4) <= distance <= optimum * factor


@LIBRARIES["art"]
def test_jsma_is_the_closest_over_all_classes(net, images):
    """Towards one class it changes more pixels than towards the best of four."""
    y = net(images).argmax(dim=1)
    threat = Threat("L0", np.inf)
    x_adv, _ = call("art:SaliencyMapMethod:theta=1.0", net, images, y, threat)
    distance = threat.distance(x_adv, images)
    assert (net(x_adv).argmax(dim=1) != y).all()

    from art.attacks.evasion import SaliencyMapMethod
    from art.estimators.classification import PyTorchClassifier

    model = PyTorchClassifier(net, nn.CrossEntropyLoss(), (1, 8, 8), 5, clip_values=(0, 1))
    towards = []
    for other in range(1, 5):
        wanted = nn.functional.one_hot((y + other) % 5, 5).numpy()
        jsma = SaliencyMapMethod(model, theta=1.0, batch_size=6, verbose=False)
        made = torch.from_numpy(jsma.generate(images.numpy(), wanted))
        fooled = net(made).argmax(dim=1) != y
        towards.append(torch.where(fooled, threat.distance(made, images), torch.inf))
    assert torch.equal(distance, torch.stack(towards).amin(dim=0))
    assert (torch.stack(towards).amax(dim=0) > distance).any()


@pytest.mark.parametrize("norm", ["Linf", "L2"])
@pytest.mark.parametrize(
    "text",
    of(
        "art:SquareAttack:max_iter=20",
        "art:AutoProjectedGradientDescent:max_iter=5,nb_random_init=1",
        "cleverhans:spsa:nb_iter=3,spsa_samples=8",
        "cleverhans:projected_gradient_descent:nb_iter=1",
    ),
)
def test_a_budget_is_kept_in_the_box_and_zero_is_no_change(text, norm, net, images):
    x = images[:1].round()  # at the corners of the box
    y = net(x).argmax(dim=1)
    threat = Threat(norm, {"Linf": 0.2, "L2": 0.5}[norm])
    x_adv, _ = call(text, net, x, y, threat)
    assert threat.allows(x_adv, x).all()
    assert not torch.equal(x_adv, x)
    same, ledger = call(text, net, x, y, Threat(norm, 0.0))
    assert torch.equal(same, x)
    assert ledger.forward.tolist() == [0]


@pytest.mark.parametrize("text", of(*QUERY))
def test_what_takes_one_image_is_given_one_wherever_it_stands(text, net, images):
    """Inside another attack the batch comes whole; counts are still each sample's own."""
    y = net(images).argmax(dim=1)
    threat = Threat("L2", np.inf)
    x_adv, ledger = call(text, net, images[:3], y[:3], threat)
    assert (net(x_adv).argmax(dim=1) != y[:3]).all()
    with seeded(0):
        alone, own = call(text, net, images[:1], y[:1], threat)
    assert torch.equal(x_adv[:1], alone)
    assert ledger.forward[0] == own.forward[0]


@LIBRARIES["art"]
def test_geoda_leaves_nothing_in_the_working_folder(net, images, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    y = net(images).argmax(dim=1)
    text = "art:GeoDA:max_iter=500,sub_dim=8"
    x_adv, ledger = call(text, net, images[:3], y[:3], Threat("L2", np.inf))
    assert (net(x_adv).argmax(dim=1) != y[:3]).any()
    assert (ledger.forward > 100).all()
    assert not list(tmp_path.iterdir())


@LIBRARIES["art"]
def test_geoda_gives_up_where_no_noise_fools(images):
    """ART's own search for a start has no end."""
    text, y = "art:GeoDA:max_iter=500,sub_dim=8", torch.zeros(2, dtype=torch.int64)
    x_adv, ledger = call(text, Stubborn(), images[:2], y, Threat("L2", np.inf), classes=3)
    assert torch.equal(x_adv, images[:2])
    assert (ledger.forward < 1010).all()


@LIBRARIES["art"]
def test_a_guide_is_of_another_class_where_there_is_one(net, images):
    """Feature adversaries near an unbounded budget reach their guide's scores, and its label."""
    y = net(images).argmax(dim=1)
    text = "art:FeatureAdversariesPyTorch:max_iter=60"
    x_adv, ledger = call(text, net, images, y, Threat("Linf", 0.5))
    assert (net(x_adv).argmax(dim=1) != y).sum() >= 4
    assert ledger.forward.tolist() == [10 + 2 * 60] * 6


# --- through the referee -----------------------------------------------------------------------


@LIBRARIES["art"]
@LIBRARIES["cleverhans"]
def test_a_board_of_them(tmp_path):
    attacks = [
        "art:DeepFool:max_iter=20",
        "art:ProjectedGradientDescent:max_iter=10",
        HOP,
        "art:SaliencyMapMethod",
        "cleverhans:carlini_wagner_l2:max_iterations=20",
        "cleverhans:fast_gradient_method",
    ]
    text = board_text(["linear:epochs=20"], attacks, eps=(0.2,)).replace('"blobs"', '"digits"')
    text = text.replace("limit = 20", "limit = 8") + "".join(
        f'[[threat]]\nnorm = "{norm}"\neps = [{eps}]\n' for norm, eps in (("L2", 1.0), ("L0", 9))
    )
    ran = run(text, tmp_path)
    records = {
        (cell.attack_label, cell.norm): ran.records[key]
        for key, cell in ran.plan.cells.items()
        if cell.kind == "attack"
    }
    assert len(records) == 9
    for (name, norm), record in records.items():
        assert record.status == "ok", (name, norm, record.reason)
        assert record.facts["counts"] == ("own" if name == HOP else "means")
        assert not (record.arrays["outcome"] > Outcome.ADVERSARIAL).any()
        assert "adversarial-robustness-toolbox" in record.provenance["plugins"] or "art" not in name
    assert (records["art:DeepFool:max_iter=20", "L2"].arrays["outcome"] != Outcome.ROBUST).all()


@pytest.mark.slow
@LIBRARIES["art"]
@LIBRARIES["cleverhans"]
def test_every_name_runs_through_the_referee_or_says_why_not():
    script = Path(__file__).parents[1] / "benchmarks" / "adapters.py"
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True)
    rows = [
        line.split("|") for line in done.stdout.splitlines() if line.startswith(("| art", "| cl"))
    ]
    assert {row[1].strip() for row in rows} == set(NAMES)
    for row in rows:
        assert row[3].strip().startswith(("ok", "incompatible")), row
