# nio-pydra as a BIDS App, for processors. With a GPU: docker build --build-arg TORCH_INDEX=https://pypi.org/simple .
#
#   docker build -t nio-pydra .
#   docker run --rm -u "$(id -u):$(id -g)" -v /data/ds:/data:ro -v "$PWD/out:/out" -v "$PWD/work:/work" nio-pydra \
#       /data /out participant -w /work --template MNI152NLin2009cAsym
FROM python:3.11-bookworm AS build
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
WORKDIR /src
RUN python -m venv /opt/nio
# First and alone, as it is large and seldom another one.
COPY constraints.txt ./
RUN /opt/nio/bin/pip install --no-cache-dir --constraint constraints.txt --extra-index-url "$TORCH_INDEX" torch
# With .git, so that the version names the commit.
COPY . .
RUN git config --global --add safe.directory /src \
    && /opt/nio/bin/pip install --no-cache-dir --constraint constraints.txt ".[greedy,convexadam]"

FROM python:3.11-slim-bookworm
LABEL org.opencontainers.image.title="nio-pydra" \
      org.opencontainers.image.description="Atlas registration of brain scans by Neural Instance Optimization" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=build /opt/nio /opt/nio
# A home that any user may write to: docker run -u gives users that have none. Templates are kept in it; mount a folder
# there to keep them from run to run.
RUN mkdir -m 1777 /home/nio
ENV PATH="/opt/nio/bin:$PATH" HOME=/home/nio MPLBACKEND=Agg NO_ET=1
WORKDIR /home/nio
ENTRYPOINT ["nio-pydra"]
