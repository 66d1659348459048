"""All decisions of a job, made before rendering and stored as a plan.

    timeline  output frame -> source frame; windows; segments (pure)
    speakers  several speakers: intervals and the mix
    plan      the plan: data, planner, files

The package knows neither how frames are rendered nor who asked for the job.
"""
