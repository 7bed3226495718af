"""Any family as a Flax `nnx.Module`, and back: for those whose tools expect one.

    module = nnx_view.view(bundle.model, bundle.params)
    grads = nnx.grad(lambda m: loss(m(inputs)))(module)
    bundle = dataclasses.replace(bundle, params=nnx_view.params_of(module))

The core does not use it: there parameters are plain trees.
"""

from __future__ import annotations

import jax
from flax import nnx

from alanything_jax.models.model import Model
from alanything_jax.models.params import Tree, flatten, unflatten
from alanything_jax.schema import Batch


class View(nnx.Module):
    """A model with its parameters inside, each an `nnx.Param` under its path.

    Attributes:
      model: family and config. weights: {path: nnx.Param}.
    """

    def __init__(self, model: Model, params: Tree):
        self.model = model
        leaves = {path: nnx.Param(x) for path, x in flatten(params).items()}
        self.weights = nnx.data(leaves)

    def __call__(self, inputs: Batch) -> jax.Array:
        """float32 [B, T, V]: logits of a batch that `Model.inputs` made."""
        return self.model.logits(params_of(self), inputs)


def view(model: Model, params: Tree) -> View:
    """The module; it shares its arrays with `params`."""
    return View(model, params)


def params_of(module: View) -> Tree:
    """The plain tree that our functions take."""
    return unflatten({path: w.get_value() for path, w in module.weights.items()})
