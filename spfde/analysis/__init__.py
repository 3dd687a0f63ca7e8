"""How alike two networks are: in what they represent, and in where their weights are. Pure functions on tensors."""

from spfde.analysis.cka import cka, gram, gram_cka, hsic1, minibatch_cka
from spfde.analysis.masks import mask_similarity
from spfde.analysis.sp import similarities, sp_loss

__all__ = ["cka", "gram", "gram_cka", "hsic1", "mask_similarity", "minibatch_cka", "similarities", "sp_loss"]
