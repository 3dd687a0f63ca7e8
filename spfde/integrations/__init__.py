"""spfde inside other people's programs."""

from spfde.integrations.ddp import keep_masks_local
from spfde.integrations.ema import EMA

__all__ = ["EMA", "keep_masks_local"]
