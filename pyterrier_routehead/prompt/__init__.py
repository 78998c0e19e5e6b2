"""From a query and its candidates to token ids. It imports ``common`` and the templates; no torch.

============  ==========================================================================================================
``chat``      the markup of a user's turn
``cutting``   truncates a text before tokenising, with unchanged first ids
``encoding``  text to token ids; markup and data are encoded separately
``build``     a query and its candidates as token ids, with exact spans
============  ==========================================================================================================
"""
