"""HTTP fronts of server and client, the dashboard and the prediction page. The only place that imports FastAPI."""
