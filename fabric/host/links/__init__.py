"""The links to this host's neighbours, watched and measured by a process of their own.

May import: errors, wire, routing, host.network and what lies directly in host. A process of its
own, because what says whether a link is alive must neither wait for an orchestrator that is busy
nor die with it: neighbours would take the restart of a control plane for a dead link.
"""
