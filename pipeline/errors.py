"""The exception tree.

    GnpError
    ├── RecipeError      a recipe or an argument is wrong: field, value and remedy     (ValueError)
    ├── ShardError       an input shard is truncated, damaged or not a tar             (ValueError)
    ├── SampleError      one sample cannot be used: it goes to quarantine              (ValueError)
    ├── WeightsError     a model's weights cannot be loaded or do not fit              (ValueError)
    ├── StorageError     the object store refused or failed                            (OSError)
    │   ├── MissingError     no such object or bucket
    │   └── IntegrityError   stored bytes are not those that were committed
    ├── CapacityError    the cluster or this machine lacks a resource or the time      (RuntimeError)
    └── Interrupted      a stop was requested; what is committed stays

A user or the environment causes these; each reads as one line: what, where, what to do. A defect of the pipeline itself
is an `AssertionError` or whatever Python raises.
"""


class GnpError(Exception):
    """Base of every error that a user can act on."""


class RecipeError(GnpError, ValueError):
    """A recipe or an argument is wrong."""


class ShardError(GnpError, ValueError):
    """An input shard is truncated, damaged or not a tar archive."""


class SampleError(GnpError, ValueError):
    """One sample cannot be used; the message is its quarantine reason."""


class WeightsError(GnpError, ValueError):
    """A model's weights cannot be loaded, or do not fit its architecture."""


class StorageError(GnpError, OSError):
    """The object store refused or failed."""


class MissingError(StorageError):
    """There is no such object or bucket."""


class IntegrityError(StorageError):
    """Stored bytes are not those that were committed."""


class CapacityError(GnpError, RuntimeError):
    """The cluster or this machine lacks a resource that is needed, or the time ran out."""


class Interrupted(GnpError):  # noqa: N818  # not a failure
    """Work ended early because a stop was requested; what is committed stays."""
