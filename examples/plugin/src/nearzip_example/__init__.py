"""A method, a stage and a store backend for nearzip: docs/plugins.md."""
