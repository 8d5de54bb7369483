"""The ML layer: tasks (data, model, loss), local training, averaging and additive metrics, over numpy vectors.

It never imports prefect, cryptography, protocols or flows: a new task needs torch and nothing else of this project.
"""
