"""Stand in for a module that `jsonschema` can do without.

The real one builds parsers for seconds. This one is empty, so that `jsonschema` does not use it."""
