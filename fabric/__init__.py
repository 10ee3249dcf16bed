"""fabric: a microVM per connection, a routing protocol per application, a record of every hop.

Layers, each importing only what stands to its left (``tests/unit/test_import_law.py`` enforces it):
``errors <- wire <- routing <- agent`` and ``errors, wire, routing <- host <- lab <- cli``.
"""

__version__ = "0.1.0"
