"Modules that Ray's own processes find instead of others, which are slow to import and of no use to them. Only a Ray that an engine starts has this folder on its path."
