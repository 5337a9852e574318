"""Ask the server for its models and for one token, with the key and without: what helm test runs."""

import json
import os
import urllib.error
import urllib.request

BASE, MODEL, KEY = os.environ["BASE_URL"], os.environ["MODEL"], os.environ.get("VLLM_API_KEY", "")


def ask(path, body=None, key=KEY):
    """Return the answer to a request."""
    headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {key}"} if key else {})}
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(BASE + path, data, headers)  # noqa: S310
    with urllib.request.urlopen(request, timeout=120) as response:  # noqa: S310
        return json.load(response)


if os.environ.get("VLLM_API_KEY") == "":
    raise SystemExit("the key in the Secret is empty, and vLLM asks nobody for an empty key")
names = [model["id"] for model in ask("/v1/models")["data"]]
if MODEL not in names:
    raise SystemExit(f"the server has {names}, not {MODEL!r}")
answer = ask("/v1/completions", {"model": MODEL, "prompt": "1 + 1 =", "max_tokens": 1})
if KEY:
    try:
        ask("/v1/models", key="")
    except urllib.error.HTTPError as error:
        if error.code != 401:
            raise
    else:
        raise SystemExit("the server answers without a key")
print(f"{MODEL} answered {answer['choices'][0]['text']!r}")
