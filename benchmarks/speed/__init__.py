"""Speed: what is timed, how, and the pictures of it. The other libraries are in `benchmarks.peers`.

A timing is never a test: it depends on the machine and on its neighbours. So each task times pairs
in turn, gives medians of their ratios with intervals, and a model against itself beside them.
"""
