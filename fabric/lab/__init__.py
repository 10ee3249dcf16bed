"""Labs on one machine: a topology file becomes namespaces, links and orchestrators.

May import: errors, wire, routing, host. Nothing here prints, exits or reads the environment.
"""
