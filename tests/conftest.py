from jaxtyping import install_import_hook

install_import_hook("cryotrans_jax", "beartype.beartype")
