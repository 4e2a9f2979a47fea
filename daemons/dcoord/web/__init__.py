"""The web server's process: pages, the JSON API, task data, results and blobs."""
