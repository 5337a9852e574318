"""Training over several nodes by a TrainJob of Kubeflow Trainer, without torch: only the worker imports it.

launcher     a CPU step: makes the TrainJob, follows it, ends as it ends
spec         the TrainJob as a manifest
cluster      the Kubernetes API
status       what a TrainJob, its pods and its events say
logs         the log of the first node
worker       what runs in the pods
job          what the launcher tells the worker, and the worker the launcher
artifacts    inputs and the training run by URI
reaper       removes TrainJobs that nobody waits for
"""
