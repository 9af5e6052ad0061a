"""HTTP fronts of the server and the clients: the only place that imports FastAPI.

The server's front reads the files of runs and nothing else, so nothing that a page or a watcher does can cost a round, and a past
run is shown exactly as a running one.
"""
