"""From a still image and audio to a source video that can be lip-synced.

    animation  procedural head motion and the warp that shows it
    source     the source video; the cache of generated clips

The package does not lip-sync.
"""
