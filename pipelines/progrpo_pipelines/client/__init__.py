"""Submit pipelines to a Kubeflow Pipelines API server and give a verdict."""
