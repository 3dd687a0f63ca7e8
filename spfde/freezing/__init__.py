"""What to freeze, and when: blocks of a model that become constant while the rest goes on training."""

from spfde.freezing.block import Block
from spfde.freezing.freeze import freeze, is_frozen, unfreeze
from spfde.freezing.methods.progressive import Progressive
from spfde.freezing.partition import blocks
from spfde.freezing.plan import Plan
from spfde.freezing.protocol import Freezer

__all__ = ["Block", "Freezer", "Plan", "Progressive", "blocks", "freeze", "is_frozen", "unfreeze"]
