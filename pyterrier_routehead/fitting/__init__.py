"""What ``fit`` learns from judged candidate lists, read from the same sources as rankings are.

It imports ``ranking`` and those above it; no torch.

============  ==========================================================================================================
``judged``    judged candidate lists, and how well heads rank them
``choosing``  which of several head sets, and with how many heads, on validation queries
``routers``   from judged lists to a router
============  ==========================================================================================================
"""
