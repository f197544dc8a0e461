"Jobs that outlive the app: a job store on one SQLite file."

from cjm_worker_protocols import lazy_names

TYPE_CHECKING = False  # type checkers take it for true; nothing else is imported here, not even typing
if TYPE_CHECKING:
    from .errors import (StoreDamagedError as StoreDamagedError, StoreDiskError as StoreDiskError, StoreFileLostError as StoreFileLostError,
        StoreFolderError as StoreFolderError, StoreForkedError as StoreForkedError, StoreFullError as StoreFullError,
        StoreLockedError as StoreLockedError, StoreLockingError as StoreLockingError,
        StorePermissionError as StorePermissionError, StoreReadOnlyError as StoreReadOnlyError, StoreVersionError as StoreVersionError)
    from .records import SQLiteRecords as SQLiteRecords
    from .store import SQLiteJobStore as SQLiteJobStore, retry_job as retry_job

# Each name is imported when it is first asked for.
__getattr__, __dir__ = lazy_names(globals(), {
    "errors": "StoreDamagedError StoreDiskError StoreFileLostError StoreFolderError StoreForkedError StoreFullError "
              "StoreLockedError StoreLockingError StorePermissionError StoreReadOnlyError StoreVersionError",
    "records": "SQLiteRecords",
    "store": "SQLiteJobStore retry_job",
})
