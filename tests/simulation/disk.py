"""disk: the keeper's file as a killed process and a power cut leave it."""

import sqlite3
from pathlib import Path

from services.keeper.actor import NOT_THERE
from services.keeper.store import Store, Unwritable
from shared import messages as msg


class Crash(Exception):
    """The process is no more."""


class Disk:
    """What is on it. Commits that were not synced are whole while only the process dies; of a power
    cut some of them, the oldest first, survive."""

    def __init__(self, folder, chance):
        self._folder, self._chance = Path(folder), chance
        self._image, self._unsynced, self._opened = b"", [], 0
        self._kept, self._known = b"", set()
        self._store = None
        self.intents = set()  # entries whose grant is synced
        self.given_up = set()  # entries that were called gone since somebody looked
        self.full = False
        self.step = lambda: None  # raises Crash at the moment of one

    def open(self, path, account, new_id):
        """The keeper's store, on a file of its own with what this disk holds."""
        self._store = SimStore(self, self._mount(), account, f"{new_id and self._opened}")
        self._sync()
        return self._store

    def write(self, commit, *ops, durable):
        """One commit; a process may die right before or after it."""
        self.step()
        if self.full:
            raise Unwritable("no space left")
        commit(*ops)
        self._unsynced.append((commit.__name__, ops))
        if durable:
            self._sync()
        self.step()

    def killed(self):
        """The process is dead: all that was committed is here."""
        if self._store is not None:
            self._sync()
            self._leave()

    def cut(self):
        """No power: what was synced is here, and some of what was not."""
        if self._store is None:
            return
        self._leave()
        some = self._unsynced[: self._chance.randint(0, len(self._unsynced))]
        store = Store(self._mount(), *_names(self._image, self._folder))
        for name, ops in some:
            getattr(store, name)(*ops)
        self._image, self._unsynced = store._db.serialize(), []
        store.close()

    def backup(self):
        """Somebody copies the file."""
        self._kept = self._store._db.serialize() if self._store else self._image
        self._known = set(self.intents)

    def restore(self):
        """The copy takes the place of the file, while nobody uses it: the intents it lacks."""
        self._image, self._unsynced = self._kept, []
        return self.intents - self._known

    def _leave(self):
        self._store.close()
        self._store = None

    def _sync(self):
        self._image, self._unsynced = self._store._db.serialize(), []

    def _mount(self):
        self._opened += 1
        file = self._folder / f"{self._opened}.db"
        file.write_bytes(self._image)
        return file


class SimStore(Store):
    """A store whose commits go by way of the disk."""

    def __init__(self, disk, path, account, new_id):
        self._disk = disk
        super().__init__(path, account, new_id)

    def write(self, change, row, durable=False):
        self._disk.write(super().write, change, row, durable, durable=durable)
        entries = [order for order, _ in change.orders if order.kind == msg.ENTRY]
        if durable:
            self._disk.intents |= {order.order_link_id for order in entries}
        self._disk.given_up |= {o.order_link_id for o in entries if o.reject_reason == NOT_THERE}

    def _do(self, table, values, verb="REPLACE", durable=False):
        self._disk.write(super()._do, table, tuple(values), verb, durable, durable=durable)


def _names(image, folder):
    """The account and the ledger that an image belongs to."""
    file = folder / "names.db"
    file.write_bytes(image)
    with sqlite3.connect(file) as db:
        rows = dict(db.execute("SELECT name, value FROM meta"))
    db.close()
    return rows["account"], rows["ledger_id"]
