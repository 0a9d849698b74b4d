# Rotary Foundry on a plain Python: uv installs constraints.txt, and torch brings its CUDA libraries.
#
#   docker build --build-arg COMMIT="$(git rev-parse HEAD)" -t rotary-foundry .
#   docker run --gpus all --shm-size=16g -v "$PWD/runs:/rotary-foundry/runs" -v "$PWD/data:/rotary-foundry/data" \
#       rotary-foundry composer launch yamls/main/base.yaml
#
# Keys are given at run time (`-e WANDB_API_KEY -e AWS_ACCESS_KEY_ID …`); the image has none. It runs as user 1000, or
# as the user that `--user` names, who must own the mounted folders.
FROM python:3.12-slim-bookworm

SHELL ["/bin/bash", "-o", "pipefail", "-c"]
WORKDIR /rotary-foundry

# torch.compile and Triton need a compiler at run time.
# hadolint ignore=DL3008
RUN apt-get update && apt-get install --yes --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*

# The installed packages depend on these files alone, so a change of code does not install them again.
COPY constraints.txt overrides.txt pyproject.toml ./

# Compile to bytecode here: the user that runs the image may not write it, so every start would compile the sources of
# torch and Composer again.
RUN python -m pip install --no-cache-dir "$(grep -E '^uv==' constraints.txt)" \
    && uv pip install --python "$(command -v python)" --no-cache --compile-bytecode \
        --constraint constraints.txt --override overrides.txt --requirement pyproject.toml

# For FlashAttention instead of torch's own attention: the address of a wheel for this torch and Python. Building it from
# source needs a CUDA compiler, which this image does not have.
ARG FLASH_ATTN=
RUN if [ -n "$FLASH_ATTN" ]; then \
        uv pip install --python "$(command -v python)" --no-cache --compile-bytecode --no-deps "$FLASH_ATTN" einops; \
    fi

COPY . .
RUN uv pip install --python "$(command -v python)" --no-cache --no-deps --editable .

RUN useradd --create-home --uid 1000 foundry \
    && mkdir -p runs data \
    && chown foundry:foundry . runs data

# The commit, for the records of runs: the image has no .git to read it from.
ARG COMMIT=
ENV ROTARY_FOUNDRY_COMMIT=$COMMIT
USER 1000:1000
