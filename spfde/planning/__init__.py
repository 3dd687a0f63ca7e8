"""Plans: what a training will take, before it begins; `plan(model, example_input, recipe)`."""

from spfde.planning.planner import plan
from spfde.planning.values import LayerPlan, Lever, Plan, load

__all__ = ["LayerPlan", "Lever", "Plan", "load", "plan"]
