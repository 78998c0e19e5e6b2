"""How rankings are compared, and on which queries. It imports nothing of this package.

============  ==========================================================================================================
``measures``  nDCG@10, by which everything is compared
``splits``    training and validation queries that give nothing away about the test queries
============  ==========================================================================================================
"""
