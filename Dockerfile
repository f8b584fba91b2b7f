# syntax=docker/dockerfile:1
#
# T-FF on a machine with an NVIDIA GPU (the torch wheels carry the CUDA libraries; the host needs the driver and the
# NVIDIA container toolkit).
#
#   docker build -t tff .
#   docker run --rm --gpus all --ipc=host --user "$(id -u):$(id -g)" \
#     -v "$PWD/weights:/app/weights:ro" \
#     -v "/path/to/CNN_synth_testset:/data:ro" \
#     -v "$PWD/fmap_relevances:/app/fmap_relevances" \
#     -v "$PWD/output:/app/output" \
#     tff python src/rank_fmaps.py --arch resnet50 --blur_jpg 0.5 --bsize 64 --dataset_dir /data \
#       --gan_name progan_val --num_real 1000 --num_fake 1000
#
# `--ipc=host` gives the data loader's workers shared memory; `--user` makes the results yours.
FROM python:3.11.14-slim-bookworm

ENV PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    MPLCONFIGDIR=/tmp/matplotlib

WORKDIR /app
# Dependencies first, so that an edit of the code does not install them anew.
COPY requirements.txt .
RUN --mount=type=cache,target=/root/.cache/pip \
    sed '/^-e /d' requirements.txt > /tmp/pinned.txt \
    && pip install --disable-pip-version-check -r /tmp/pinned.txt
COPY . .
RUN pip install --no-cache-dir --disable-pip-version-check --no-deps -e . \
    && useradd --uid 1000 --create-home tff \
    && install -d -o 1000 -g 1000 output

USER 1000
CMD ["python", "src/demo.py"]
