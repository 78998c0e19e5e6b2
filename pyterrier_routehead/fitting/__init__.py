"""Learning from judged candidate lists, for ``fit``; the lists come from the same sources as rankings.

It imports ``ranking`` and those above it; no torch.

============  ===================================================================================================
"""
