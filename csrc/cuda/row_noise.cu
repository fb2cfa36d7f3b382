// The noise of rows that have keys of their own, written out: the kernels take one key for a block of rows.

#include "launch.cuh"
#include "noise.cuh"

namespace rhovae::cuda {

struct RowNoise {
  RowKeys keys;
  uint64_t row_offset;
  int64_t samples, rows, steps;
  void* out;  // (samples, rows, steps)
};

// A thread a block of the stream.
template <class V>
__global__ void row_noise_kernel(const __grid_constant__ RowNoise args) {
  constexpr int N = Normals<V>::kBlock;
  const int64_t blocks = (args.steps + N - 1) / N, count = args.samples * args.rows * blocks;
  const int64_t stride = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += stride) {
    const int64_t block = i % blocks, sample_row = i / blocks;
    const int64_t row = sample_row % args.rows, sample = sample_row / args.rows;
    const uint64_t position = args.keys.words[2 * row + 1] + static_cast<uint64_t>(block);
    const uint64_t id = noise_row(args.row_offset, static_cast<uint64_t>(args.keys.numbers[row]),
                                  static_cast<uint64_t>(args.samples), static_cast<uint64_t>(sample));
    uint32_t words[4] = {static_cast<uint32_t>(position), static_cast<uint32_t>(position >> 32),
                         static_cast<uint32_t>(id), static_cast<uint32_t>(id >> 32)};
    philox4x32_10<ScalarWord>(round_keys(args.keys.words[2 * row]), words);
    V eps[N];
    normals_of_block(words, eps);
    V* to = static_cast<V*>(args.out) + sample_row * args.steps + block * N;
    const int64_t left = args.steps - block * N;
    if (args.steps % N == 0) {  // then every run of 16 bytes is aligned
      store_run(to, eps);
      continue;
    }
    for (int j = 0; j < N && j < left; ++j) to[j] = eps[j];
  }
}

template <class V>
static int launch_row_noise(const RowNoise& args, Stream stream) {
  constexpr int kThreads = 256, N = Normals<V>::kBlock;
  const int64_t blocks = (args.steps + N - 1) / N;
  return launch(row_noise_kernel<V>, grid_for(args.samples * args.rows * blocks, kThreads), kThreads, stream,
                args);
}

int row_noise(const Problem& p, void* eps, Stream stream) {
  const RowNoise args{p.keys, p.noise.row_offset, p.samples, p.rows, p.steps, eps};
  return p.mu.type == Type::Float64 ? launch_row_noise<double>(args, stream)
                                    : launch_row_noise<float>(args, stream);
}

}  // namespace rhovae::cuda
