"""From a plan to segment files: decode and crop, denoise, paste, encode.

    render            one segment
    segment_renderer  all segments of a job: resume, order, sharing
    output_check      rejects broken faces before anything is published
    work_dir          a job's directory, its lock, the atomic output

The package knows neither terminals nor HTTP.
"""
