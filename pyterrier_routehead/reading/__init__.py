"""Head scores with what they describe: read by a model, or kept on disk. It imports ``model`` and those above it.

===========  ===========================================================================================================
``reading``  what a vector of head scores describes
``entries``  the files of a store
``store``    `HeadScoreStore`: head scores on disk
``reader``   reads head scores for candidate lists under some settings
===========  ===========================================================================================================
"""

from .reading import ModelIdentity, Reading, ReadingSettings

__all__ = ["ModelIdentity", "Reading", "ReadingSettings"]
