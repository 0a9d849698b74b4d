# Rotary Foundry on a plain Python: uv installs constraints.txt, and torch brings its CUDA libraries.
#
#   docker build --build-arg COMMIT="$(git rev-parse HEAD)" -t rotary-foundry .
#   docker run --gpus all --shm-size=16g -v "$PWD/runs:/rotary-foundry/runs" -v "$PWD/data:/rotary-foundry/data" \
#       rotary-foundry composer launch yamls/main/base.yaml
#
# Keys come at run time (`-e WANDB_API_KEY -e AWS_ACCESS_KEY_ID …`), none is built in. The user in it has the number
# 1000; `--user` names another, whom what is mounted has to belong to.
FROM python:3.12-slim-bookworm

SHELL ["/bin/bash", "-o", "pipefail", "-c"]
WORKDIR /rotary-foundry

# gcc: torch.compile and Triton build with it as they run.
# hadolint ignore=DL3008
RUN apt-get update && apt-get install --yes --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*

# What is installed depends on these files alone, so a change of code installs nothing anew.
COPY constraints.txt overrides.txt pyproject.toml ./

# Compiled to bytecode here, since the user that runs it may write none: every start would compile torch's and Composer's
# sources anew.
RUN python -m pip install --no-cache-dir "$(grep -E '^uv==' constraints.txt)" \
    && uv pip install --python "$(command -v python)" --no-cache --compile-bytecode \
        --constraint constraints.txt --override overrides.txt --requirement pyproject.toml

# FlashAttention, where it is to replace torch's own attention: a wheel's address that fits this torch and Python. Its
# source needs a CUDA compiler, which this image has not.
ARG FLASH_ATTN=
RUN if [ -n "$FLASH_ATTN" ]; then \
        uv pip install --python "$(command -v python)" --no-cache --compile-bytecode --no-deps "$FLASH_ATTN" einops; \
    fi

COPY . .
RUN uv pip install --python "$(command -v python)" --no-cache --no-deps --editable .

RUN useradd --create-home --uid 1000 foundry \
    && mkdir -p runs data \
    && chown foundry:foundry . runs data

# What git would say of this code, for the records of runs: no .git is sent to the engine.
ARG COMMIT=
ENV ROTARY_FOUNDRY_COMMIT=$COMMIT
USER 1000:1000
