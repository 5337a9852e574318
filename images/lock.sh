#!/usr/bin/env bash
# Pin what the images install, as requirements.lock pins it. Run by: make lock-images
set -euo pipefail
cd "$(dirname "$0")"
UV=${UV:-uv}
resolve() { # INPUT [OPTION]...: the pins of INPUT and of everything it needs
  "$UV" pip compile --quiet --universal --python-version 3.11 --constraints ../requirements.lock --no-header \
    --no-annotate --no-emit-index-url --no-emit-find-links --no-emit-package pip "${@:2}" "$1"
}

# kfp asks for Google's storage client and huggingface-hub for hf-xet; neither is imported before it is used. Its
# pipeline specification, which is compiled and read in the light image alone, imports Google's common protos.
UNUSED=(google-api-core google-cloud-core google-cloud-storage google-crc32c google-resumable-media
  proto-plus hf-xet tzdata colorama)
LEFT_OUT=()
for name in "${UNUSED[@]}"; do LEFT_OUT+=(--no-emit-package "$name"); done

cpu=progrpo-cpu/requirements
{ echo "# make lock-images, from requirements.in"; resolve $cpu.in --generate-hashes "${LEFT_OUT[@]}"; } >$cpu.new
mv $cpu.new $cpu.lock

# The accelerator libraries that torch pins follow its build; the build for CPUs has none.
gpu=progrpo-gpu/requirements
{ echo "# make lock-images, from requirements.in"
  resolve $gpu.in "${LEFT_OUT[@]}" --no-emit-package googleapis-common-protos |
    grep -vE '^(nvidia-|cuda-|triton)' | sed -E 's/^torch==([0-9.]+).*/torch==\1/' | uniq
} >$gpu-cpu.new
mv $gpu-cpu.new $gpu-cpu.lock

# vLLM's image has what vLLM needs, in versions of its own choice; the rest is added beside it.
vllm=$(sed -nE 's/^gpu = \["(vllm==[0-9.]+)"\]$/\1/p' ../pyproject.toml)
THERE=()
for name in $("$UV" pip compile --quiet --python-version 3.12 --python-platform x86_64-manylinux_2_28 --no-header \
  --no-annotate --no-emit-index-url --no-emit-find-links - <<<"$vllm" | sed -E 's/[=@ ;].*//'); do
  THERE+=(--no-emit-package "$name")
done
{ echo "# make lock-images, from requirements.in: what an image with $vllm lacks"
  resolve $gpu.in --generate-hashes "${LEFT_OUT[@]}" --no-emit-package googleapis-common-protos "${THERE[@]}"
} >$gpu.new
mv $gpu.new $gpu.lock
