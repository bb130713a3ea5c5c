#!/usr/bin/env bash
# Packs what a machine with torch and torchvision but no network is missing: the other packages (site/), and
# MNIST (data/). About 56 MiB, and a few minutes.
#
#     bash benchmarks/gpu/pack.sh gpu.tar.xz        # for Python 3.12 on x86-64 Linux; needs pip, strip, unzip and xz
#
# Left out: what torch installs, scipy (no step needs it), the parts of Ray that tuning never loads, pyarrow's
# clouds, symbols and stubs. benchmarks/README.md says how to unpack and run.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
out=$(realpath -m "${1:?"where to write the archive: pack.sh gpu.tar.xz"}")
python=${PYTHON:-.venv/bin/python}
version=${PYTHON_VERSION:-3.12}
data=${DATA_DIR:-data}

# What the steps import, by hand: pyproject.toml has more than a search needs.
needed=("ray[tune]" optuna pandas pyarrow plotly jinja2 pyyaml rich filelock psutil pytest pytest-timeout)
# Torch's own, and torchvision's: the machine has them, built for its CUDA.
torchs="numpy|pillow|filelock|fsspec|jinja2|markupsafe|mpmath|networkx|setuptools|sympy|typing_extensions"

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
platforms=()
for tag in manylinux1 manylinux2014 manylinux_2_{17,24,26,27,28,31,34,35}; do
    platforms+=(--platform "${tag}_x86_64")
done
"$python" -m pip download -qq --disable-pip-version-check --only-binary=:all: --implementation cp \
    --python-version "$version" "${platforms[@]}" --constraint constraints.txt --dest "$work/wheels" "${needed[@]}"
mkdir -p "$work/pack/site" "$work/pack/data/MNIST/raw"
for wheel in "$work"/wheels/*.whl; do
    [[ $(basename "$wheel") =~ ^($torchs)- ]] || unzip -qo "$wheel" -d "$work/pack/site"
done
cp "$data"/MNIST/raw/{train,t10k}-{images-idx3,labels-idx1}-ubyte "$work/pack/data/MNIST/raw"

cd "$work/pack/site"
chmod -R u+rwX,go+rX .
rm -rf ray/{serve,rllib,llm,jars,dashboard/client,data/tests} plotly/labextension plotly-*.data
rm -rf pandas/tests pyarrow/{include,tests}
rm -f pyarrow/lib*{_flight,_s3}.so* pyarrow/_{flight,s3fs,gcsfs,azurefs}.*
find . \( -name "*.pyi" -o -name "*.pyx" -o -name "*.pxd" -o -name "*.pxi" \) -delete
find . -type f \( -name "*.so" -o -name "*.so.*" -o -name raylet -o -name gcs_server \) \
    -exec strip --strip-unneeded {} + -exec chmod +x {} +

cd "$work/pack"
mkdir -p "$(dirname "$out")"
# Machine code is a tenth smaller with xz's filter for it.
tar cf - --sort=name --owner=0 --group=0 site data | xz --threads=1 --x86 --lzma2=preset=9 > "$out"
du -h "$out"
