"""The program in the guest: a thin shell around the forwarder.

May import: the standard library, fabric.errors, fabric.wire, fabric.routing.
"""
