"""How the package is built: measured, so that it does not grow tangled again."""
