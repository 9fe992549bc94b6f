"""The velocity field V of the flow: a small multilayer perceptron (paper, eq. 2)."""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

TIME = 4.0  # by which the network multiplies the time, so that the field can soon change along the way


class Velocity(nn.Module):
    """Velocity V(x) in unit boxes per unit time at points x in the unit box.

    `depth` hidden layers of `width` units with leaky ReLU, and a linear layer to three components.
    Weights start from N(0, `init_std`²) and biases from 0, so that the flow starts close to the identity.
    `centre` is subtracted from x first: 0 is the paper's network, 1/2 puts the first layer's creases
    through the middle of the molecule instead of through a corner of the box.

    With `waves`, the layers also see so many sines of x, whose wave vectors start from N(0, `wave_number`²) (radians
    per unit box), so that the field can change over that distance early on (Tancik et al. 2020); then the hidden
    layers start from He's normal distribution, and only the last layer from N(0, `init_std`²).

    Points (x, t) have a fourth coordinate, the time, which the first hidden layer sees besides. It starts blind to it,
    so that the field depends on time only as far as it has to.
    """

    width: int = 100
    depth: int = 2
    slope: float = 0.01
    init_std: float = 0.01
    centre: float = 0.0
    waves: int = 0
    wave_number: float = 0.0

    @nn.compact
    def __call__(self, x: Float[Array, "*points axes"]) -> Float[Array, "*points 3"]:
        """V(x), or V(x, t)."""
        small = nn.initializers.normal(self.init_std)
        hidden = nn.initializers.he_normal() if self.waves else small
        h = x[..., :3] - self.centre
        if self.waves:
            start = {
                "kernel_init": nn.initializers.normal(self.wave_number),
                "bias_init": nn.initializers.uniform(2 * np.pi),
            }
            h = jnp.concatenate([h, jnp.sin(nn.Dense(self.waves, name="waves_in", **start)(h))], axis=-1)
        for layer in range(self.depth):
            h = nn.Dense(self.width, kernel_init=hidden)(h)
            if layer == 0 and x.shape[-1] > 3:
                late = TIME * (x[..., 3:] - 0.5)
                h = h + nn.Dense(self.width, use_bias=False, kernel_init=nn.initializers.zeros, name="time_in")(late)
            h = nn.leaky_relu(h, self.slope)
        return nn.Dense(3, kernel_init=small)(h)


def turned(
    params: PyTree, turn: Float[np.ndarray, "3 3"], shift: Float[np.ndarray, "3"], centre: float = 0.0
) -> PyTree:
    """Parameters of the field R V(Rᵀ(x − s)), whose flow does at R x + s what that of V does at x.

    The network's first layers and its last one take the rotation in exactly. `centre` is the network's.
    """
    layers = dict(params["params"])
    last = max((name for name in layers if name.startswith("Dense_")), key=lambda name: int(name[len("Dense_") :]))
    moved = (centre - shift) @ turn - centre  # rows: Rᵀ(x − s) − c = (x − c) R + (c − s) R − c

    def seeing(layer: PyTree) -> PyTree:
        kernel = np.asarray(layer["kernel"], np.float64)
        place = np.concatenate([turn @ kernel[:3], kernel[3:]])
        return {"kernel": place.astype(np.float32), "bias": (layer["bias"] + moved @ kernel[:3]).astype(np.float32)}

    for name in {"waves_in", "Dense_0"} & set(layers):
        layers[name] = seeing(layers[name])
    layers[last] = {name: (np.asarray(a, np.float64) @ turn.T).astype(np.float32) for name, a in layers[last].items()}
    return {"params": layers}
