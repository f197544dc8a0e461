"The plugins of all installed packages, found and configured without importing any of them."

TYPE_CHECKING = False  # type checkers take it for true; nothing is imported here, not even typing
if TYPE_CHECKING:
    from .config import (ConfigFileError as ConfigFileError, ConfigFolderError as ConfigFolderError,
        NoConfigFolderError as NoConfigFolderError, variable_name as variable_name)
    from .registry import (DuplicatePluginError as DuplicatePluginError, EntryPointRegistry as EntryPointRegistry,
        RegistryLoader as RegistryLoader)
    from .scan import (GROUP as GROUP, InstalledPlugin as InstalledPlugin, PluginIdError as PluginIdError,
        RegistryExtraError as RegistryExtraError, check_id as check_id, file_name as file_name)
    from .schema import PluginConfigError as PluginConfigError, PluginSchemaError as PluginSchemaError, parse_json as parse_json

# Each name is imported when it is first asked for: the process that applies a schema needs only one of the modules.
_where = {
    "EntryPointRegistry": "registry", "RegistryLoader": "registry", "DuplicatePluginError": "registry",
    "GROUP": "scan", "InstalledPlugin": "scan", "PluginIdError": "scan", "RegistryExtraError": "scan",
    "check_id": "scan", "file_name": "scan",
    "PluginConfigError": "schema", "PluginSchemaError": "schema", "parse_json": "schema",
    "ConfigFileError": "config", "ConfigFolderError": "config", "NoConfigFolderError": "config", "variable_name": "config",
}

__all__ = ["EntryPointRegistry", "RegistryLoader", "DuplicatePluginError", "GROUP", "InstalledPlugin", "PluginIdError",
           "RegistryExtraError", "check_id", "file_name", "PluginConfigError", "PluginSchemaError", "parse_json",
           "ConfigFileError", "ConfigFolderError", "NoConfigFolderError", "variable_name"]

def __getattr__(name: str) -> object:
    if name not in _where: raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module
    value = globals()[name] = getattr(import_module(f"{__name__}.{_where[name]}"), name)
    return value

def __dir__() -> list[str]: return sorted({*globals(), *__all__})
