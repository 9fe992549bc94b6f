"""CryoTRANS in JAX: morph one cryo-EM density map into another by a neural flow and optimal transport.

Two files in, a trajectory and a carried model out::

    import cryotrans_jax as ct

    fit = ct.morph("A.mrc", "B.mrc", progress=True)
    frames = list(fit.frames(11))
    ct.write_map("generated.mrc", frames[-1])
    ct.write_model("moved.cif", fit.move(ct.read_model("A.cif")))

Names are loaded when they are first used, so that importing the package costs nothing.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cryotrans_jax import plots
    from cryotrans_jax.density.align import Alignment, onto
    from cryotrans_jax.density.demo import hinge_pair
    from cryotrans_jax.density.similarity import correlation
    from cryotrans_jax.density.simulation import simulate
    from cryotrans_jax.density.symmetry import Symmetry
    from cryotrans_jax.density.transform import Transform, resampled
    from cryotrans_jax.fit.morph import morph
    from cryotrans_jax.fit.options import Options, Resolutions, Running, Thresholds, Waypoint
    from cryotrans_jax.fit.result import Fit
    from cryotrans_jax.io.atoms import read_model, superpose, write_model, write_trajectory
    from cryotrans_jax.io.files import InputError
    from cryotrans_jax.io.maps import Map, read_map, write_map
    from cryotrans_jax.scores.metrics import ca_displacement, map_fsc, model_map_fsc, resolution_at

    __version__: str

__all__ = [
    "Alignment",
    "Fit",
    "InputError",
    "Map",
    "Options",
    "Resolutions",
    "Running",
    "Symmetry",
    "Thresholds",
    "Transform",
    "Waypoint",
    "ca_displacement",
    "correlation",
    "hinge_pair",
    "map_fsc",
    "model_map_fsc",
    "morph",
    "onto",
    "plots",
    "read_map",
    "read_model",
    "resampled",
    "resolution_at",
    "simulate",
    "superpose",
    "write_map",
    "write_model",
    "write_trajectory",
]
_FILES = {  # module of each public name
    "density.align": ("Alignment", "onto"),
    "density.demo": ("hinge_pair",),
    "density.similarity": ("correlation",),
    "density.simulation": ("simulate",),
    "density.symmetry": ("Symmetry",),
    "fit.morph": ("morph",),
    "fit.options": ("Options", "Resolutions", "Running", "Thresholds", "Waypoint"),
    "fit.result": ("Fit",),
    "density.transform": ("Transform", "resampled"),
    "io.atoms": ("read_model", "superpose", "write_model", "write_trajectory"),
    "io.files": ("InputError",),
    "io.maps": ("Map", "read_map", "write_map"),
    "plots": ("plots",),  # the module itself
    "scores.metrics": ("ca_displacement", "map_fsc", "model_map_fsc", "resolution_at"),
}
_HOME = {name: file for file, names in _FILES.items() for name in names}

if not TYPE_CHECKING:  # with a __getattr__, type checkers would accept any name

    def __getattr__(name: str) -> Any:
        """Load a public name (PEP 562)."""
        if name == "__version__":
            from importlib.metadata import version

            return version("cryotrans-jax")
        if name not in _HOME:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        module = importlib.import_module(f"{__name__}.{_HOME[name]}")
        value = globals()[name] = module if name == _HOME[name] else getattr(module, name)
        return value


def __dir__() -> list[str]:
    """List the public names, loaded or not."""
    return list(__all__)
