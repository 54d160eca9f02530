"""Questions about videos, asked one file at a time: accuracy, and what it costs.

``readers`` turn data sets as they lie on disk into ``questions``; ``protocol`` words them and
scores the replies; ``engine`` answers the questions about one clip; ``run`` does so for a whole
file, ahead of the device, and appends to ``results``; ``summary`` is what a run comes to, and
``report`` puts runs side by side with what the ``paper`` reports.
"""
