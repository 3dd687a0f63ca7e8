"""What a frozen front returns for each sample, kept so that it need not be computed again."""

from spfde.freezing.cache.cache import ActivationCache
from spfde.freezing.cache.stats import CacheStats

__all__ = ["ActivationCache", "CacheStats"]
