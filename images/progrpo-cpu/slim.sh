#!/bin/sh
# Take out of an environment what none of its steps can reach. slim.sh SITE_PACKAGES
set -eu
cd "$1"

# What packages ship for their own tests and for those who compile against them.
find . -type d -name tests -prune -exec rm -rf {} +
find . -type f \( -name '*.pyi' -o -name '*.pyx' -o -name '*.pxd' -o -name '*.pxi' -o -name '*.[ch]' -o -name '*.[ch]pp' \) -delete
rm -rf pyarrow/include pyarrow/src plotly/labextension plotly/package_data/widgetbundle.js ../../../share/jupyter

# One file three times over, as a wheel cannot hold links; the loader asks for the middle name.
rm pyarrow/libarrow_python*.so pyarrow/libarrow_python*.so.*.*.*
# Arrow's network protocol, which nothing here speaks.
rm pyarrow/libarrow_flight* pyarrow/_flight*

# Models need torch; configurations, tokenizers and the list of models do not.
find transformers/models \( -name 'modeling_*.py' -o -name 'modular_*.py' \) ! -name modeling_auto.py -delete

# boto3 describes 400 services; these are the store and what finds credentials.
find botocore/data -mindepth 1 -maxdepth 1 -type d \
  ! -name s3 ! -name sts ! -name sso ! -name sso-oidc ! -name signin -exec rm -rf {} +

# Symbols for a debugger. Not in *.libs: patchelf has laid those files out anew, and strip would break them.
find . -name '*.so*' -type f ! -path './*.libs/*' -exec strip --strip-unneeded {} +
