# The image of every Everstate process: `everstate` is the entry point, `serve`, `work`,
# `admin` or `migrate` the argument. It holds no PostgreSQL: EVERSTATE_DATABASE_URL names one.
#
#   docker build -t everstate .
#   docker run --rm everstate --version

FROM python:3.11-slim-bookworm AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /build

# The dependencies first, pinned and checked by hash: this layer lasts until the pins change.
COPY requirements/base.txt requirements/dev.txt requirements/
RUN python -m venv /opt/everstate \
 && /opt/everstate/bin/pip install --require-hashes --only-binary :all: -r requirements/base.txt

# The build backend, in an environment that is left behind; its pins are among those of dev.txt.
RUN awk '/^[a-z]/ { ours = /^(hatchling|packaging|pathspec|pluggy|tomlkit|trove-classifiers)==/ } ours' \
      requirements/dev.txt > requirements/backend.txt \
 && python -m venv /opt/backend \
 && /opt/backend/bin/pip install --require-hashes --only-binary :all: -r requirements/backend.txt

COPY pyproject.toml README.md LICENSE ./
COPY admin_ui admin_ui
COPY everstate everstate
COPY journal journal
COPY kernel kernel
COPY migrations migrations
COPY projections projections
COPY operations operations
COPY schemas schemas
COPY snapshots snapshots
COPY sidecar_api sidecar_api
RUN /opt/backend/bin/hatchling build -t wheel -d /build/wheel \
 && /opt/everstate/bin/pip install --no-deps --no-index /build/wheel/*.whl \
 && /opt/everstate/bin/python -m compileall -q /opt/everstate/lib


FROM python:3.11-slim-bookworm
RUN useradd --system --uid 10001 --no-create-home --home-dir /nonexistent everstate
COPY --from=build /opt/everstate /opt/everstate
ENV PATH=/opt/everstate/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
USER everstate
WORKDIR /tmp
EXPOSE 7400 7480 7490 7491
# SIGTERM drains (EVERSTATE_DRAIN_SECONDS), then the process ends with 0.
STOPSIGNAL SIGTERM
ENTRYPOINT ["everstate"]
CMD ["--help"]
