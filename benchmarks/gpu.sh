#!/usr/bin/env bash
# The kernels and the trainings on a GPU, in two runs of at most ten minutes each:
#
#   benchmarks/gpu.sh OUT              measure: tests on the device, what the compiler makes of the kernels there, all benchmarks
#   benchmarks/gpu.sh --train OUT      train: sinusoid and Omniglot to the published numbers; fused beside others, 4 to 4,096 tasks
#   benchmarks/gpu.sh --rehearse OUT   both, small, on the tests' stand-in device: no number of it is a measurement
#
# OMNIGLOT names the folder of Omniglot's arrays (default .carry/omniglot). A part that fails or runs out of time leaves the
# others standing, and the exit code 1. OUT gets a log, what the parts write, and table.md: measured beside modelled.
set -uo pipefail
mode=measure
case "${1:-}" in --train | --rehearse) mode=${1#--} && shift ;; esac
[[ $# == 1 && $1 != -* ]] || { sed -n '2,9s/^# \{0,1\}//p' "$0" >&2; exit 2; }
out=$(mkdir -p "$1" && cd "$1" && pwd)
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=${PYTHON:-python3}
device=cuda where=(--trainer.accelerator=cuda) omniglot=${OMNIGLOT:-.carry/omniglot}
run=("$python" -W ignore -m)
scratch=$(mktemp -d) && trap 'rm -rf "$scratch"' EXIT
few=(25 256) many=(1024 4096) all=(4 25 256 1024 4096) rounds=11 variants="ACTIVATION=relu LOSS=mse PRECISION=tf32"
convolutional=eager,batched,batched_checkpoint,conv_adapt
fit=(--tasks 25 --rounds 5)
sinusoid=(--trainer.max_steps=20000 --model.scheduler.init_args.total_steps=20000 --trainer.max_time=00:00:01:30)
images=(--trainer.max_time=00:00:03:30)
ours=batched,batched_graph,fused,fused_tf32,fused_graph
if [[ $mode == rehearse ]]; then
  # the same commands, with the device registered first; a kernel runs in the emulator, some seconds a task
  device=standin where=(--trainer.accelerator=standin)
  run=("$python" -W ignore tests/device/rehearse.py)
  fit=(--tasks 2 --rounds 2 --updates-per-step 2 --warm-up 2 --updates 4 --checked 4)
  few=(2) many=(2) all=(2) rounds=2 convolutional=eager,batched,batched_checkpoint  # conv_adapt takes minutes there
  sinusoid=(--trainer.max_steps=4 --model.updates_per_step=2 --data.tasks_per_batch=2 --data.val_tasks=2 --data.test_tasks=2
    --data.batches_per_epoch=2 --model.test_steps=1)
  images=(--trainer.max_steps=2 --data.tasks_per_batch=2 --data.val_tasks=2 --data.test_tasks=2 --data.batches_per_epoch=2
    --model.network.init_args.hidden=4 --model.network.init_args.ways=2 --data.ways=2 "--data.split=[3,2,2]")
  omniglot=$scratch/omniglot  # a handful of drawings, in the layout of the real ones
  PYTHONPATH=tests "$python" -c 'import pathlib, sys, drawings; drawings.write_npz(pathlib.Path(sys.argv[1]))' \
    "$(mkdir -p "$omniglot" && echo "$omniglot")"
fi

part() { # part SECONDS NAME COMMAND...
  local limit=$1 name=$2 code=0
  shift 2
  echo "== $name: $*"
  timeout --kill-after=5 "$limit" "$@" || code=$?
  echo "== $name: exit code $code after $SECONDS s in all"
}

tests() { # hypothesis is not there, and its tests stay at home
  case $mode in
    measure) part 150 tests "$python" -m pytest -q -p no:cacheprovider --junitxml="$out/tests.xml" --durations=5 \
      tests/kernels/test_kernels_{sgd_update,mlp_adapt,conv_adapt}.py tests/engine/fused/test_engine_fused.py \
      tests/engine/loops/test_engine_graphed.py ;;
    rehearse) part 150 tests "$python" -m pytest -q -p no:cacheprovider --junitxml="$out/tests.xml" \
      tests/kernels/test_kernels_sgd_update.py -k second_order ;;
  esac
}

measure() {
  tests
  part 45 inspect "$python" -W ignore -m lightning_maml.kernels.inspect --arch "$arch" --only "$variants" \
    --json "$out/inspect.json"
  part 45 modelled "$python" -W ignore -m lightning_maml.kernels.mlp_adapt.compared --arch "$arch" --only sinusoid \
    --json "$out/modelled.json"
  part 90 sinusoid "${run[@]}" benchmarks --device "$device" --tasks "${few[@]}" --rounds "$rounds" \
    --contenders "learn2learn,eager,vmap,$ours" --json "$out/sinusoid.json"
  # where a task at a time takes minutes
  part 60 "many sinusoids" "${run[@]}" benchmarks --device "$device" --tasks "${many[@]}" --rounds "$rounds" \
    --contenders "vmap,$ours" --json "$out/sinusoid_many.json"
  part 90 omniglot "${run[@]}" benchmarks --device "$device" --workload omniglot_5w1s --tasks "${few[0]}" --rounds "$rounds" \
    --inner-steps 1 --contenders "$convolutional" --json "$out/omniglot_5w1s.json"
  part 30 update "${run[@]}" benchmarks.update --device "$device" --tasks "${few[0]}" --rounds "$rounds" --json "$out/update.json"
  part 90 "sinusoid, fit" "${run[@]}" benchmarks.sinusoid_fit --device "$device" "${fit[@]}" --json "$out/sinusoid_fit.json"
  # what has no kernel for a GPU yet, on that machine's CPU
  part 40 policy_gradient "$python" -W ignore -m benchmarks.rl_engines --tasks "${few[0]}" --rounds 3
}

to_published() { # to_published SECONDS NAME MONITOR MODE THRESHOLD OPTION...: until validation reaches it, then a test
  local limit=$1 name=$2 monitor=$3 order=$4 threshold=$5 stop=EarlyStopping folder=$scratch/$2
  shift 5
  part "$limit" "$name" "${run[@]}" lightning_maml.cli fit --config "configs/$name.yaml" "$@" \
    "${where[@]}" --trainer.logger=lightning.pytorch.loggers.CSVLogger \
    --trainer.logger.save_dir="$folder" --trainer.enable_progress_bar=false --checkpoint.dirpath="$folder/checkpoints" \
    --trainer.callbacks+="$stop" --trainer.callbacks.monitor="$monitor" --trainer.callbacks.mode="$order" \
    --trainer.callbacks.patience=100000 --trainer.callbacks.stopping_threshold="$threshold"
  part 60 "$name, test" "${run[@]}" lightning_maml.cli test --config "configs/$name.yaml" "$@" \
    "${where[@]}" --trainer.logger=false --trainer.default_root_dir="$folder" \
    --ckpt_path "$folder/checkpoints/best.ckpt"
  cp "$folder/metrics.json" "$out/trained_$name.json"
}

train() {
  part 180 "fused beside compilers" "${run[@]}" benchmarks --device "$device" --tasks "${all[@]}" --rounds "$rounds" \
    --contenders "jax,vmap_graph,vmap_compile,vmap_compile_graph,batched_compile,$ours" --json "$out/sinusoid_compilers.json"
  to_published 120 sinusoid val/loss min 0.35 --model.engine=fused "${sinusoid[@]}"
  to_published 240 omniglot_5w1s val/accuracy max 0.987 --data.root="$omniglot" "${images[@]}"
}

{
  if [[ $mode == rehearse ]]; then
    arch=sm_90
    echo "the stand-in device: no number below is a measurement of a GPU"
  else
    "$python" -c 'import sys, torch, triton; print("python", sys.version.split()[0], "torch", torch.__version__, "triton", triton.__version__, torch.cuda.get_device_name())'
    nvidia-smi --query-gpu=name,driver_version,clocks.sm,clocks.max.sm,memory.total --format=csv
    arch=$("$python" -c 'import torch; print("sm_%d%d" % torch.cuda.get_device_capability())')
  fi
  [[ $mode == train ]] || measure
  [[ $mode == measure ]] || train
  part 30 table "$python" -m benchmarks.gpu_table "$out"
} 2>&1 | tee "$out/log.txt"
! grep -q '^== .*: exit code [^0]' "$out/log.txt"
