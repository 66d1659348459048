"""From a still picture and a voice to a source video that can be lip-synced.

    animation  procedural head motion and the warp that shows it
    source     the source video; the cache of generated clips

The package knows nothing of lips.
"""
