"""Recipes: `get_config(arg)` returns a `jaxrec.config.Config`; each docstring is the recipe."""
