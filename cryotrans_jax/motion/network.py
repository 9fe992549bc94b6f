"""Parameters of the network of a velocity field: of a rotated field, and of one that moves nothing."""

import numpy as np
from jaxtyping import Float, PyTree


def rotate_network(
    params: PyTree, rotation: Float[np.ndarray, "3 3"], shift: Float[np.ndarray, "3"], centre: float = 0.0
) -> PyTree:
    """Rotate a velocity field: parameters of R V(Rᵀ(x − s)).

    The flow of the new field does at R x + s what the flow of V does at x. The first layers and the last layer take up
    the rotation exactly.

    Args:
        params: parameters of V.
        rotation: R.
        shift: s, in unit boxes.
        centre: the `centre` of the network.
    """
    layers, last = dict(params["params"]), last_layer(params)
    offset = (centre - shift) @ rotation - centre  # rows: Rᵀ(x − s) − c = (x − c) R + (c − s) R − c

    def rotate_input(layer: PyTree) -> PyTree:
        kernel = np.asarray(layer["kernel"], np.float64)
        rotated = np.concatenate([rotation @ kernel[:3], kernel[3:]])
        return {"kernel": rotated.astype(np.float32), "bias": (layer["bias"] + offset @ kernel[:3]).astype(np.float32)}

    for name in {"waves_in", "Dense_0"} & set(layers):
        layers[name] = rotate_input(layers[name])
    layers[last] = {
        name: (np.asarray(a, np.float64) @ rotation.T).astype(np.float32) for name, a in layers[last].items()
    }
    return {"params": layers}


def silence_network(params: PyTree) -> PyTree:
    """Parameters of a field that is zero everywhere, and can be fitted from there: only the last layer is zero."""
    layers, last = params["params"], last_layer(params)
    return {"params": {**layers, last: {name: 0 * a for name, a in layers[last].items()}}}


def last_layer(params: PyTree) -> str:
    """Name of a network's last layer."""
    names = (name for name in params["params"] if name.startswith("Dense_"))
    return max(names, key=lambda name: int(name[len("Dense_") :]))
