"""The environment variables of our pods, and the keys of config map and secrets that they come from.

Each begins with ``PROGRPO_``, and no other is set. In the container of a step Kubeflow's launcher runs too and takes
``AWS_*`` for uploads of its own; Kubeflow's MLflow plugin (2.17, ``injectUserEnvVars``) puts ``MLFLOW_*`` there, where
a variable of the same name with ``valueFrom`` makes the pod invalid. A process takes them for the usual ones in
:func:`progrpo.storage.take_own_variables` and :func:`progrpo_components.tracking.server.server_uri`.
"""

from __future__ import annotations

CONFIG_MAP = {
    "PROGRPO_MLFLOW_TRACKING_URI": "MLFLOW_TRACKING_URI",
    "PROGRPO_S3_ENDPOINT_URL": "AWS_ENDPOINT_URL",
    "PROGRPO_S3_REGION": "AWS_REGION",
    "PROGRPO_SANDBOX_URL": "PROGRPO_SANDBOX_URL",
    "PROGRPO_TRACKING": "PROGRPO_TRACKING",
    "PROGRPO_TRAINING_RUNTIME": "PROGRPO_TRAINING_RUNTIME",
    "PROGRPO_UI_ENDPOINT": "KF_PIPELINES_UI_ENDPOINT",
}
S3_SECRET = {
    "PROGRPO_S3_ACCESS_KEY_ID": "AWS_ACCESS_KEY_ID",
    "PROGRPO_S3_SECRET_ACCESS_KEY": "AWS_SECRET_ACCESS_KEY",
}
MLFLOW_SECRET = {
    "PROGRPO_MLFLOW_TRACKING_USERNAME": "MLFLOW_TRACKING_USERNAME",
    "PROGRPO_MLFLOW_TRACKING_PASSWORD": "MLFLOW_TRACKING_PASSWORD",
    "PROGRPO_MLFLOW_TRACKING_TOKEN": "MLFLOW_TRACKING_TOKEN",
}
"""Variable -> key. All are optional: what is absent in the namespace is not set."""
