"""What every folder may use. It knows nothing of heads, models or frames, and imports nothing of this package.

=============  =========================================================================================================
``errors``     errors that callers may want to catch
``arguments``  checks of arguments, by the names that users typed
``notices``    warnings that point at the user's own line
``progress``   progress bars where somebody looks
``locks``      locks that a forked process finds free
``standard``   standard scores
``paths``      paths as users type them, made absolute once
``schema``     what a file may say: strict JSON and its types
``tensors``    files of float32 arrays
``saving``     artifacts as folders, written whole or not at all
``sharing``    artifacts as packages, with cards that say what they are
=============  =========================================================================================================
"""
