# The image of the steps: `python -m trainer`, and no Prefect.
#   docker build -f infra/images/steps.Dockerfile -t finetune-steps:0.2.0 .
# The development image, because DeepSpeed compiles its operators with nvcc on first use.
FROM nvidia/cuda:13.0.1-devel-ubuntu24.04
RUN apt-get update \
    && apt-get install --yes --no-install-recommends python3 python3-dev python3-venv g++ \
    && rm -rf /var/lib/apt/lists/* \
    && python3 -m venv /venv
ENV PATH=/venv/bin:$PATH
# Where else pip looks for packages: another index has other builds of torch (the CPU's, another CUDA's).
ARG PIP_EXTRA_INDEX_URL
ARG PIP_FIND_LINKS
# The packages and this project's metadata, without its code: a change of code leaves this layer.
COPY pyproject.toml requirements.lock /build/
# The hashes are of a laptop's files; here the index decides which build of torch, as PIP_EXTRA_INDEX_URL says.
RUN sed -E '/--hash=/d; s/ [\\]$//' /build/requirements.lock > /build/constraints.txt \
    && pip install --no-cache-dir --constraint /build/constraints.txt "/build[steps,gpu,s3,tracking]"
WORKDIR /app
COPY trainer ./trainer
RUN python -m compileall -q trainer
ENV PYTHONPATH=/app PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 HOME=/tmp
USER 1000:1000
CMD ["python", "-m", "trainer", "--help"]
