"""Run a command: parse its flags, call its main function, and print an error as one line."""

import os
import re
import signal
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

from absl import flags

from . import log, positional, signals, usage

MISSING = re.compile(r"flag --(\w+)=None: Flag --\w+ must have a value other than None\.")
FAILED, PARTLY = 2, 3


class SomeFailed(Exception):
    """The command could do its work for a part of its input only."""


def run(main: Callable[[], None], names: Sequence[str] = ()) -> None:
    """Parse the flags and run a command.

    Args:
        main: does the command's work.
        names: the flags for which names without a flag stand, as `positional.take` has them.

    The status of the process is 0 if `main()` returns, 2 on input that cannot be used, 3 where only a part could be
    done, and 128 and the signal's number where one of `signals.SIGNALS` ended it.

    If the command line asks for help, the docstring of the module of `main` is printed and the flags. Bad flags,
    InputError, OSError and MemoryError become one line on stderr, with the notes that were added to them; other errors
    are faults of the program and keep their traceback. Nothing heavy is imported before the flags are parsed, so that
    --help is quick: let `main` import what it needs.
    """
    if "--version" in sys.argv:
        log.version()
        sys.exit(0)
    if not usage.ASKING.isdisjoint(sys.argv):
        log.info(usage.help_text(sys.modules[main.__module__]))
        sys.exit(0)
    parse_flags(names)
    keep_compiled_programs()
    if "deterministic" in flags.FLAGS and flags.FLAGS.deterministic:
        compute_deterministically()
    from cryotrans_jax.io.files import InputError

    try:
        with signals.stopping(log.error), warnings.catch_warnings():
            show_warnings()
            main()
    except InputError as error:
        _exit(str(error), error)
    except SomeFailed as error:
        _exit(str(error), error, PARTLY)
    except MemoryError as error:
        _exit(f"not enough memory ({error}): take larger voxels or a smaller box", error)
    except RuntimeError as error:  # jaxlib's own class, which may not be imported yet
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        message = "the device has not enough memory for these maps: crop or bin them, or fit fewer targets at once"
        _exit(message, error)
    except OSError as error:
        _exit(f"{error.filename}: {error.strerror}" if error.filename and error.strerror else str(error), error)
    except KeyboardInterrupt as error:
        number = signals.caught[-1] if signals.caught else signal.SIGINT
        _exit(f"stopped by {signal.Signals(number).name}", error, 128 + number)


def command_of(
    main: Callable[[], None], define_flags: Callable[[], None], names: Sequence[str] = ()
) -> Callable[[], None]:
    """The command with these flags, as it is started by its name; `names` as for `run`."""

    def command() -> None:
        define_flags()
        run(main, names)

    return command


def show_warnings() -> None:
    """From now on, print each InputWarning once, as one line on stderr."""
    from cryotrans_jax.io.files import InputWarning

    shown: set[str] = set()

    def show(message, category, *where, **more) -> None:
        text = " ".join(str(message).split())
        if not issubclass(category, InputWarning):
            others(message, category, *where, **more)
        elif text not in shown:
            shown.add(text)
            log.warning(text)

    warnings.simplefilter("always", InputWarning)
    others, warnings.showwarning = warnings.showwarning, show


def parse_flags(names: Sequence[str] = ()) -> None:
    """Parse the command line, whose flags may follow its names, and exit where it is wrong; `names` as for `run`."""
    flags.FLAGS.set_gnu_getopt()
    try:
        positional.take(flags.FLAGS(sys.argv)[1:], names, flags.FLAGS)
    except flags.Error as error:
        message = MISSING.sub(r"--\1 is missing;", str(error)).removeprefix("flag ").replace(": is not ", " is not ")
        _exit(message.rstrip(".;") + "; see --help")


def keep_compiled_programs() -> None:
    """Keep compiled programs in the user's cache folder, for later runs: JAX's own cache, and in its folder ours.

    Set through the environment, before JAX is imported; the user's own settings there have priority.
    JAX_COMPILATION_CACHE_DIR= names another folder, JAX_ENABLE_COMPILATION_CACHE=false disables both.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cryotrans-jax"
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    from cryotrans_jax.io import exported

    exported.keep_traced()


def compute_deterministically() -> None:
    """Let XLA sum in a fixed order on GPUs, and choose its kernels without timing them.

    Set through the environment, before JAX is imported, and after the flags that the user has set there. This flag
    implies the milder --xla_gpu_exclude_nondeterministic_ops, which would still time the kernels.
    """
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_gpu_deterministic_ops=true".strip()


def _exit(message: str, error: BaseException | None = None, status: int = FAILED) -> None:
    """End the program with an error message of one line; notes on the error follow the message."""
    log.error("; ".join([message, *getattr(error, "__notes__", ())]))
    sys.exit(status)
