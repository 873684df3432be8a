# One image for server, worker and client: they are one distribution and differ only in the command.
FROM python:3.12-slim AS build
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY protos protos
COPY server server
COPY worker worker
COPY client client
# Comma-separated extras of the distribution; fewer make a smaller image.
ARG EXTRAS=all
RUN pip wheel --no-cache-dir --wheel-dir /dist ".[${EXTRAS}]"

FROM python:3.12-slim
ARG EXTRAS=all
# The wheels are mounted, not copied: no layer keeps them, and nothing is built here.
RUN --mount=type=bind,from=build,source=/dist,target=/dist \
    pip install --no-cache-dir --no-index --find-links /dist "paramserver[${EXTRAS}]"
# A volume that is first mounted on a directory takes over its owner.
RUN useradd --uid 10001 --create-home paramserver && install -d -o paramserver /job/runs /job/state
USER paramserver
# Relative paths of a job start here, as they start in the working directory of a local run.
WORKDIR /job
# The root file system may be read-only; matplotlib wants a place for its cache.
ENV PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 MPLCONFIGDIR=/tmp/matplotlib
EXPOSE 50051
CMD ["python", "-m", "paramserver.server", "--listen", "0.0.0.0:50051"]
