"""What to train and how: a recipe, its fields' rules, the values it takes when it does not say, and its TOML file."""

from spfde.train.recipe.recipe import NON_NUMERIC, Recipe, all_epochs, differences

__all__ = ["NON_NUMERIC", "Recipe", "all_epochs", "differences"]
