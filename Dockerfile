# ltmia on CPU: docker build -t ltmia . && docker run --rm -v "$PWD:/work" ltmia audit my-model --base my-base ...
FROM python:3.11-slim

# Torch first and from its own index: the default one brings an accelerator's libraries, several gigabytes.
ARG TORCH=torch==2.13.0
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
RUN pip install --no-cache-dir --index-url "$TORCH_INDEX" "$TORCH"

WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY src src
RUN pip install --no-cache-dir -c constraints.txt . && rm -r /src

# Not root: what the container writes into a mounted folder should belong to a person.
RUN useradd --create-home auditor
USER auditor
WORKDIR /work
ENTRYPOINT ["ltmia"]
CMD ["--help"]
