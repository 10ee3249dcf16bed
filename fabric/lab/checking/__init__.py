"""``fabric check``: trying on a running lab what its topology file promises."""
