"""All decisions of a job, made before rendering and stored as a plan.

    timeline  output frame → source frame; windows; segments (pure)
    speakers  several speakers: intervals and the mix
    planner   reads audio and video step by step and makes the plan
    plan      the plan: frozen data, save, load, portable files

The package does not render frames and does not know who submitted the job.
"""
