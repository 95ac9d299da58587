# The image of the steps: `python -m trainer`, and no Prefect.
#   docker build -f infra/images/steps.Dockerfile -t finetune-steps:0.1.0 .
# The development image, because DeepSpeed compiles its operators with nvcc on first use.
FROM nvidia/cuda:13.0.1-devel-ubuntu24.04
RUN apt-get update \
    && apt-get install --yes --no-install-recommends python3 python3-dev python3-venv g++ \
    && rm -rf /var/lib/apt/lists/* \
    && python3 -m venv /venv
ENV PATH=/venv/bin:$PATH
WORKDIR /app
COPY requirements.lock .
# What trainer/ imports, and what its dependencies load by name; versions are the lock's.
RUN pip install --no-cache-dir --constraint requirements.lock \
    annotated-types \
    bitsandbytes \
    boto3 \
    deepspeed \
    fastapi \
    fastokens \
    fsspec \
    httpx2 \
    huggingface_hub \
    jinja2 \
    kserve \
    liger-kernel==0.8.5 \
    ninja \
    numpy \
    peft \
    prometheus_client \
    psutil \
    pyarrow \
    pydantic \
    pydantic_core \
    s3fs \
    safetensors \
    starlette \
    tensorboard \
    tensorizer \
    tokenizers \
    torch \
    transformers \
    uvicorn \
    wandb \
    xxhash \
    zstandard
COPY trainer ./trainer
RUN python -m compileall -q trainer
ENV PYTHONPATH=/app PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 HOME=/tmp
USER 1000:1000
CMD ["python", "-m", "trainer", "--help"]
