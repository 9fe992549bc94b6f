"""Fetch entries of the PDB (mmCIF) and of the EMDB (map, half-maps, masks) into the data folder.

python -m experiments.fetch 6RAH 6RAI EMD-22001

The same command resumes a transfer that broke off. A map emd_22001.map.gz comes with emd_22001.json, which has its
resolution and its contour level for experiments.run.
"""

from pathlib import Path

from absl import flags

from . import flags as shared
from . import paths
from .main import command_of

FLAGS = flags.FLAGS
NAMES = ("entries",)  # the flag for which names without a flag stand


def define_flags() -> None:
    """Define the flags of this command."""
    flags.DEFINE_list(
        "entries", [], "ENTRY,...: numbers of entries like 6RAH and EMD-22001; --entries= may be left out."
    )
    paths.define_path("data_dir", "data", "FOLDER: for the files.")
    flags.DEFINE_list(
        "parts",
        ["map", "half_maps", "masks"],
        "PART,...: what to fetch of entries of the EMDB, of map, half_maps and masks.",
    )
    flags.DEFINE_bool("overwrite", False, "Fetch again files that are there but not as they were fetched.")
    shared.define_archives()


def main() -> None:
    """Fetch the entries."""
    from cryotrans_jax.io.files import InputError

    from . import archives, settings

    if not FLAGS.entries:
        raise InputError("no entries are given: name some, like 6RAH or EMD-22001")
    if unknown := set(FLAGS.parts) - set(archives.PARTS):
        raise InputError(f"--parts={','.join(sorted(unknown))}: they are {', '.join(archives.PARTS)}")
    folder = Path(FLAGS.data_dir)
    for name in FLAGS.entries:  # all before the first is fetched
        archives.check_name(name)
    folder.mkdir(parents=True, exist_ok=True)
    for name in FLAGS.entries:
        archives.fetch(name, settings.archives(FLAGS.overwrite), folder, tuple(FLAGS.parts))


command = command_of(main, define_flags, NAMES)

if __name__ == "__main__":
    command()
