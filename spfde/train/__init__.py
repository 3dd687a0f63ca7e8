"""Training: `fit(Recipe(...))` composes the three levers, and `spfde train` is the same from a shell."""

from spfde.train.checkpoint import CheckpointError
from spfde.train.distributed import RankLost
from spfde.train.fit import fit
from spfde.train.recipe import Recipe
from spfde.train.record import Result
from spfde.train.run_dir import WriteError
from spfde.train.stats import Epoch
from spfde.train.stops import Diverged, Interrupted

__all__ = ["CheckpointError", "Diverged", "Epoch", "Interrupted", "RankLost", "Recipe", "Result", "WriteError", "fit"]
