"""The exception tree.

    GnpError
    ├── RecipeError      a recipe or an argument is wrong: field, value and remedy     (ValueError)
    ├── ShardError       an input shard is truncated, damaged or not a tar             (ValueError)
    ├── SampleError      one sample cannot be used: it goes to quarantine              (ValueError)
    ├── WeightsError     a model's weights cannot be had or do not fit                 (ValueError)
    ├── StorageError     the object store refused or failed                            (OSError)
    │   ├── MissingError     no such object or bucket
    │   └── IntegrityError   stored bytes are not those that were committed
    ├── CapacityError    the cluster cannot hold what was asked for                    (RuntimeError)
    └── Interrupted      told to stop; what is committed stands

Everything here is a user's or the environment's doing and reads as one line: what, where, what to do.
A defect of the pipeline itself is an `AssertionError` or whatever Python raises.
"""


class GnpError(Exception):
    """The base of every error that a user can act on."""


class RecipeError(GnpError, ValueError):
    """A recipe or an argument is wrong."""


class ShardError(GnpError, ValueError):
    """An input shard is truncated, damaged or not a tar archive."""


class SampleError(GnpError, ValueError):
    """One sample cannot be used; the message is its quarantine reason."""


class WeightsError(GnpError, ValueError):
    """A model's weights cannot be had, or do not fit its architecture."""


class StorageError(GnpError, OSError):
    """The object store refused or failed."""


class MissingError(StorageError):
    """There is no such object or bucket."""


class IntegrityError(StorageError):
    """Stored bytes are not those that were committed."""


class CapacityError(GnpError, RuntimeError):
    """The cluster cannot hold what was asked for."""


class Interrupted(GnpError):  # noqa: N818  # nothing went wrong
    """Work ended early because somebody asked for it; what is committed stands."""
