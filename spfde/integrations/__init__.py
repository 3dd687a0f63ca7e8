"""spfde inside other people's programs."""

from spfde.freezing.rebucketed import Rebucketed
from spfde.integrations.ema import EMA
from spfde.topology.wrappers import keep_masks_local

__all__ = ["EMA", "Rebucketed", "keep_masks_local"]
