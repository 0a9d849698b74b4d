# Encoder Foundry on MosaicML's image. torch, CUDA and what belongs to them are the image's own; all else is pinned.
FROM mosaicml/pytorch:2.7.0_cu128-python3.12-ubuntu22.04

WORKDIR /encoder-foundry

# The pins first, so that a change of code does not install everything anew.
COPY constraints.txt pyproject.toml README.md LICENSE ./
RUN mkdir -p src/encoder_foundry && touch src/encoder_foundry/__init__.py \
    && grep -vE '^(torch|torchvision|triton|nvidia-[a-z0-9-]+)==' constraints.txt > image-constraints.txt \
    && python -m pip install --no-cache-dir "$(grep -E '^uv==' constraints.txt)" \
    && uv pip install --system --no-cache --constraint image-constraints.txt --editable .

COPY . .
