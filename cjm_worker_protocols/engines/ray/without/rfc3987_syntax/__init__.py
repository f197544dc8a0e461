"Empty. `jsonschema` imports a module of this name, which builds parsers for seconds, and does without when it finds nothing in it."
