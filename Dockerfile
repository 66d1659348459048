# One image for answering and for rendering, on the CPU or, with the NVIDIA container toolkit, on GPUs.
FROM python:3.12-slim
WORKDIR /lipsync
COPY pyproject.toml constraints.txt README.md LICENSE NOTICE ./
COPY lipsync_engine lipsync_engine
COPY server server
COPY weights weights
RUN apt-get update && apt-get install -y --no-install-recommends ffmpeg gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/* \
    && pip install --no-cache-dir -c constraints.txt '.[postgresql]' \
    && useradd --uid 1000 --create-home lipsync \
    && install -d -o lipsync /data /secrets
USER lipsync
ENV LIPSYNC_HOST=0.0.0.0 LIPSYNC_DATA_DIR=/data LIPSYNC_CACHE_DIR=/data/cache
VOLUME /data
EXPOSE 8000
CMD ["lipsync", "serve"]
