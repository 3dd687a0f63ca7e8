"""Training: `fit(Recipe(...))` composes the three levers, and `spfde train` is the same from a shell."""

from spfde.train.checkpoint import CheckpointError
from spfde.train.files import WriteError
from spfde.train.guard import Diverged
from spfde.train.interrupts import Interrupted
from spfde.train.loop import fit
from spfde.train.metrics import Epoch, Event
from spfde.train.recipe import Recipe
from spfde.train.record import Result

__all__ = ["CheckpointError", "Diverged", "Epoch", "Event", "Interrupted", "Recipe", "Result", "WriteError", "fit"]
