"""What several test files do: run a board of test plugins and look at its records."""

from dataclasses import dataclass
from pathlib import Path

from harness.executors.inline import Inline
from harness.leaderboard import aggregate
from harness.registry import discover
from harness.run import Driver, Settings
from harness.session import Changes, cache_folder, locate, open_session, settle

BOARD = """
name = "kit"
dataset = "blobs"
limit = 20
models = {models}
attacks = {attacks}
core = {core}
{more}
[[threat]]
norm = "{norm}"
eps = {eps}
"""


def board_text(models, attacks, norm="Linf", eps=(0.05, 0.1, 0.2), more="", core=()):
    return BOARD.format(
        models=list(models), attacks=list(attacks), norm=norm, eps=list(eps), more=more,
        core=list(core),
    )  # fmt: skip


@dataclass
class Ran:
    plan: object
    records: dict
    events: list
    store: object

    def of(self, model, attack="", norm="", seed=0):
        """The record of a cell by its labels."""
        for key, cell in self.plan.cells.items():
            if (cell.label, cell.attack_label, cell.seed) == (model, attack, seed) and (
                not norm or cell.norm == norm
            ):
                return self.records.get(key)
        raise KeyError((model, attack))

    @property
    def leaderboard(self):
        return aggregate(self.plan.manifest, self.records)


def session_of(text, folder, changes=None):
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "board.toml").write_text(text)
    place = locate(str(folder), None)
    settle(place)
    return open_session(place, changes or Changes(), discover(), None)


def run(text, folder, executor=None, **settings):
    """Run a board in this process, or in the executor that is given."""
    session = session_of(text, folder)
    store = session.place.store
    events = []
    chosen = Settings(cache=cache_folder(), **settings)
    driver = Driver(session.plan, store, store.scan()[0], chosen, events.append)
    with executor or Inline() as it:
        driver.run(it)
    return Ran(session.plan, driver.records, events, store)
