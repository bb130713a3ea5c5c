# The image of the pods of cluster-kuberay.yaml. From the top folder of the repository:
#
#     docker build --tag REGISTRY/tune-mnist:0.2.0 .
#
# KubeRay needs bash, and python and ray in the PATH; its probes need wget only with Ray before 2.53.
FROM python:3.12-slim

RUN useradd --create-home --uid 1000 ray
WORKDIR /home/ray/tune-mnist
RUN chown ray .

# The packages are a layer of their own, some GB, which changed code leaves as it is: the package is installed
# while it is empty, and its code follows.
COPY pyproject.toml constraints.txt LICENSE ./
RUN mkdir tune_mnist && touch README.md tune_mnist/__init__.py && \
    pip install --no-cache-dir --constraint constraints.txt setuptools && \
    pip install --no-cache-dir --constraint constraints.txt --no-build-isolation --editable '.[cluster]'
COPY tune_mnist tune_mnist
COPY scripts scripts

# The search downloads MNIST to ./data, on the head. By its number the kubelet can tell that it is not root.
USER 1000
