# The image of a server with vLLM: serving.engine=vllm or auto, named by serving.image. It trains nothing.
#   docker build -f infra/images/vllm.Dockerfile -t finetune-vllm:0.2.0 .
# The development image, because vLLM's kernels compile themselves with nvcc and g++ on first use.
FROM nvidia/cuda:13.0.1-devel-ubuntu24.04
RUN apt-get update \
    && apt-get install --yes --no-install-recommends python3 python3-dev python3-venv g++ \
    && rm -rf /var/lib/apt/lists/* \
    && python3 -m venv /venv
ENV PATH=/venv/bin:$PATH
ARG PIP_EXTRA_INDEX_URL
ARG PIP_FIND_LINKS
# The packages and this project's metadata, without its code: a change of code leaves this layer.
COPY pyproject.toml requirements.lock /build/
# The server's own packages come under the lock. vLLM brings its own torch and transformers, of other versions than the
# lock's: of what is installed by then it may change nothing.
RUN sed -E '/--hash=/d; s/ [\\]$//' /build/requirements.lock > /build/constraints.txt \
    && pip install --no-cache-dir --constraint /build/constraints.txt "/build[server]" \
    && pip freeze --exclude finetune-pipeline > /build/server.txt \
    && pip install --no-cache-dir --constraint /build/server.txt "/build[vllm]"
WORKDIR /app
COPY trainer ./trainer
RUN python -m compileall -q trainer
ENV PYTHONPATH=/app PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 HOME=/tmp
USER 1000:1000
CMD ["python", "-m", "trainer", "--help"]
