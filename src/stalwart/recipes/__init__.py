"""Floor 5: recipes (schema, loading, the shipped YAML files) and the run folders they fill."""

from stalwart.recipes.load import load_recipe, shipped
from stalwart.recipes.schema import Recipe

__all__ = ["Recipe", "load_recipe", "shipped"]
