# VLAD's page and API; see docs/serving.md.
FROM python:3.12-slim AS built
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
WORKDIR /src
COPY . .
RUN python -m venv /venv \
    && /venv/bin/pip install --no-cache-dir --extra-index-url "$TORCH_INDEX" ".[serve]"

FROM python:3.12-slim
RUN useradd --system --uid 10001 --create-home vlad \
    && mkdir -p /data/detectors /data/cache \
    && chown -R vlad /data
COPY --from=built /venv /venv
ENV PATH=/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    HF_HOME=/data/cache/hf \
    VLAD_CACHE=/data/cache/vlad \
    VLAD_SERVE_DETECTORS=/data/detectors \
    VLAD_SERVE_HOST=0.0.0.0
USER 10001
WORKDIR /data
VOLUME ["/data/detectors", "/data/cache"]
EXPOSE 8000
HEALTHCHECK --interval=30s --timeout=5s --start-period=60s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/healthz', timeout=4)"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["vlad", "serve"]
