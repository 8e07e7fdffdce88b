"""The registry of recipes."""

from ivon_jax.train.reproduce.recipe import Recipe
from ivon_jax.train.reproduce.recipes import (
    fig1a,
    fig1b,
    fig1d,
    fig2,
    fig3,
    fig4,
    tab1,
    tab2,
    tab3,
    tab4,
    tab5,
    tab6,
    tab7,
)

_MODULES = (
    tab1,
    tab2,
    tab3,
    tab4,
    tab5,
    tab6,
    tab7,
    fig1a,
    fig1b,
    fig1d,
    fig2,
    fig3,
    fig4,
)
RECIPES: dict[str, Recipe] = {x.RECIPE.name: x.RECIPE for x in _MODULES}
