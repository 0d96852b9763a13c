# The workbench for CPUs, with the versions it was tested with:
#
#     docker build -t asdlib .
#     mkdir -p work && docker run --rm --user "$(id -u):$(id -g)" -v "$PWD/work:/work" asdlib init .
#     docker run --rm --user "$(id -u):$(id -g)" -v "$PWD/work:/work" asdlib run demo
#
# For CUDA: docker build --build-arg TORCH=https://pypi.org/simple, and docker run --gpus all.
FROM python:3.11-slim
ARG TORCH=https://download.pytorch.org/whl/cpu
RUN apt-get update && apt-get install -y --no-install-recommends ffmpeg && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY asdlib asdlib
COPY notebooks notebooks
# An extra index offers 2.11.0+cpu, which counts as newer than 2.11.0 and needs no CUDA.
RUN pip install --no-cache-dir '.[cluster]' -c constraints.txt --extra-index-url "$TORCH"
WORKDIR /work
ENTRYPOINT ["asd"]
