"""Plans: what a training will take, before it begins; `plan(model, example_input, recipe)`."""

from spfde.planning.finetuning import StepsToLoss, steps_to_loss
from spfde.planning.planner import plan
from spfde.planning.values import LayerPlan, Lever, Plan, load

__all__ = ["LayerPlan", "Lever", "Plan", "StepsToLoss", "load", "plan", "steps_to_loss"]
