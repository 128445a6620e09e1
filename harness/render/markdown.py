"""README.md of a board: its leaderboards, how to read them, and all that is not in them.

Tables are not padded to equal widths, so that a changed number changes one line of a diff, and
the bytes do not hang on the version of a library that measures widths.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator

from harness.leaderboard import INVALID, NO_GRADIENT, OUTDONE, RELABELLED, Leaderboard
from harness.render import grids, matrix
from harness.render.grids import Grid
from harness.render.text import plain
from harness.standings import CorruptionTable, Table

FLAGS = {
    OUTDONE: "an attack that sees less of the model leaves less robust accuracy than all white-box "
    "attacks together, by more than 0.2 points and two samples: the gradients mislead, and the "
    "robust accuracy is likely too high",
    NO_GRADIENT: "no attack with gradients, exact or through a surrogate, has a result on the "
    "model: its robust accuracy rests on other attacks",
    INVALID: "of the attack's images, those that left the ball or the box or were not finite, and "
    "whose sample it broke with no other image: they count as robust, and nothing is known of them",
    RELABELLED: "the attack's cell and the fit's do not agree on some clean images, as with a "
    "randomised model or on another device; a sample that either got wrong counts as wrong",
    "depend on the batch": "an image's label changes with the other images of its batch; such a "
    "sample is robust at no ε",
    "changed between two calls": "the model gave one image two labels; a sample that it got wrong "
    "once counts as wrong",
    "queries were spent after": "the attack's budget ended before its last round: its images are "
    "those of the last round that it made, the clean ones where it made none",
    "corrupted images were invalid": "not finite, or outside [0, 1]; they count as the clean image",
}
COLUMNS = """\
* **Success**: share of the correctly classified samples that the attack found an adversarial image
  for, at any ε of the grid (at any distance, for a minimum-norm attack). **Distances** are of those
  samples, each with its smallest; **ρ** is their mean ‖r‖₂/‖x‖₂; **ρ (all)** counts
  misclassified samples too, with r = 0.
* **Forward**, **Backward**: queries per attacked sample at the reference ε; **To success**: forward
  queries per sample that it succeeded on there; **Preparation**: queries spent before that.
* **Invalid**: returned images that left the ball or the box or were not finite: never a success.
  **Unstable**: images whose label would not settle: no success, and the sample is robust at no ε.
* **Adds**: points by which robust accuracy at the reference ε would rise without the attack.
  **Optimality**: the share, in %, that it has in what all attacks together saved in distance. An
  attack with a budget saves by the ε of the grid that it takes, and nothing at the largest."""


def render(board: Leaderboard) -> str:
    """The page; the same bytes for the same records."""
    return "\n\n".join(_parts(board)) + "\n"


def sections(titled: Iterable[tuple[str, Grid]]) -> str:
    """Tables alone, each below its title."""
    return "\n\n".join(f"## {_escape(title)}\n\n{_draw(grid)}" for title, grid in titled) + "\n"


def _parts(board: Leaderboard) -> Iterator[str]:
    yield from _opening(board)
    for table in board.tables:
        yield from _threat(board, table)
    if board.tables:
        yield "### Columns of the attacks' tables"
        yield COLUMNS
    for corrupted in board.corruptions:
        yield from _corruption(corrupted)
    if board.gaps:
        yield "## Cells without a result"
        yield "None of them raises a robust accuracy: a row that lacks a core attack is unranked."
        yield _draw(grids.gaps(board.gaps))
    if board.problems:
        yield "## Files left out"
        yield "Found among the records, not read, and left where they are."
        yield _draw(grids.problems(board))
    flags = [flag for table in board.tables for row in table.rows for flag in row.flags]
    legend = [f"* *{k}*: {v}." for k, v in FLAGS.items() if any(k in flag for flag in flags)]
    if legend:
        yield "## Flags"
        yield "\n".join(legend)


def _opening(board: Leaderboard) -> Iterator[str]:
    b, n = board.board, board.samples
    yield f"# {_escape(plain(b.title or b.name))}"
    seeds = ", ".join(map(str, b.seeds))
    yield (
        f"Data set `{_code(b.dataset)}`, {n} evaluated samples, seeds {seeds}; "
        f"board `{_code(b.name)}`, version {b.version}."
    )
    yield "Written from the records in this folder. To fill in what is missing, or to print it:"
    folder = shlex.quote(f"leaderboards/{plain(b.name)}")
    yield f"```\nharness run {folder}\nharness report {folder}\n```"
    yield "## How to read it"
    attacked = "; such samples are attacked all the same" if b.all_samples else ""
    spread = (
        "`±` is the standard deviation over the seeds"
        if len(b.seeds) > 1
        else "brackets hold the 95 % Wilson interval"
    )
    trainings = (
        "\n  The tests draw other samples, not other trainings: how far those lie apart is `±`."
        if len(b.seeds) > 1
        else ""
    )
    yield f"""\
