# Rotary Foundry on MosaicML's image. torch and CUDA are the image's own; all else is as constraints.txt pins it.
#
#   docker build --build-arg COMMIT="$(git rev-parse HEAD)" -t rotary-foundry .
#   docker run --gpus all --shm-size=16g -v "$PWD/runs:/rotary-foundry/runs" -v "$PWD/data:/rotary-foundry/data" \
#       rotary-foundry composer launch yamls/main/base.yaml
#
# Keys come at run time (`-e WANDB_API_KEY -e AWS_ACCESS_KEY_ID …`), none is built in. The user in it has the number
# 1000; `--user` names another, whom what is mounted has to belong to.
FROM mosaicml/pytorch:2.7.0_cu128-python3.12-ubuntu22.04

SHELL ["/bin/bash", "-o", "pipefail", "-c"]
WORKDIR /rotary-foundry

# What is installed depends on these two files alone, so a change of code installs nothing anew.
COPY constraints.txt pyproject.toml ./

# The pins, with those of the image's own packages in the place of ours. Compiled to bytecode here, since the user that
# runs them may write none: every start would compile torch's and Composer's sources anew.
RUN own='^(torch|torchvision|triton|nvidia-[a-z0-9-]+)==' \
    && grep -vE "$own" constraints.txt > image-constraints.txt \
    && (python -m pip list --format=freeze | grep -E "$own" >> image-constraints.txt || true) \
    && python -m pip install --no-cache-dir "$(grep -E '^uv==' constraints.txt)" \
    && uv pip install --python "$(command -v python)" --no-cache --compile-bytecode \
        --constraint image-constraints.txt --requirement pyproject.toml

# FlashAttention 2: a requirement, a wheel's address, or nothing, which leaves the GPU to FlexAttention. Where its
# authors have no wheel for this torch, it is compiled: an hour or two, and some 5 GB of memory a job.
ARG FLASH_ATTN=flash-attn
# FlashAttention 3, for Hopper: the same, such as
# "flash-attn-3 @ git+https://github.com/Dao-AILab/flash-attention@v2.8.3#subdirectory=hopper"
ARG FLASH_ATTN_3=
ARG MAX_JOBS=4
RUN for package in "$FLASH_ATTN" "$FLASH_ATTN_3"; do \
        if [ -n "$package" ]; then \
            MAX_JOBS="$MAX_JOBS" uv pip install --python "$(command -v python)" --no-cache --compile-bytecode \
                --no-build-isolation --constraint image-constraints.txt "$package" || exit 1; \
        fi; \
    done

COPY . .
RUN uv pip install --python "$(command -v python)" --no-cache --no-deps --editable .

RUN useradd --create-home --uid 1000 foundry \
    && mkdir -p runs data \
    && chown foundry:foundry . runs data

# What git would say of this code, for the records of runs: no .git is sent to the engine.
ARG COMMIT=
ENV ROTARY_FOUNDRY_COMMIT=$COMMIT
USER 1000:1000
