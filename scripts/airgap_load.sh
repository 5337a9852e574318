#!/bin/sh
# Loads this bundle into the site's registry: ./load.sh [REGISTRY]. Needs docker, logged in there, and sha256sum.
set -eu
cd "$(dirname "$0")"
packed_for='@REGISTRY@'
registry=${1:-$packed_for}

sha256sum --check --quiet --strict SHA256SUMS

if [ "$registry" != "$packed_for" ]; then
  echo "note: the pipelines were compiled for $packed_for; compile them again for $registry" >&2
fi

rm -rf loaded
mkdir loaded
cp values/*.yaml loaded/
sed -i "s|imageRegistry: .*|imageRegistry: $registry|" loaded/*.yaml

tab=$(printf '\t')
while IFS="$tab" read -r file name _; do
  # "Loaded image ID: sha256:..." or "Loaded image: NAME"
  image=$(docker load --quiet --input "$file" | sed -n 's/^Loaded image\( ID\)\{0,1\}: //p' | head -n 1)
  docker tag "$image" "$registry/$name"
  docker push --quiet "$registry/$name" >/dev/null
  repository=$registry/${name%:*}
  digest=$(docker image inspect --format '{{range .RepoDigests}}{{println .}}{{end}}' "$registry/$name" |
    sed -n "s|^$repository@||p" | head -n 1)
  test -n "$digest" || { echo "error: $registry/$name has no digest after the push" >&2; exit 1; }
  sed -i "s|'@$file@'|$digest|; s|\"@$file@\"|$digest|" loaded/*.yaml
  echo "$registry/$name@$digest"
done <images.tsv

if grep -n '@images/' loaded/*.yaml; then
  echo "error: the digests above were not found" >&2
  exit 1
fi
echo
echo "Now install the charts with these values, and upload the pipelines:"
for values in loaded/*.yaml; do
  chart=$(basename "$values" .yaml)
  echo "  helm install $chart $(echo charts/$chart-[0-9]*.tgz) -f $values -f YOUR-VALUES.yaml"
done
echo "  progrpo upload pipelines/*.yaml --endpoint URL --namespace NAMESPACE"
