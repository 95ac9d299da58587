# The image of the orchestrator, the worker and the server: Prefect and this project, no torch.
#   docker build -f infra/images/orchestrator.Dockerfile -t finetune-orchestrator:0.1.0 .
FROM python:3.11-slim-bookworm
WORKDIR /app
COPY requirements.lock .
# What flows/, tasks/ and infra/ import; versions are the lock's.
RUN pip install --no-cache-dir --constraint requirements.lock \
    aiohttp \
    annotated-types \
    click \
    fastapi \
    httpx \
    kubernetes_asyncio \
    prefect \
    prefect-kubernetes \
    psutil \
    pydantic \
    pyyaml \
    rich \
    sqlalchemy
COPY flows ./flows
COPY tasks ./tasks
COPY infra ./infra
COPY trainer ./trainer
COPY prefect.yaml .
RUN python -m compileall -q flows tasks infra trainer
ENV PYTHONPATH=/app PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 HOME=/tmp \
    PREFECT_HOME=/tmp/prefect FINETUNE_BACKEND=kubernetes
USER 1000:1000
CMD ["python", "-m", "flows.cli", "--help"]
