"""The velocity field V of the flow: a small multilayer perceptron (paper, eq. 2)."""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from cryotrans_jax.core.sine import sine


class Velocity(nn.Module):
    """Velocity field V(x), or V(x, t), as a multilayer perceptron (paper, eq. 2).

    `depth` hidden layers with leaky ReLU and a linear layer to three components. Weights start from N(0, `init_std`²)
    and biases from 0, so that the flow starts close to the identity.

    With `waves`, the layers also see sines of x (random Fourier features; Tancik et al. 2020). Then the hidden layers
    start from He's normal distribution, and only the last layer from N(0, `init_std`²).

    Points (x, t) have a fourth coordinate, the time, which enters the first hidden layer. Its weights start from 0, so
    that the field depends on time only where the fit needs it.

    Attributes:
        width: number of units in each hidden layer.
        depth: number of hidden layers.
        slope: slope of the leaky ReLU below 0.
        init_std: standard deviation of the initial weights.
        centre: subtracted from x first, in unit boxes. 0 is the paper's network; 1/2 puts the creases of the first
            layer through the middle of the molecule instead of through a corner of the box.
        waves: number of sines of x among the inputs; 0 is the paper's network.
        wave_number: standard deviation of the sines' initial wave vectors, in radians per unit box. The field can
            change over 1 / `wave_number` from the start of the fit.
        time_scale: factor on the time before the first layer, so that the field can learn to change along the
            trajectory.
    """

    width: int = 100
    depth: int = 2
    slope: float = 0.01
    init_std: float = 0.01
    centre: float = 0.0
    waves: int = 0
    wave_number: float = 0.0
    time_scale: float = 4.0

    @nn.compact
    def __call__(self, x: Float[Array, "*points axes"]) -> Float[Array, "*points 3"]:
        """Velocity in unit boxes per unit time.

        Args:
            x: points, shape (..., 3) for V(x) or (..., 4) for V(x, t); positions in the unit box, t from 0 to 1.

        Returns:
            The velocities, shape (..., 3).
        """
        small = nn.initializers.normal(self.init_std)
        hidden = nn.initializers.he_normal() if self.waves else small
        h = x[..., :3] - self.centre
        if self.waves:
            frequencies, phases = nn.initializers.normal(self.wave_number), nn.initializers.uniform(2 * np.pi)
            waves = nn.Dense(self.waves, kernel_init=frequencies, bias_init=phases, name="waves_in")
            h = jnp.concatenate([h, sine(waves(h))], axis=-1)
        for layer in range(self.depth):
            h = nn.Dense(self.width, kernel_init=hidden)(h)
            if layer == 0 and x.shape[-1] > 3:
                time = self.time_scale * (x[..., 3:] - 0.5)
                h = h + nn.Dense(self.width, use_bias=False, kernel_init=nn.initializers.zeros, name="time_in")(time)
            h = nn.leaky_relu(h, self.slope)
        return nn.Dense(3, kernel_init=small)(h)
