# One image for worker, scheduler and server; the command selects one (sploot-cluster worker | scheduler | serve).
#
# PYTHON_IMAGE may be any Debian-like image with Python 3.11 or newer and venv. The image contains the packages that
# requirements.lock pins by hash. `make image` builds it from scratch and runs a job in it; see docs/how-to/deployment.md.
ARG PYTHON_IMAGE=docker.io/library/python:3.13-slim-bookworm

FROM ${PYTHON_IMAGE} AS build
WORKDIR /src
SHELL ["/bin/sh", "-eux", "-c"]
COPY requirements-build.lock requirements.lock ./
# pip is installed in a separate environment, which is not copied into the image
RUN python3 -m venv /opt/build \
    && /opt/build/bin/python -m pip install --no-cache-dir --require-hashes --only-binary :all: -r requirements-build.lock \
    && python3 -m venv --without-pip /opt/sploot \
    && /opt/build/bin/python -m pip --python /opt/sploot/bin/python install \
        --no-cache-dir --no-compile --require-hashes --only-binary :all: -r requirements.lock
COPY setup.py setup.cfg pyproject.toml README.md LICENSE ./
COPY broker broker
COPY tasks tasks
COPY sploot_cluster sploot_cluster
COPY deploy/shrink.py /src/shrink.py
RUN /opt/build/bin/python -m pip wheel --no-cache-dir --no-deps --no-build-isolation --wheel-dir /src/wheel . \
    && /opt/build/bin/python -m pip --python /opt/sploot/bin/python install \
        --no-cache-dir --no-compile --no-deps --no-index /src/wheel/*.whl \
    && python3 /src/shrink.py /opt/sploot \
    && /opt/sploot/bin/python -I -c "import tasks.worker, tasks.cli, sploot_cluster.api, sploot_cluster.density, sploot_cluster.engine.neighbours, obstore" \
    && /opt/sploot/bin/python -m compileall -q /opt/sploot/lib/python3.*/site-packages/broker \
        /opt/sploot/lib/python3.*/site-packages/tasks /opt/sploot/lib/python3.*/site-packages/sploot_cluster

FROM ${PYTHON_IMAGE}
ARG VERSION=unknown
ARG REVISION=unknown
LABEL org.opencontainers.image.title="sploot-cluster" \
      org.opencontainers.image.description="Groups the photos of each pet into clusters and keeps users' corrections permanently" \
      org.opencontainers.image.licenses="MIT" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
COPY --from=build /opt/sploot /opt/sploot
# The root file system may be read-only. Only /tmp must be writable, for the metrics of worker processes. Our own
# modules are compiled at build time; compiling all libraries would add 35 MB of files that are never read.
ENV PATH=/opt/sploot/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    HOME=/tmp
USER 10001:10001
WORKDIR /tmp
EXPOSE 9105 8080
STOPSIGNAL SIGTERM
ENTRYPOINT ["sploot-cluster"]
CMD ["worker"]
