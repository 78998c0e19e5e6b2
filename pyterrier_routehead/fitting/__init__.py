"""Learning from judged candidate lists, for ``fit``; the lists come from the same sources as rankings.

It imports ``ranking`` and those above it; no torch.

============  ==========================================================================================================
``judged``    judged candidate lists, and the quality of heads on them
``choosing``  which of several head sets, and with how many heads, on validation queries
``routers``   learns a router from judged lists
============  ==========================================================================================================
"""
