# The image of the orchestrator, the worker and the server: Prefect and this project, no torch.
#   docker build -f infra/images/orchestrator.Dockerfile -t finetune-orchestrator:0.2.0 .
FROM python:3.11-slim-bookworm
# Where else pip looks for packages; empty: the index that it is set up for.
ARG PIP_EXTRA_INDEX_URL
ARG PIP_FIND_LINKS
# The packages and this project's metadata, without its code: a change of code leaves this layer.
COPY pyproject.toml requirements.lock /build/
# The hashes are of a laptop's files; here the index decides which build of torch, as PIP_EXTRA_INDEX_URL says.
RUN sed -E '/--hash=/d; s/ [\\]$//' /build/requirements.lock > /build/constraints.txt \
    && pip install --no-cache-dir --constraint /build/constraints.txt "/build[orchestrator,kubernetes]"
WORKDIR /app
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