* Every accuracy is a percentage of **all {n} evaluated samples**: a sample that is misclassified
  without any attack counts as broken at every ε{attacked}.
  In the tables {spread}.
* **Robust** accuracy at ε is the share of samples for which no verified adversarial image within ε
  was found; every image was checked and classified again by the harness, not by the attack. Over
  several attacks it is the worst case, sample by sample. A stronger attack may lower it.
* **Rank** is by the worst case over the core attacks (marked *) at the reference ε: 1 + the number
  of models that are significantly better (5 %, paired tests on the same samples, Holm's
  correction). Models with equally many better ones share a rank; that two have not the same does
  not say that they can be told apart.{trainings}
  A model that lacks a result of a core attack is shown and not ranked, and its number is of the
  attacks that it has. Nor is one ranked for which a core attack returned invalid images of samples
  that survived the core.
* **Reached by**: the kinds of attack with a result on the model. *Surrogate gradient*: through what
  stands in for it backwards; *parts*: on the units of a network without one; *score*, *decision*:
  by its scores, its labels alone; *transfer*, *substitute*: made on another model.
* **8-bit** is the same for adversarial images rounded to k/255 inside the ball; – where the data
  is not on that grid."""


def _threat(board: Leaderboard, table: Table) -> Iterator[str]:
    threat = table.threat
    grid = ", ".join(e.text for e in threat.eps)
    aim = "" if threat.target == "none" else f", targeted ({threat.target})"
    ranked = "ranked " if any(row.rank is not None for row in table.rows) else ""
    yield f"## {threat.norm}{aim}, {ranked}at ε = {threat.reference.text}"
    yield f"ε in {grid}. Each attack's column is robust accuracy against it alone."
    yield _draw(grids.ranking(table))
    if board.board.matrix:
        yield f"### {threat.norm}: from model to model, ε = {threat.reference.text}"
        yield (
            "Accuracy on the model of the column of images made on the model of the row, over all "
            "evaluated samples; published figures in parentheses."
        )
        yield _draw(matrix.grid(board, table, table.at))
    yield f"### {threat.norm}: robust accuracy as ε grows"
    yield _draw(grids.curves(table))
    pairs = grids.attacks(table)
    if not pairs.rows:
        return
    yield f"### {threat.norm}: attack by attack"
    yield (
        "Robust accuracy / accuracy of the adversarial images at each ε. The second is the figure "
        "that papers report: of the images returned for that ε, invalid ones as their clean image."
    )
    yield _draw(pairs)
    yield _draw(grids.details(table))
    if (pool := grids.optimality(table)).rows:
        yield "Mean optimality, over so many models:"
        yield _draw(pool)
    if (same := grids.shared(table)).rows:
        yield f"### {threat.norm}: distances on the same samples"
        yield (
            "Mean / median distance on the samples that every model has right, those of them in "
            "parentheses that an image was found for, where it is not all. The distances above are "
            "each model's own."
        )
        yield _draw(same)
    if (spent := grids.by_queries(table)).rows:
        yield f"### {threat.norm}: query by query"
        yield (
            f"After so many queries: correctly classified samples, in %, with an adversarial query "
            f"within ε = {threat.reference.text} among them / median distance, ∞ where less than "
            "half have one."
        )
        yield _draw(spent)
    if (course := grids.rounds(table)).rows:
        yield f"### {threat.norm}: round by round"
        yield (
            "Accuracy of the adversarial images after each round, as papers report it, and "
            "of the samples that no round broke (worst). Of the substitute: its accuracy, and the "
            "shares of the clean images, and of the adversarial ones at the reference ε, to which "
            "it gives the model's own label."
        )
        yield _draw(course)
    if (beside := grids.published(board, table)).rows:
        yield f"### {threat.norm}: beside published figures"
        yield _draw(beside)
        norm = threat.norm
        notes = {
            f"* *{plain(p.source)}*: {_escape(plain(p.note))}": None
            for p in board.board.published
            if p.note and p.norm == norm
        }
        if notes:
            yield "\n".join(notes)


def _corruption(table: CorruptionTable) -> Iterator[str]:
    yield "## Corruptions"
    yield (
        f"Mean accuracy over all samples and {table.threat.draws} draws at each severity σ. This "
        "is chance, no adversary: it enters no worst case and no rank."
    )
    yield _draw(grids.corruption(table))


def _draw(grid: Grid) -> str:
    rule = ["---:" if a == "r" else "---" for a in grid.align]
    lines = [map(_escape, grid.header), rule, *(map(_escape, row) for row in grid.rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _escape(text: str) -> str:
    """Text that Markdown shows as it is: no markup, no HTML, no column of its own."""
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return "".join(f"\\{c}" if c in "\\`*[]|" else c for c in text)


def _code(text: str) -> str:
    return plain(text).replace("`", "'")
