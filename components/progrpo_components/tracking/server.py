"""Which MLflow server this process talks to, and as whom: the first of these that is there.

1. ``MLFLOW_*`` where Kubeflow's MLflow plugin handed out a run of its own with them.
2. ``PROGRPO_MLFLOW_*``, which our packages and charts set: no platform has these names.
3. ``MLFLOW_*`` as for every program.
4. The server of the plugin, where it hands nothing out (Kubeflow Pipelines 2.17.0).

An address and the credentials for it are of one source: nobody's password goes to another's server.
"""

from __future__ import annotations

import json
import logging
import os

from pydantic import BaseModel, Field

from progrpo.storage import take_own_variables

logger = logging.getLogger(__name__)

URI = "MLFLOW_TRACKING_URI"
PLUGIN_VARIABLE = "KFP_MLFLOW_CONFIG"
RUN_ID_VARIABLE = "PROGRPO_PIPELINE_RUN_ID"
_OWN = "PROGRPO_MLFLOW_"
_IDENTITY = {
    f"MLFLOW_{name}"
    for name in ("TRACKING_USERNAME", "TRACKING_PASSWORD", "TRACKING_TOKEN", "TRACKING_AUTH", "WORKSPACE")
}


class PluginConfig(BaseModel):
    """What Kubeflow's plugin tells every task.

    MLflowRuntimeConfig of backend/src/common/plugins/mlflow/config.go, Kubeflow Pipelines 2.17.0. Credentials
    for ``bearer`` and ``basic-auth`` are in the task's environment already, under mlflow's names
    (``OnBeforeRunCreation``, backend/src/apiserver/plugins/mlflow/handler.go).
    """

    endpoint: str = ""
    parent_run_id: str = Field(alias="parentRunId", min_length=1)
    experiment_id: str = Field(alias="experimentId", min_length=1)
    workspace: str = ""
    auth_type: str = Field("", alias="authType")
    insecure_skip_verify: bool = Field(False, alias="insecureSkipVerify")
    secret_keys: dict[str, str] = Field(default_factory=dict, alias="credentialSecretRef")

    @property
    def variables(self) -> dict[str, str]:
        """The server as mlflow's variables, by the rules of backend/src/v2/common/plugins/mlflow/handler.go, 2.17.0."""
        found = {URI: self.endpoint} if self.endpoint else {}
        if self.workspace:
            found["MLFLOW_WORKSPACE"] = self.workspace
        if self.auth_type == "kubernetes":
            found["MLFLOW_TRACKING_AUTH"] = "kubernetes-namespaced" if self.workspace else "kubernetes"
        return found | ({"MLFLOW_TRACKING_INSECURE_TLS": "true"} if self.insecure_skip_verify else {})

    @property
    def credentials(self) -> dict[str, str]:
        """Variables of mlflow -> the keys of the Secret ``kfp-mlflow-credentials`` that hold them."""
        names = {"bearer": ("token",), "basic-auth": ("username", "password")}.get(self.auth_type, ())
        keys = {f"MLFLOW_TRACKING_{name.upper()}": self.secret_keys.get(f"{name}Key", "") for name in names}
        return {variable: key for variable, key in keys.items() if key}


def plugin_config() -> PluginConfig | None:
    """Return what Kubeflow's plugin tells the task; None without it, and in ``progrpo run``."""
    raw = os.environ.get(PLUGIN_VARIABLE)
    if not raw or RUN_ID_VARIABLE in os.environ:
        return None
    try:
        return PluginConfig.model_validate(json.loads(raw))
    except ValueError:
        # Internal to Kubeflow, which promises nothing about it.
        logger.warning("%s is not as expected and is ignored", PLUGIN_VARIABLE)
        return None


def handed_out() -> dict[str, str]:
    """Return the run that Kubeflow's plugin made for this task and handed out: ``run_id``, ``experiment_id``."""
    run_id = os.environ.get("MLFLOW_RUN_ID")
    if not run_id or RUN_ID_VARIABLE in os.environ:
        return {}  # progrpo run, whose tasks share one environment: they would all log into one run
    experiment = os.environ.get("MLFLOW_EXPERIMENT_ID")
    return {"run_id": run_id} | ({"experiment_id": experiment} if experiment else {})


def server_uri() -> str | None:
    """Return the address of the server; None if none is named.

    The variables of this process are renamed to those that mlflow reads, and so its children have them. The process
    that started it, in a pod Kubeflow's launcher, keeps its own.
    """
    take_own_variables()  # mlflow goes to S3 itself where the server does not serve the artifacts
    names = [name for name in os.environ if name.startswith(_OWN)]
    own = {name.removeprefix("PROGRPO_"): value for name in names if (value := os.environ.pop(name))}
    if URI in own and not (handed_out() and os.environ.get(URI)):
        for name in _IDENTITY:
            os.environ.pop(name, None)
        os.environ.update(own)
    if not os.environ.get(URI) and (plugin := plugin_config()) is not None:
        os.environ.update(plugin.variables)
    return os.environ.get(URI) or None
