"""Bringing a client's file to another version of a store."""
