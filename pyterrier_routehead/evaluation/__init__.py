"""The measure that compares rankings, and clean query splits. It imports nothing of this package.

============  ==========================================================================================================
``measures``  nDCG@10, the measure of all comparisons
``splits``    training and validation queries without leakage from the test queries
============  ==========================================================================================================
"""
