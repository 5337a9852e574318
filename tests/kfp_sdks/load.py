"""Load packages with the KFP SDK of this environment, and read them with its protocol buffers, strictly.

``python load.py PACKAGE...`` prints one JSON object: package -> what was wrong with it, empty if nothing. An API server
reads a package with the same protocol buffers, and refuses a field that they lack.
"""

import json
import sys

import yaml
from google.protobuf import json_format
from kfp import components
from kfp.kubernetes import kubernetes_executor_config_pb2
from kfp.pipeline_spec import pipeline_spec_pb2


def problem_of(path):
    """Return why a package is refused; empty if it is not."""
    with open(path) as file:  # noqa: PTH123 - also of Python's oldest SDK environment
        spec, platform = yaml.safe_load_all(file)
    try:
        json_format.ParseDict(spec, pipeline_spec_pb2.PipelineSpec())
        json_format.ParseDict(platform, pipeline_spec_pb2.PlatformSpec())
        for executor in platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"].values():
            json_format.ParseDict(executor, kubernetes_executor_config_pb2.KubernetesExecutorConfig())
        loaded = components.load_component_from_file(path)
        assert set(loaded.component_spec.inputs) == set(spec["root"]["inputDefinitions"]["parameters"])
    except Exception as error:
        return f"{type(error).__name__}: {error}"[:500]
    return ""


print(json.dumps({path: problem_of(path) for path in sys.argv[1:]}))
