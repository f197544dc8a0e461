"The plugins of all installed packages, found without importing any of them."

from cjm_worker_protocols import lazy_names

TYPE_CHECKING = False  # type checkers take it for true; nothing else is imported here, not even typing
if TYPE_CHECKING:
    from .config import (ConfigFileError as ConfigFileError, ConfigFolderError as ConfigFolderError,
        NoConfigFolderError as NoConfigFolderError, variable_name as variable_name)
    from .registry import (DuplicatePluginError as DuplicatePluginError, EntryPointRegistry as EntryPointRegistry,
        RegistryLoader as RegistryLoader)
    from .scan import (GROUP as GROUP, InstalledPlugin as InstalledPlugin, PluginIdError as PluginIdError,
        RegistryExtraError as RegistryExtraError, check_id as check_id, file_name as file_name)
    from .schema import PluginConfigError as PluginConfigError, PluginSchemaError as PluginSchemaError, parse_json as parse_json

# Each name is imported when it is first asked for: the process that applies a schema needs only one of the modules.
__getattr__, __dir__ = lazy_names(globals(), {
    "registry": "EntryPointRegistry RegistryLoader DuplicatePluginError",
    "scan": "GROUP InstalledPlugin PluginIdError RegistryExtraError check_id file_name",
    "schema": "PluginConfigError PluginSchemaError parse_json",
    "config": "ConfigFileError ConfigFolderError NoConfigFolderError variable_name",
})
