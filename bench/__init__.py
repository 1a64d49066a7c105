"""The benchmark: fusecache and its peers, measured side by side in one run.

Absolute figures belong to one machine and one hour; what carries over is the ratio of two figures of one run. So every
workload alternates between all contestants, round after round, and the goals are ratios of medians.
"""
