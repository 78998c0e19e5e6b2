"""From a query and its candidates to token ids. It imports ``common`` and the templates; no torch.

============  ==========================================================================================================
``chat``      the markup around a user's turn
``cutting``   how far a text must be read for its first ids
``encoding``  text to token ids, markup apart from data
``build``     a query and its candidates as ids, with exact spans
============  ==========================================================================================================
"""
