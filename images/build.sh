#!/usr/bin/env bash
# Build an image of this repository: images/build.sh progrpo-cpu|progrpo-gpu
#
# Wheels are downloaded here, once, and the build itself needs no network. Settings, by environment:
#   IMAGE_REGISTRY   registry and folder that the name starts with; localhost/progrpo
#   BASE_IMAGE       by digest for a release; the Dockerfile's otherwise
#   BUILDER_IMAGE    of progrpo-cpu, likewise
#   REQUIREMENTS     of progrpo-gpu: requirements.lock on vLLM's image, requirements-cpu.lock on one with Python alone
#   TORCH_INDEX_URL  of requirements-cpu.lock: the index that has torch's build for CPUs; pip's own otherwise
#   PYTHON_VERSION   of the base image; 3.12
#   PYTHON, DOCKER   commands; python3 and docker
set -euo pipefail
cd "$(dirname "$0")/.."

name=${1:-}
case $name in
  progrpo-cpu) requirements=requirements.lock ;;
  progrpo-gpu) requirements=${REQUIREMENTS:-requirements.lock} ;;
  *) echo "error: images/build.sh progrpo-cpu|progrpo-gpu, not '$name'" >&2; exit 2 ;;
esac
PYTHON=${PYTHON:-python3} DOCKER=${DOCKER:-docker} PYTHON_VERSION=${PYTHON_VERSION:-3.12}
pip() { "$PYTHON" -m pip --disable-pip-version-check --quiet --quiet "$@"; }

version=$(sed -nE 's/^version = "(.*)"$/\1/p' pyproject.toml)
revision=$(git rev-parse HEAD 2>/dev/null || echo unknown)
SOURCE_DATE_EPOCH=$(git log -1 --format=%ct 2>/dev/null || echo 0)
export SOURCE_DATE_EPOCH # hatchling's

# The context: what the Dockerfile copies, and nothing else.
context=build/images/$name
mkdir -p "$context/wheels"
rm -f "$context"/progrpo-*.whl
cp images/check.py images/sbom.py "images/$name"/* "$context"
pip wheel --no-deps --wheel-dir "$context" .

# Of every manylinux that the base's glibc takes: Debian 12 has 2.36, Ubuntu 22.04, under vLLM's image, 2.35.
platforms=(--platform manylinux2014_x86_64 --platform manylinux2010_x86_64 --platform manylinux1_x86_64)
for minor in $(seq 35 -1 5); do platforms+=(--platform "manylinux_2_${minor}_x86_64"); done
stamp="$context/wheels/.$(cat "images/$name/$requirements" images/pins_for.py - <<<"$PYTHON_VERSION" | sha256sum | cut -c1-16)"
if [ ! -e "$stamp" ]; then
  rm -rf "$context/wheels" && mkdir "$context/wheels"
  target=(--python-version "$PYTHON_VERSION" --implementation cp --abi "cp${PYTHON_VERSION/./}" --abi abi3 --abi none)
  "$PYTHON" images/pins_for.py "$PYTHON_VERSION" <"images/$name/$requirements" >"$context/pins.txt"
  fetch=(pip download --no-deps "${target[@]}" "${platforms[@]}" --dest "$context/wheels")
  if [ "$requirements" = requirements-cpu.lock ]; then # by itself, as its index may have nothing else
    "${fetch[@]}" ${TORCH_INDEX_URL:+--index-url "$TORCH_INDEX_URL"} "$(grep '^torch==' "$context/pins.txt")"
    "$PYTHON" images/cpu_torch.py "$context"/wheels/torch-*.whl
    sed -i '/^torch==/d' "$context/pins.txt"
  fi
  "${fetch[@]}" --requirement "$context/pins.txt"
  for sdist in "$context"/wheels/*.tar.gz; do # kfp-server-api has no wheel; one time, so that builds stay cached
    SOURCE_DATE_EPOCH=946684800 pip wheel --no-deps --wheel-dir "$context/wheels" "$sdist" && rm "$sdist"
  done
  rm -rf "$context/pip"
  pip download --no-deps --dest "$context/pip" pip==26.3
  touch "$stamp"
fi

arguments=(--build-arg "VERSION=$version" --build-arg "REVISION=$revision" --build-arg "SOURCE=${SOURCE_URL:-}")
[ "$name" = progrpo-cpu ] && [ -n "${BUILDER_IMAGE:-}" ] && arguments+=(--build-arg "BUILDER_IMAGE=$BUILDER_IMAGE")
[ -n "${BASE_IMAGE:-}" ] && arguments+=(--build-arg "BASE_IMAGE=$BASE_IMAGE")
tag=${IMAGE_REGISTRY:-localhost/progrpo}/$name:$version
"$DOCKER" build "${arguments[@]}" --tag "$tag" "$context"
echo "$tag"
