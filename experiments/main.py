"""What every job does alike: parse its flags, run it, and say in one line what went wrong."""

import os
import re
import signal
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

from absl import flags

from . import log, signals, usage

MISSING = re.compile(r"flag --(\w+)=None: Flag --\w+ must have a value other than None\.")
FAILED, PARTLY = 2, 3


class SomeFailed(Exception):
    """The job is done for some of what it was given, and not for the rest."""


def run(main: Callable[[], None]) -> None:
    """Exits with status 0 once `main()` returns, 2 on input that cannot be used, 3 where only a part could be done.

    And with 128 and the signal's number where one of `signals.SIGNALS` ended it.

    Flags are parsed first; where the command line asks for help, they are described instead, below what the module of
    `main` says of itself. Bad flags, InputError, OSError and MemoryError become one line on stderr, with what was noted
    on them; other errors are faults of the program and keep their traceback. Nothing heavy is imported before the flags
    are parsed, so that --help is quick: let `main` import what it needs.
    """
    if usage.asked(sys.argv):
        log.info(usage.shown(sys.modules[main.__module__].__doc__))
        sys.exit(0)
    parse_flags()
    keep_compiled()
    if "deterministic" in flags.FLAGS and flags.FLAGS.deterministic:
        compute_deterministically()
    from cryotrans_jax.files import InputError

    try:
        with signals.stopping(log.error), warnings.catch_warnings():
            show_warnings()
            main()
    except InputError as error:
        _stop(str(error), error)
    except SomeFailed as error:
        _stop(str(error), error, PARTLY)
    except MemoryError as error:
        _stop(f"not enough memory ({error}): take larger voxels or a smaller box", error)
    except RuntimeError as error:  # jaxlib's own class, which may not be imported yet
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        told = "the device has not enough memory for these maps: crop or bin them, or fit fewer targets at once"
        _stop(told, error)
    except OSError as error:
        _stop(f"{error.filename}: {error.strerror}" if error.filename and error.strerror else str(error), error)
    except KeyboardInterrupt as error:
        number = signals.caught[-1] if signals.caught else signal.SIGINT
        _stop(f"stopped by {signal.Signals(number).name}", error, 128 + number)


def show_warnings() -> None:
    """Show each InputWarning as one line on stderr, once, from now on."""
    from cryotrans_jax.files import InputWarning

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


def parse_flags() -> None:
    """Nothing; the flags have their values. Stops at bad flags."""
    try:
        rest = flags.FLAGS(sys.argv)[1:]
    except flags.Error as error:
        message = MISSING.sub(r"--\1 is missing;", str(error)).removeprefix("flag ").replace(": is not ", " is not ")
        _stop(message.rstrip(".;") + "; see --help")
    if rest and "entries" in flags.FLAGS:
        flags.FLAGS.entries = [*flags.FLAGS.entries, *rest]
    elif rest:
        _stop(f"unexpected argument {rest[0]!r}: every option has the form --name=value; see --help")


def keep_compiled() -> None:
    """Nothing; JAX keeps compiled programs in the user's cache folder from one run to the next.

    Set through the environment, before JAX is imported; what the user has set there stays. JAX_COMPILATION_CACHE_DIR=
    names another folder, JAX_ENABLE_COMPILATION_CACHE=false keeps nothing.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cryotrans-jax"
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")


def compute_deterministically() -> None:
    """Nothing; XLA adds up in one order on GPUs, and chooses its kernels without timing them.

    Set through the environment, before JAX is imported, after the flags that the user has set there. The milder
    --xla_gpu_exclude_nondeterministic_ops is implied by this one, and would leave the timing.
    """
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_gpu_deterministic_ops=true".strip()


def _stop(message: str, error: BaseException | None = None, status: int = FAILED) -> None:
    """End the program with a message of one line, with what was noted on the error."""
    log.error("; ".join([message, *getattr(error, "__notes__", ())]))
    sys.exit(status)
