# docker build -t lco_jax .
# docker run --rm lco_jax train-control --workdir=/tmp/run \
#   --config=experiments/configs/control.py:CartPole-v1
FROM python:3.11-slim
WORKDIR /lco_jax
COPY requirements.txt ./
RUN pip install --no-cache-dir -r requirements.txt
COPY . .
RUN pip install --no-cache-dir --no-deps --no-build-isolation .
WORKDIR /work
ENTRYPOINT ["lco-jax"]
CMD ["--help"]
