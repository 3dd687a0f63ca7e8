"""All definitions of the sweep by name."""

from models_sweep import zoo_segmentation, zoo_timm, zoo_torch, zoo_transformers

ZOO = {**zoo_torch.ZOO, **zoo_timm.ZOO, **zoo_transformers.ZOO, **zoo_segmentation.ZOO}
