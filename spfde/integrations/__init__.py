"""spfde inside other people's programs."""

from spfde.integrations.ddp import keep_masks_local
from spfde.integrations.ema import EMA
from spfde.integrations.rebucketed import Rebucketed

__all__ = ["EMA", "Rebucketed", "keep_masks_local"]
