"Jobs that outlive the app: a job store on one SQLite file."

TYPE_CHECKING = False  # type checkers take it for true; nothing is imported here, not even typing
if TYPE_CHECKING:
    from .errors import (StoreDamagedError as StoreDamagedError, StoreDiskError as StoreDiskError, StoreForkedError as StoreForkedError,
        StoreFullError as StoreFullError, StoreLockedError as StoreLockedError, StoreLockingError as StoreLockingError,
        StorePermissionError as StorePermissionError, StoreReadOnlyError as StoreReadOnlyError, StoreVersionError as StoreVersionError)
    from .records import SQLiteRecords as SQLiteRecords
    from .store import SQLiteJobStore as SQLiteJobStore, retry_job as retry_job

# Each name is imported when it is first asked for.
_where = {
    "StoreDamagedError": "errors", "StoreDiskError": "errors", "StoreForkedError": "errors", "StoreFullError": "errors",
    "StoreLockedError": "errors", "StoreLockingError": "errors", "StorePermissionError": "errors", "StoreReadOnlyError": "errors",
    "StoreVersionError": "errors", "SQLiteRecords": "records", "SQLiteJobStore": "store", "retry_job": "store",
}

__all__ = ["StoreDamagedError", "StoreDiskError", "StoreForkedError", "StoreFullError", "StoreLockedError", "StoreLockingError",
           "StorePermissionError", "StoreReadOnlyError", "StoreVersionError", "SQLiteRecords", "SQLiteJobStore", "retry_job"]

def __getattr__(name: str) -> object:
    if name not in _where: raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module
    value = globals()[name] = getattr(import_module(f"{__name__}.{_where[name]}"), name)
    return value

def __dir__() -> list[str]: return sorted({*globals(), *__all__})
