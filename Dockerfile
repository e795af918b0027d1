# One image for worker, scheduler and server: the command says which (sploot-cluster worker | scheduler | serve).
#
# Build it with any Debian-like Python of 3.11 to 3.13 as PYTHON_IMAGE; it must bring venv. What goes in is what
# requirements.lock names, by hash. `make image` builds it from nothing and runs a job in it; see docs/deployment.md.
ARG PYTHON_IMAGE=docker.io/library/python:3.13-slim-bookworm

FROM ${PYTHON_IMAGE} AS build
WORKDIR /src
SHELL ["/bin/sh", "-eux", "-c"]
COPY requirements-build.lock requirements.lock ./
# pip stays in an environment of its own, which does not go into the image
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
    && /opt/sploot/bin/python -I -c "import tasks.worker, tasks.cli, sploot_cluster.api, sploot_cluster.density, sploot_cluster.neighbours" \
    && /opt/sploot/bin/python -m compileall -q /opt/sploot/lib/python3.*/site-packages/broker \
        /opt/sploot/lib/python3.*/site-packages/tasks /opt/sploot/lib/python3.*/site-packages/sploot_cluster

FROM ${PYTHON_IMAGE}
ARG VERSION=unknown
ARG REVISION=unknown
LABEL org.opencontainers.image.title="sploot-cluster" \
      org.opencontainers.image.description="Groups every pet's media into clusters, and keeps people's corrections for ever" \
      org.opencontainers.image.licenses="MIT" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
COPY --from=build /opt/sploot /opt/sploot
# The root may be read-only; only /tmp must be writable, for what worker processes count. The bytecode of what they
# import is in the image; compiling all of the libraries would add 35 MB that nobody reads.
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
