"""Plugins for the harness's own tests: one for each contract, and one for each way to break one.

The folder is put on the path with a dist-info of its own, so that the plugins come in, here and in
worker processes, through entry points like anybody's.
"""

from harness.plugin import AttackSpec, DatasetSpec, ModelSpec, hookimpl

ALL = ("Linf", "L2", "L1", "L0")


@hookimpl
def harness_datasets():
    yield DatasetSpec("blobs", "testkit_parts:Blobs", summary="three grey levels, learnt at once")


@hookimpl
def harness_models():
    yield ModelSpec("tiny", "testkit_parts:Tiny")
    yield ModelSpec("tiny_labels", "testkit_parts:Tiny", offers="labels")
    yield ModelSpec("tiny_scores", "testkit_parts:Tiny", offers="scores")
    yield ModelSpec(
        "stepped", "testkit_parts:Stepped", offers="labels", surrogate=True, parts=("threshold",)
    )
    yield ModelSpec("noisy", "testkit_parts:Noisy", randomised=True)
    yield ModelSpec("distilled", "testkit_parts:Distilled")
    yield ModelSpec("nan", "testkit_parts:BrokenModel")
    yield ModelSpec("fickle", "testkit_parts:Fickle")
    yield ModelSpec("batchy", "testkit_parts:Batchy")
    yield ModelSpec("undeclared", "testkit_parts:Undeclared")
    yield ModelSpec("hidden_draws", "testkit_parts:Undeclared", randomised=True)
    yield ModelSpec("too_few_classes", "testkit_parts:TooFewClasses")
    yield ModelSpec("noisy_steps", "testkit_parts:NoisySteps", randomised=True, surrogate=True)
    yield ModelSpec("talkative", "testkit_parts:Talkative")
    yield ModelSpec("inplace", "testkit_parts:InPlace")
    yield ModelSpec("forgetful", "testkit_parts:Forgetful")
    yield ModelSpec("raises_in_fit", "testkit_parts:RaisesInFit")


@hookimpl
def harness_attacks():
    yield AttackSpec("ascend", "testkit_parts:Ascend", norms=("Linf", "L2", "L1"))
    yield AttackSpec("wander", "testkit_parts:Wander", norms=ALL, needs="labels")
    yield AttackSpec("thirsty", "testkit_parts:Thirsty", norms=ALL, needs="labels")
    yield AttackSpec("greedy", "testkit_parts:Greedy", norms=ALL, needs="labels")
    yield AttackSpec("shortest", "testkit_parts:Shortest", norms=("L2",), kind="minimum-norm")
    yield AttackSpec(
        "student",
        "testkit_parts:Substitute",
        norms=("Linf",),
        needs="labels",
        prepares=True,
        seed_points=12,
    )
    yield AttackSpec("borrowed", "testkit_parts:Borrowed", norms=ALL, needs="labels")
    yield AttackSpec(
        "reads_threshold",
        "testkit_parts:ReadsThreshold",
        norms=("Linf",),
        needs="labels",
        parts=("threshold",),
    )
    yield AttackSpec("alone", "testkit_parts:Alone", norms=ALL, needs="labels", one_by_one=True)
    yield AttackSpec("still", "testkit_parts:Still", norms=ALL, needs="labels", deterministic=True)
    yield AttackSpec("fog", "testkit_parts:Fog", norms=("corruption",), needs="labels")
    yield AttackSpec("misbehaves", "testkit_parts:Misbehaves", norms=ALL, needs="labels")
    yield AttackSpec("vandal", "testkit_parts:Vandal", norms=ALL)
    yield AttackSpec("uneven", "testkit_parts:Uneven", norms=ALL, needs="labels")
    yield AttackSpec(
        "stumbles", "testkit_parts:Stumbles", norms=("L2",), needs="labels", kind="minimum-norm"
    )
    yield AttackSpec("unjudged", "testkit_parts:Unjudged", norms=ALL)
