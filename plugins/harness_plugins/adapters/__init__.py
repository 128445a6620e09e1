"""The attacks of ART and CleverHans by name: `art:DeepFool`, `cleverhans:carlini_wagner_l2`.

Importing this imports neither of them, nor torch. Options are read from the installed library's
source; a library that is not installed makes its attacks incompatible, with the pip command.

Left out of ART, and why:

* of objects, video, sound, malware or trees: AdversarialPatch and its kin, DPatch, RobustDPatch,
  AdversarialTexture, FrameSaliencyAttack, OverTheAirFlickering, CarliniWagnerASR, ImperceptibleASR,
  Malware…, DecisionTreeAttack, Overload, SNAL;
* of Gaussian processes: HighConfidenceLowUncertainty;
* of tables: LowProFool, which needs the importance of features;
* of scenes: GRAPHITE (masks and a printed patch), LaserAttack (an image generator);
* of sets of images: UniversalPerturbation, TargetedUniversalPerturbation: what a sample is given
  would depend on which others it came with;
* CompositeAdversarialAttackPyTorch: of coloured images alone, and by the package kornia;
* of TensorFlow: FeatureAdversariesTensorFlowV2, ProjectedGradientDescentTensorFlowV2.
"""

from __future__ import annotations

from collections.abc import Iterator

from harness.plugin import AttackSpec, hookimpl
from harness_plugins.adapters.art_members import ART, ART_REQUIRES
from harness_plugins.adapters.cleverhans_members import CLEVERHANS, CLEVERHANS_REQUIRES


@hookimpl
def harness_attacks() -> Iterator[AttackSpec]:
    for name, member in ART.items():
        yield member.spec("art", name, ART_REQUIRES)
    for name, member in CLEVERHANS.items():
        yield member.spec("cleverhans", name, CLEVERHANS_REQUIRES)
