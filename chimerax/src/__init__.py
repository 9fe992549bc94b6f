"""The bundle of ChimeraX that runs cryotrans-jax; its commands are in `cmd`."""

from chimerax.core.toolshed import BundleAPI


class CryoTRANS(BundleAPI):
    """What ChimeraX asks of the bundle."""

    api_version = 1

    @staticmethod
    def register_command(bi, ci, logger):
        """Register a command when it is used for the first time.

        Args:
            bi: of the bundle.
            ci: of the command, with its name.
            logger: the log of ChimeraX.
        """
        from chimerax.core.commands import register

        from . import cmd

        function, description = cmd.COMMANDS[ci.name]
        register(ci.name, description, function, logger=logger)


bundle_api = CryoTRANS()
