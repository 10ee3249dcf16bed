"""Bytes on the wire and their meaning. Pure: no clock, socket, randomness or environment.

May import: fabric.errors.
"""
